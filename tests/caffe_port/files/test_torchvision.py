"""VGG16 between torchvision and Caffe: names, colours and scale exact, means not."""

import numpy as np
import pytest
import torch
from torch import nn

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.files import weights
from caffe_port.files.torchvision import (
    TORCHVISION_MEAN_BGR,
    ZOO_MEAN_BGR,
    from_torchvision,
    mean_shift,
    to_torchvision,
)
from caffe_port.files.weights import fit
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import vgg16
from tests.conversion import refused, run, write_tiny
from tests.vectors import assert_close, net_of


class TorchvisionVGG16(nn.Module):
    """The modules of torchvision's vgg16, narrow, for images of 64 x 64."""

    def __init__(self, width: int = 2, fc: int = 8, classes: int = 5):
        super().__init__()
        layers, inputs = [], 3
        for convs, factor in zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8)):
            for _ in range(convs):
                layers += [nn.Conv2d(inputs, factor * width, 3, padding=1), nn.ReLU()]
                inputs = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 4, fc),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(fc, fc),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(fc, classes),
        )

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.fixture
def torchvision_vgg(tmp_path):
    """The model with drawn weights, its file, an image BGR 0 to 255, and what the model takes."""
    model, random = TorchvisionVGG16().eval(), np.random.RandomState(8)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            spread = (2 / np.prod(tensor.shape[1:])) ** 0.5 if tensor.dim() > 1 else 0.5
            tensor.copy_(torch.from_numpy(random.randn(*tensor.shape) * spread))
    torch.save(model.state_dict(), tmp_path / 'tv.pth')
    image = random.randint(0, 256, (1, 3, 64, 64)).astype(np.float64)
    rgb = torch.from_numpy(image[:, ::-1].copy()) / 255
    mean, std = (
        torch.tensor(three, dtype=torch.float64)[:, None, None]
        for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return model, tmp_path / 'tv.pth', image, ((rgb - mean) / std).float()


def less(image: np.ndarray, mean) -> np.ndarray:
    return (image - np.reshape(mean, (3, 1, 1))).astype(np.float32)


def caffe_vgg() -> NetParameter:
    return vgg16.classifier(num_classes=5, width=2, fc=8, size=64, batch=1)


def test_torchvisions_vgg16_is_caffes_on_images_less_its_mean(tmp_path, capsys, torchvision_vgg):
    model, path, image, normalised = torchvision_vgg
    assert run(path, tmp_path / 'a.caffemodel', '--from-torchvision') == 0
    said = capsys.readouterr().out
    assert 'less the mean 103.53,116.28,123.675' in said
    assert 'less 103.939,116.779,123.68 they are darker by 0.409,0.499,0.005' in said
    net = caffe.Net(caffe_vgg(), str(tmp_path / 'a.caffemodel'), caffe.TEST)
    net.forward(data=less(image, TORCHVISION_MEAN_BGR))
    with torch.no_grad():
        first = nn.functional.conv2d(
            normalised, model.features[0].weight, model.features[0].bias, padding=1
        ).relu()
        # conv1_1 as the net keeps it, past its ReLU: the border too.
        assert_close(net.blobs['conv1_1'].data, first.numpy(), 1e-5)
        assert_close(net.blobs['fc8'].data, model(normalised).numpy(), 1e-5)


def test_another_mean_moves_conv1_1_by_one_constant_but_along_the_border(torchvision_vgg):
    model, path, image, normalised = torchvision_vgg
    layers = from_torchvision(weights.read(path))
    weight, bias = (torch.from_numpy(blob.array()) for blob in layers[0].blobs)

    def conv(values, pad):
        return nn.functional.conv2d(
            torch.from_numpy(values).double(), weight.double(), bias.double(), padding=pad
        )

    exact, zoo = (conv(less(image, mean), 1) for mean in (TORCHVISION_MEAN_BGR, ZOO_MEAN_BGR))
    moved = (exact - zoo)[0]
    constant = moved[:, 5, 5]
    inside = (moved[:, 1:-1, 1:-1] - constant[:, None, None]).abs().max()
    border = (moved - constant[:, None, None]).abs().max()
    # Its bias could carry the constant without padding, and only then.
    assert inside < 1e-5 and border > 1e-3
    assert float(constant.abs().max()) == pytest.approx(mean_shift(layers, ZOO_MEAN_BGR), rel=1e-4)
    assert mean_shift(layers, TORCHVISION_MEAN_BGR) == 0


def test_torchvisions_model_loads_what_came_back_from_caffe(tmp_path, torchvision_vgg):
    model, path, _, _ = torchvision_vgg
    proto = tmp_path / 'vgg.prototxt'
    prototxt.write(caffe_vgg(), proto)
    assert (
        run(path, tmp_path / 'a.caffemodel', '--from-torchvision', '--prototxt', proto, '--verify')
        == 0
    )
    assert (
        run(
            tmp_path / 'a.caffemodel',
            tmp_path / 'b.pth',
            '--to-torchvision',
            '--prototxt',
            proto,
            '--verify',
            '--mean',
            '104,117,123',
        )
        == 0
    )
    back = torch.load(tmp_path / 'b.pth', weights_only=True)
    for key, tensor in model.state_dict().items():
        if key == 'features.0.weight':
            assert_close(back[key].numpy(), tensor.numpy(), 2e-7)
        else:
            assert torch.equal(back[key], tensor)
    model.load_state_dict(back, strict=True)


def test_fully_connected_layers_return_to_torchvision_from_convolutions(torchvision_vgg):
    layers = from_torchvision(weights.read(torchvision_vgg[1]))
    net = caffe.Net(caffe_vgg(), caffe.TEST)
    flat = {layer.name: [blob.shape for blob in layer.blobs] for layer in layers}
    text = prototxt.to_text(caffe_vgg())
    start = text.index('layer {', text.index('name: "pool5"'))
    conv = (
        text[:start]
        + """layer { name: "fc6" type: "Convolution" bottom: "pool5" top: "fc6"
        convolution_param { num_output: 8 kernel_size: 2 } }"""
    )
    cast = fit(layers, net_of(conv).layer_dict, fully_conv=True)
    assert len(cast.cast) == 1 and not cast.mismatched
    assert cast.layers[-1].blobs[0].shape == (8, 16, 2, 2)
    rest = [layer for layer in layers if layer.name in ('fc7', 'fc8')]
    found = to_torchvision(cast.layers + rest)
    assert [[blob.shape for blob in layer.blobs] for layer in found] == list(flat.values())
    assert not fit(from_torchvision(found), net.layer_dict).mismatched


def test_other_nets_are_not_taken_for_torchvisions(tmp_path, capsys):
    path, _ = write_tiny(tmp_path)
    for option in ('--from-torchvision', '--to-torchvision'):
        line = refused(capsys, path, tmp_path / 'b.pth', option)
        assert 'expected the 16 layers of VGG16' in line and 'others: a/conv.1, fc' in line
