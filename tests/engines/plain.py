"""FCN-8s and FCN-32s as PyTorch's users write them: the modules one after the other."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from caffe_port.files import caffemodel


class Plain(nn.Module):
    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride
        channels = 3
        for block, (convs, width) in enumerate(zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512)), 1):
            for conv in range(1, convs + 1):
                pad = 100 if (block, conv) == (1, 1) else 1
                setattr(self, f'conv{block}_{conv}', nn.Conv2d(channels, width, 3, padding=pad))
                channels = width
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.fc6, self.fc7 = nn.Conv2d(512, 4096, 7), nn.Conv2d(4096, 4096, 1)
        self.drop = nn.Dropout2d()
        self.score_fr = nn.Conv2d(4096, 21, 1)

        def up(kernel: int, step: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(21, 21, kernel, stride=step, bias=False)

        if stride == 32:
            self.upscore = up(64, 32)
        else:
            self.score_pool3, self.score_pool4 = nn.Conv2d(256, 21, 1), nn.Conv2d(512, 21, 1)
            self.upscore2, self.upscore_pool4, self.upscore8 = up(4, 2), up(4, 2), up(16, 8)

    def forward(self, x):
        height, width = x.shape[2:]
        h, pools = x, []
        for block, convs in enumerate((2, 2, 3, 3, 3), 1):
            for conv in range(1, convs + 1):
                h = self.relu(getattr(self, f'conv{block}_{conv}')(h))
            h = self.pool(h)
            pools.append(h)
        h = self.drop(self.relu(self.fc6(h)))
        h = self.score_fr(self.drop(self.relu(self.fc7(h))))
        if self.stride == 32:
            return self.upscore(h)[:, :, 19 : 19 + height, 19 : 19 + width].contiguous()
        h = self.upscore2(h)
        h = h + self.score_pool4(pools[3])[:, :, 5 : 5 + h.shape[2], 5 : 5 + h.shape[3]]
        h = self.upscore_pool4(h)
        h = h + self.score_pool3(pools[2])[:, :, 9 : 9 + h.shape[2], 9 : 9 + h.shape[3]]
        return self.upscore8(h)[:, :, 31 : 31 + height, 31 : 31 + width].contiguous()


def load(stride: int, weights: Path | None = None) -> Plain:
    """Return FCN-8s or FCN-32s, with weights from a .caffemodel if one is given."""
    module = Plain(stride)
    if weights:
        state = module.state_dict()
        for layer in caffemodel.read(weights):
            for kind, blob in zip(('weight', 'bias'), layer.blobs):
                state[f'{layer.name}.{kind}'].copy_(torch.from_numpy(blob.array()))
    return module.eval()
