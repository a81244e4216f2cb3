"""Where a training step's time goes: the parts of a net on drawn images, as fractions.

python tests/bench_step.py [GPU] [--net voc_fcn32s] [--width 64] [--fc 4096] [--iterations 6]

--net caffenet reads 32 images at a time from an LMDB, cropped and mirrored. Its steps take turns
with those of the same net on arrays in memory: what reading costs is the difference, beside
which stands that of two runs of steps in memory, the noise.
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

import numpy as np
import torch

import caffe_port as caffe
import surgery
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.tools.new_database import create_database
from nets import caffenet, voc_fcn32s
from nets.atoms import dropout
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


def solver_on_a_database(
    folder: str, width: int, fc: int, in_memory: bool = False
) -> caffe.SGDSolver:
    """A solver of CaffeNet over an LMDB of drawn images, 256 x 256, in batches of 32."""
    random = np.random.RandomState(0)
    n = caffe.NetSpec()
    if in_memory:
        shape = dict(batch_size=32, channels=3, height=227, width=227)
        n.data, n.label = L.MemoryData(**shape, ntop=2)
    else:
        Path(folder).mkdir()
        with create_database('lmdb', f'{folder}/lmdb') as database:
            for i in range(256):
                image = random.randint(0, 256, (3, 256, 256)).astype(np.uint8)
                datum = caffe.io.array_to_datum(image, i % 1000)
                database.put(b'%05d' % i, datum.SerializeToString())
        n.data, n.label = L.Data(
            source=f'{folder}/lmdb',
            backend=P.Data.LMDB,
            batch_size=32,
            transform_param=dict(mirror=True, crop_size=227, mean_value=[104, 117, 123]),
            ntop=2,
        )
    learnt = functools.partial(caffenet.conv_relu, weight_filler=dict(type='xavier'))
    n.conv1, n.relu1 = learnt(n.data, width, ks=11, stride=4)
    top = caffenet.trunk(n, n.relu1, width, learnt)
    for i in (6, 7):
        filler = dict(type='gaussian', std=0.005)
        top = n[f'fc{i}'] = L.InnerProduct(top, num_output=fc, weight_filler=filler)
        top = n[f'relu{i}'] = L.ReLU(top, in_place=True)
        top = n[f'drop{i}'] = dropout(top)
    n.fc8 = L.InnerProduct(top, num_output=1000, weight_filler=dict(type='gaussian', std=0.01))
    n.loss = L.SoftmaxWithLoss(n.fc8, n.label)
    param = SolverParameter(base_lr=1e-6, lr_policy='fixed', momentum=0.9, weight_decay=0.0005)
    param.train_net_param.CopyFrom(n.to_proto())
    solver = caffe.SGDSolver(param)
    if in_memory:
        images = random.randint(-128, 128, (32, 3, 227, 227)).astype(np.float32)
        solver.net.set_input_arrays(images, np.arange(32, dtype=np.float32))
    return solver


def compare_with_memory(solver: caffe.SGDSolver, width: int, fc: int, rounds: int) -> None:
    """Print what reading adds to a step, and how far two steps in memory are apart."""
    other = solver_on_a_database('', width, fc, in_memory=True)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    solver.step(2)
    other.step(2)
    ratios: dict[str, list[float]] = {'reading adds': [], 'noise': []}
    for _ in range(rounds):
        spent = []
        for one in (other, solver, other):
            wait()
            start = time.perf_counter()
            one.step(1)
            wait()
            spent.append(time.perf_counter() - start)
        first, read, second = spent
        ratios['reading adds'].append(2 * read / (first + second) - 1)
        ratios['noise'].append(second / first - 1)
    for name, found in ratios.items():
        low, middle, high = np.quantile(found, (0.25, 0.5, 0.75))
        print(f'{name}: {middle:+.2%} of a step (quartiles {low:+.2%} to {high:+.2%})')


SOLVERS = {'voc_fcn32s': (solver_on_drawn_images, 64), 'caffenet': (solver_on_a_database, 96)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('gpu', nargs='?', type=int)
    parser.add_argument('--net', choices=SOLVERS, default='voc_fcn32s')
    parser.add_argument('--width', type=int, help="the first layer's (default: the net's own)")
    parser.add_argument('--fc', type=int, default=4096)
    parser.add_argument('--iterations', type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make, width = SOLVERS[args.net]
        solver = make(f'{folder}/data', args.width or width, args.fc)
        if args.gpu is not None:
            caffe.set_device(args.gpu)
            caffe.set_mode_gpu()
        solver.step(2)  # history is made, kernels are chosen, images are in the disk's cache
        clock = Clock(torch.cuda.synchronize if args.gpu is not None else lambda: None)
        op = solver.net.module.nodes[0].op
        layer = getattr(op, 'layer', op)  # a Python layer, or the Data layer itself
        for name, owner, method in (
            *((('load', layer, 'reshape'),) if layer is not op else ()),
            ('load', layer, 'forward'),
            ('forward', solver.net, 'forward_range'),
            ('backward', solver.net, 'backward_range'),
            ('update', solver, 'apply_update'),
            ('other', solver, 'step'),
        ):
            clock.part(name, owner, method)
        solver.step(args.iterations)
        if args.net == 'caffenet':
            compare_with_memory(solver, args.width or width, args.fc, args.iterations)
    total = sum(clock.spent.values())
    print(f'{total / args.iterations:.3f} s per iteration, of which')
    for name in ('load', 'forward', 'backward', 'update', 'other'):
        print(f'{name:9} {clock.spent[name] / total:7.2%}')


if __name__ == '__main__':
    main()
