"""Forward through Net against forward through net.module, one after the other.

A benchmark, not a test: `python tests/bench_forward.py [repeats]` prints medians in
milliseconds and their ratio. Net may take 3% longer at most.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

if __name__ == '__main__':
    import _checkout

import torch

import caffe_port as caffe
from nets import voc_fcn8s

BAR = 1.03
# Channels of the first block, of fc6 and fc7; height and width of the image.
SIZES = {'narrow': (4, 32, (160, 160)), 'wider': (16, 256, (240, 320))}


def once(forward: Callable[[], None]) -> float:
    """Return the milliseconds that one forward takes."""
    started = time.perf_counter()
    forward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def compare(width: int, fc: int, size: tuple[int, int], repeats: int) -> tuple[float, float]:
    """Return medians for Net and for its module, run in turns so that both have the same noise."""
    net = caffe.Net(voc_fcn8s.fcn('deploy', width=width, fc=fc), caffe.TEST)
    for parameter in net.module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    net.blobs['data'].reshape(1, 3, *size)
    image = torch.randn(1, 3, *size)
    net.blobs['data'].data[...] = image

    def by_net() -> None:
        net.forward()

    @torch.no_grad()
    def by_module() -> None:
        net.module(data=image)

    times = [(once(by_net), once(by_module)) for _ in range(repeats + 2)][2:]
    net_times, module_times = zip(*times)
    return statistics.median(net_times), statistics.median(module_times)


def main() -> int:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    worst = 0.0
    for name, (width, fc, size) in SIZES.items():
        net_ms, module = compare(width, fc, size, repeats)
        worst = max(worst, net_ms / module)
        print(
            f'{name:7} Net {net_ms:8.2f} ms   module {module:8.2f} ms   '
            f'ratio {net_ms / module:.3f} (bar {BAR})'
        )
    return int(worst > BAR)


if __name__ == '__main__':
    sys.exit(main())
