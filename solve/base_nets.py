"""Compare FCN-AlexNet, FCN-VGG16 and FCN-GoogLeNet (CVPR 2015, table 1)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import statistics
import time

import torch

from caffe_port import TEST, Net, summary
from nets import voc_fcn32s, voc_fcn_alexnet, voc_fcn_googlenet
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


def see(net: Net) -> summary.Sight:
    """Return what a pixel of the coarse scores, score_fr, sees of the image on an axis."""
    given = {name: net.module.shapes[name] for name in net.inputs}
    (row,) = (row for row in summary.rows(net.module, given) if row.name == 'score_fr')
    assert row.sights
    return row.sights[0]


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
            sight = see(net)
            print(
                f'{name:14} {time_forward(net, args.runs):8.0f} {ms:7} {count / 1e6:7.1f}M '
                f'{millions:4}M {int(sight.field):6} {field:5} {int(sight.stride):6}/{stride} '
                f'{mean_iu:8.1f}',
                flush=True,
            )


if __name__ == '__main__':
    main()
