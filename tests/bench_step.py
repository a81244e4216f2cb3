"""Where a training step's time goes: the parts of FCN-32s on drawn images, as fractions.

python tests/bench_step.py [GPU] [--width 64] [--fc 4096] [--iterations 6]
"""

if __name__ == '__main__':
    import _checkout

import argparse
import functools
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import caffe_port as caffe
import surgery
from caffe_port.proto.caffe_pb2 import SolverParameter
from nets import voc_fcn32s
from solve.samples import trees
from solve.voc_fcn32s import SOLVER


class Clock:
    """Adds up the time within methods, each time less that of clocked methods they call."""

    def __init__(self, wait):
        self.spent: Counter[str] = Counter()
        self._wait, self._inner = wait, [0.0]

    def part(self, name: str, owner: Any, method: str) -> None:
        """Clock owner.method under `name` from now on."""
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def clocked(*args, **kwargs):
            self._wait()
            start = time.perf_counter()
            self._inner.append(0.0)
            result = plain(*args, **kwargs)
            self._wait()
            whole = time.perf_counter() - start
            self.spent[name] += whole - self._inner.pop()
            self._inner[-1] += whole
            return result

        setattr(owner, method, clocked)


def solver_on_drawn_images(folder: str, width: int, fc: int) -> caffe.SGDSolver:
    """The official solver of FCN-32s over a few images of VOC's size, weights drawn."""
    places = trees.draw_dataset('voc', Path(folder), train=6, val=2, size=(375, 500))
    param = SolverParameter(**{**SOLVER, 'base_lr': 1e-14})  # drawn weights: no step may blow up
    for field in ('train_net', 'test_net', 'test_iter'):
        param.ClearField(field)
    param.train_net_param.CopyFrom(voc_fcn32s.fcn('train', **places, width=width, fc=fc))
    solver = caffe.SGDSolver(param)
    generator = torch.Generator().manual_seed(1)
    for name, (weight, *_) in solver.net.params.items():
        if 'up' not in name:
            fan_in = weight.parameter[0].numel()
            weight.parameter.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
    surgery.interp(solver.net, ['upscore'])
    return solver


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('gpu', nargs='?', type=int)
    parser.add_argument('--width', type=int, default=64)
    parser.add_argument('--fc', type=int, default=4096)
    parser.add_argument('--iterations', type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        solver = solver_on_drawn_images(f'{folder}/data', args.width, args.fc)
        if args.gpu is not None:
            caffe.set_device(args.gpu)
            caffe.set_mode_gpu()
        solver.step(2)  # history is made, kernels are chosen, images are in the disk's cache
        clock = Clock(torch.cuda.synchronize if args.gpu is not None else lambda: None)
        layer = solver.net.module.nodes[0].op.layer
        for name, owner, method in (
            ('load', layer, 'reshape'),
            ('load', layer, 'forward'),
            ('forward', solver.net, 'forward_range'),
            ('backward', solver.net, 'backward_range'),
            ('update', solver, 'apply_update'),
            ('other', solver, 'step'),
        ):
            clock.part(name, owner, method)
        solver.step(args.iterations)
    total = sum(clock.spent.values())
    print(f'{total / args.iterations:.3f} s per iteration, of which')
    for name in ('load', 'forward', 'backward', 'update', 'other'):
        print(f'{name:9} {clock.spent[name] / total:7.2%}')


if __name__ == '__main__':
    main()
