"""Compare FCN-AlexNet, FCN-VGG16 and FCN-GoogLeNet (CVPR 2015, table 1)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import statistics
import time

import torch

from caffe_port import TEST, Net
from caffe_port.coord_map import coord_map_from_to, window
from caffe_port.net_spec import NetSpec, Top
from nets import caffenet, data, googlenet, vgg16, voc_fcn32s, voc_fcn_alexnet, voc_fcn_googlenet
from nets.atoms import conv_relu, score
from solve.run import options

DESCRIPTION = """examples:
  base_nets.py
  base_nets.py 0 --runs 20          on GPU 0

Print forward time of a 500 x 500 image, parameters (without the fixed upsampling), receptive field
and stride of the score layer of the full nets, beside the paper's (CVPR 2015, table 1; on a K40c).
Its 907 pixels count GoogLeNet's last average pooling, which its FCN leaves out: 715 without.
"""
# Net, and the paper's mean IU on VOC 2011's val, milliseconds, million parameters, field, stride.
ROWS = (
    ('FCN-AlexNet', voc_fcn_alexnet, (39.8, 50, 57, 355, 32)),
    ('FCN-VGG16', voc_fcn32s, (56.0, 210, 134, 404, 32)),
    ('FCN-GoogLeNet', voc_fcn_googlenet, (42.5, 59, 6, 907, 32)),
)


def make_scores() -> dict[str, tuple[NetSpec, Top]]:
    """Return the trunk of each net, up to its scores."""
    made = {}
    n = NetSpec()
    n.data = data.image()
    n.conv1, n.relu1 = caffenet.conv_relu(n.data, 96, ks=11, stride=4, pad=100)
    n.fc6, n.relu6 = caffenet.conv_relu(caffenet.trunk(n, n.relu1), 4096, ks=6)
    made['FCN-AlexNet'] = n, score(n.relu6, 21)
    n = NetSpec()
    n.data = data.image()
    n.conv1_1, n.relu1_1 = conv_relu(n.data, 64, pad=100)
    n.fc6, n.relu6 = conv_relu(vgg16.trunk(n, n.relu1_1), 4096, ks=7, pad=0)
    made['FCN-VGG16'] = n, score(n.relu6, 21)
    n = NetSpec()
    n.data = data.image()
    made['FCN-GoogLeNet'] = n, score(googlenet.trunk(n, googlenet.first_conv(n, pad=19)), 21)
    return made


def measure_field(top: Top) -> int:
    """Return how many pixels of the image, on an axis, a pixel of `top` can see.

    A window of e pixels that are s image pixels apart adds s * (e - 1); of several paths the
    widest counts.
    """
    field = 1
    for bottom in top.fn.inputs:
        below = measure_field_of(bottom)
        if top.fn.type_name in ('Convolution', 'Pooling'):
            _, _, extent, _ = window(top.fn)
            below += int((extent[0] - 1) * _spacing(bottom))
        field = max(field, below)
    return field


_fields: dict[Top, int] = {}


def measure_field_of(top: Top) -> int:
    """Return measure_field(top), computed once."""
    if top not in _fields:
        _fields[top] = measure_field(top)
    return _fields[top]


def _spacing(top: Top) -> int:
    """Return how many image pixels apart the pixels of `top` are."""
    base = top
    while base.fn.inputs:
        base = base.fn.inputs[0]
    return int(1 / coord_map_from_to(base, top).scale[0])


def time_forward(net: Net, runs: int) -> float:
    """Return the median milliseconds of a forward."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        with torch.no_grad():
            net.forward_range()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    parser = options.make_parser('base_nets.py', DESCRIPTION, options.STATUS)
    options.add_gpu(parser, positional=True)
    parser.add_argument('--runs', type=int, default=1, metavar='N', help='to time (default: 1)')
    args = parser.parse_args()
    with options.session():
        options.choose_device(args.gpu)
        print(f'{"":14} {"forward ms":>16} {"parameters":>14} {"field":>12} {"stride":>9}  mean IU')
        print(
            f'{"":14} {"ours   paper":>16} {"ours  paper":>14} {"ours  paper":>12}  '
            'ours/paper   paper'
        )
        for name, module, (mean_iu, ms, millions, field, stride) in ROWS:
            net = Net(module.fcn('deploy'), TEST)
            count = sum(
                blob.count for layer, blobs in net.params.items() if layer != 'upscore'
                for blob in blobs
            )  # fmt: skip
            spec, top = make_scores()[name]
            print(
                f'{name:14} {time_forward(net, args.runs):8.0f} {ms:7} {count / 1e6:7.1f}M '
                f'{millions:4}M '
                f'{measure_field_of(top):6} {field:5} {_spacing(top):6}/{stride} {mean_iu:8.1f}',
                flush=True,
            )


if __name__ == '__main__':
    main()
