"""FCN-8s through every engine at hand, and a training step of FCN-32s, on the same numbers.

python tests/bench_engines.py [--sizes 256x256 500x334 1024x1024] [--repeats 7] [--threads 2]

A benchmark, not a test. Each engine has a process of its own, which loads the same weights
and computes the same picture; they take turns, so that all meet the same noise. Printed
are medians, their ratio to ours, the peak memory of each process, the largest difference of
the scores from plain PyTorch's, relative to the largest score, and the share of the machine's
rate in matrix products that the net's arithmetic, counted as direct, comes to. Engines
that are not installed are left out: OpenCV (opencv-python-headless below 5), ONNX Runtime,
OpenVINO and pycaffe. (float16 is left out: on CPUs without instructions for it, it takes a
hundred times as long.) `--forward` holds Net.forward against net.module instead.
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout  # noqa: F401

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Run = Callable[[], np.ndarray]
# What the face may cost over the module.
FACE_BAR = 1.03
NET, WEIGHTS, ONNX, PICTURE = 'deploy.prototxt', 'fcn8s.caffemodel', 'fcn8s.onnx', 'picture.npy'


# The files that all engines read.


def prepare(folder: Path, size: tuple[int, int], with_onnx: bool) -> None:
    """Write prototxt, drawn weights, picture and, if asked for, the export to ONNX."""
    import torch

    import caffe_port as caffe
    from caffe_port import prototxt
    from nets import voc_fcn8s

    param = voc_fcn8s.fcn('deploy')
    param.layer[0].input_param.shape[0].dim[:] = [1, 3, *size]
    prototxt.write(param, folder / NET)
    net = caffe.Net(param, caffe.TEST)
    draw_weights(net)
    if not (folder / WEIGHTS).exists():
        net.save(folder / WEIGHTS)
    picture = np.random.RandomState(2).randn(1, 3, *size).astype(np.float32) * 50
    np.save(folder / PICTURE, picture)
    if with_onnx:
        caffe.set_plan(False)

        class Score(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net.module

            def forward(self, data: torch.Tensor) -> torch.Tensor:
                return self.net(data=data)['score']

        names = dict(input_names=['data'], output_names=['score'])
        data = torch.from_numpy(picture)
        torch.onnx.export(Score(), (data,), str(folder / ONNX), dynamo=False, **names)


def draw_weights(net) -> None:
    """Draw He weights and small biases; upsampling is bilinear."""
    import torch

    import surgery

    generator = torch.Generator().manual_seed(1)
    for name, (weight, *biases) in net.params.items():
        if 'up' not in name:
            fan_in = weight.parameter[0].numel()
            weight.parameter.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            for bias in biases:
                bias.parameter.data.normal_(0, 0.1, generator=generator)
    surgery.interp(net, [name for name in net.params if 'up' in name])


# The engines: each loads the files and returns a function that computes the scores.


def ours(folder: Path, plan: bool, dtype: str = 'float32') -> Run:
    import torch

    import caffe_port as caffe

    caffe.set_plan(plan)
    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    picture = torch.from_numpy(np.load(folder / PICTURE))
    module = net.module.to(getattr(torch, dtype))

    @torch.no_grad()
    def run() -> np.ndarray:
        return module(data=picture.to(getattr(torch, dtype)))['score'].float().numpy()

    return run


def by_face(folder: Path) -> Run:
    import caffe_port as caffe

    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    net.blobs['data'].data[...] = np.load(folder / PICTURE)
    return lambda: net.forward()['score']


def plain(folder: Path) -> Run:
    import torch

    module, picture = plain_module(folder, 8), torch.from_numpy(np.load(folder / PICTURE))

    @torch.no_grad()
    def run() -> np.ndarray:
        return module(picture).numpy()

    return run


def plain_module(folder: Path, stride: int):
    """Return FCN-8s or FCN-32s as PyTorch's users write it: modules one after the other."""
    import torch
    from torch import nn

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            channels = 3
            for block, (convs, width) in enumerate(
                zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512)), 1
            ):
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
            if stride == 32:
                return self.upscore(h)[:, :, 19 : 19 + height, 19 : 19 + width].contiguous()
            h = self.upscore2(h)
            h = h + self.score_pool4(pools[3])[:, :, 5 : 5 + h.shape[2], 5 : 5 + h.shape[3]]
            h = self.upscore_pool4(h)
            h = h + self.score_pool3(pools[2])[:, :, 9 : 9 + h.shape[2], 9 : 9 + h.shape[3]]
            return self.upscore8(h)[:, :, 31 : 31 + height, 31 : 31 + width].contiguous()

    module = Plain()
    if (folder / WEIGHTS).exists():
        from caffe_port.files import caffemodel

        state = module.state_dict()
        for layer in caffemodel.read(folder / WEIGHTS):
            for kind, blob in zip(('weight', 'bias'), layer.blobs):
                state[f'{layer.name}.{kind}'].copy_(torch.from_numpy(blob.array()))
    return module.eval()


def opencv(folder: Path) -> Run:
    import cv2

    cv2.setNumThreads(int(os.environ['OMP_NUM_THREADS']))
    net = cv2.dnn.readNetFromCaffe(str(folder / NET), str(folder / WEIGHTS))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    picture = np.load(folder / PICTURE)

    def run() -> np.ndarray:
        net.setInput(picture, 'data')
        return net.forward('score')

    return run


def onnxruntime(folder: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ['OMP_NUM_THREADS'])
    session = onnxruntime.InferenceSession(
        str(folder / ONNX), options, providers=['CPUExecutionProvider']
    )
    picture = np.load(folder / PICTURE)
    return lambda: session.run(None, {'data': picture})[0]


def openvino(folder: Path) -> Run:
    import openvino

    core = openvino.Core()
    hints = {
        'INFERENCE_NUM_THREADS': int(os.environ['OMP_NUM_THREADS']),
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    model = core.compile_model(core.read_model(str(folder / ONNX)), 'CPU', hints)
    picture = np.load(folder / PICTURE)
    return lambda: next(iter(model([picture]).values()))


def pycaffe(folder: Path) -> Run:
    import caffe

    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    net.blobs['data'].data[...] = np.load(folder / PICTURE)
    return lambda: net.forward()['score']


# A training step of FCN-32s; what it returns is of no matter.


def train_ours(folder: Path, plan: bool) -> Run:
    import caffe_port as caffe
    from caffe_port.proto.caffe_pb2 import SolverParameter
    from nets import voc_fcn32s

    caffe.set_plan(plan)
    picture = np.load(folder / PICTURE)
    net = voc_fcn32s.fcn('train')
    data = net.layer[0]
    data.type = 'Input'
    data.ClearField('python_param')
    for channels in (3, 1):
        data.input_param.shape.add().dim.extend((1, channels, *picture.shape[2:]))
    # Drawn weights: the rate is so small that no step blows up.
    param = SolverParameter(base_lr=1e-14, momentum=0.99, weight_decay=0.0005, lr_policy='fixed')
    param.net_param.CopyFrom(net)
    solver = caffe.SGDSolver(param)
    draw_weights(solver.net)
    solver.net.blobs['data'].data[...] = picture
    solver.net.blobs['label'].data[...] = labels(picture)

    def run() -> np.ndarray:
        solver.step(1)
        return np.zeros(1)

    return run


def labels(picture: np.ndarray) -> np.ndarray:
    return np.random.RandomState(3).randint(0, 21, (1, 1, *picture.shape[2:]))


def train_plain(folder: Path) -> Run:
    import torch
    import torch.nn.functional as F

    picture = np.load(folder / PICTURE)
    module = plain_module(Path('nowhere'), 32).train()
    module.upscore.weight.requires_grad_(False)
    split = (
        [p for p in module.parameters() if p.dim() > 1],
        [p for p in module.parameters() if p.dim() == 1],
    )
    groups = [
        dict(params=split[0], lr=1e-14, weight_decay=0.0005),
        dict(params=split[1], lr=2e-14, weight_decay=0),
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.99)
    x, y = torch.from_numpy(picture), torch.from_numpy(labels(picture)[0]).long()

    def run() -> np.ndarray:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y, reduction='sum').backward()
        optimizer.step()
        return np.zeros(1)

    return run


def rate(folder: Path) -> Run:
    """Multiply square matrices: 2 * 2048**3 operations."""
    import torch

    a, b = torch.randn(2, 2048, 2048)
    return lambda: (a @ b)[:1].numpy()


ENGINES: dict[str, tuple[str | None, Callable[[Path], Run]]] = {
    'ours': (None, lambda folder: ours(folder, True)),
    'ours, no plan': (None, lambda folder: ours(folder, False)),
    'ours, bf16': (None, lambda folder: ours(folder, True, 'bfloat16')),
    'PyTorch module': (None, plain),
    'OpenCV dnn': ('cv2', opencv),
    'ONNX Runtime': ('onnxruntime', onnxruntime),
    'OpenVINO': ('openvino', openvino),
    'pycaffe': ('caffe', pycaffe),
}
TRAINERS: dict[str, tuple[str | None, Callable[[Path], Run]]] = {
    'ours': (None, lambda folder: train_ours(folder, True)),
    'ours, no plan': (None, lambda folder: train_ours(folder, False)),
    'PyTorch module': (None, train_plain),
}
FACES: dict[str, tuple[str | None, Callable[[Path], Run]]] = {
    'net.module': (None, lambda folder: ours(folder, True)),
    'Net.forward': (None, by_face),
}
ALL = {'infer': ENGINES, 'train': TRAINERS, 'face': FACES, 'rate': {'rate': (None, rate)}}


# One process for each.


class Worker:
    """A process with one engine, which runs it when told to."""

    def __init__(self, kind: str, name: str, folder: Path, threads: int):
        environment = {
            **os.environ,
            'OMP_NUM_THREADS': str(threads),
            'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, __file__, '--worker', kind, name, str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.ask('')

    def ask(self, what: str) -> dict:
        """Send a word, unless it is empty, and return the answer."""
        if what:
            self.process.stdin.write(what + '\n')
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        raise RuntimeError(f'{self.process.args}: ended with {self.process.wait()}')

    def end(self) -> float:
        """End the process and return its peak memory in gigabytes."""
        peak = self.ask('end')['peak']
        self.process.wait()
        return peak


def work(kind: str, name: str, folder: Path) -> None:
    """Be a worker: answer each line of standard input with one of JSON."""
    run = ALL[kind][name][1](folder)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        if line.strip() == 'end':
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(json.dumps({'peak': peak}), flush=True)
            return
        started, busy = time.perf_counter(), time.process_time()
        scores = run()
        answer = {'seconds': time.perf_counter() - started, 'busy': time.process_time() - busy}
        np.save(folder / f'{name}.npy', scores)
        print(json.dumps(answer), flush=True)


def compare(
    kind: str, folder: Path, repeats: int, threads: int, only: list[str]
) -> Iterator[tuple[str, list[dict], float]]:
    """Run the engines in turn; yield each one's name, times and peak memory."""
    names = [
        name
        for name, (needs, _) in ALL[kind].items()
        if (needs is None or importlib.util.find_spec(needs)) and (not only or name in only)
    ]
    workers = {name: Worker(kind, name, folder, threads) for name in names}
    times: dict[str, list[dict]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, worker in workers.items():
            answer = worker.ask('run')
            if turn:  # the first run chooses kernels and takes memory
                times[name].append(answer)
    for name, worker in workers.items():
        yield name, times[name], worker.end()


def table(
    kind: str, folder: Path, options: argparse.Namespace, work_done: float, top: float
) -> Iterator[str]:
    """Yield a line for each engine; ratios are medians of the ratios turn by turn."""
    found = list(compare(kind, folder, options.repeats, options.threads, options.only))
    own = found[0][1]
    reference = folder / 'PyTorch module.npy'
    for name, times, peak in found:
        median = statistics.median(each['seconds'] for each in times)
        ratio, busy = (
            statistics.median(mine[what] / other[what] for mine, other in zip(own, times))
            for what in ('seconds', 'busy')
        )
        line = f'{name:15} {median:8.3f} s  ours / it {ratio:5.2f}, in CPU time {busy:5.2f}'
        line += f'  {peak:5.2f} GB'
        if work_done:
            line += f'  {2 * work_done / median / top:6.1%} of the matrix rate'
        if kind == 'infer' and reference.exists():
            expected, scores = np.load(reference), np.load(folder / f'{name}.npy')
            apart = np.abs(scores - expected).max() / np.abs(expected).max()
            line += f'  scores {apart:.1e} apart'
            same = (scores.argmax(1) == expected.argmax(1)).mean()
            line += f', {same:.3%} of the classes alike'
        yield line


def arithmetic(size: tuple[int, int]) -> float:
    """Return the multiply-adds of FCN-8s, layer by layer."""
    import caffe_port as caffe
    from caffe_port.plan.layout import Layout
    from nets import voc_fcn8s

    net = caffe.Net(voc_fcn8s.fcn('deploy'), caffe.TEST)
    return Layout(net.module, {'data': (1, 3, *size)}, net.outputs).work


def isolated(function: Callable, *args) -> None:
    """Call a function in a process of its own, so that its memory is not ours."""
    # Not by fork: the child would wait for ever for OpenMP's threads, which it does not inherit.
    child = multiprocessing.get_context('spawn').Process(target=function, args=args)
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(f'{function.__name__} failed')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', nargs='+', default=['256x256', '500x334', '1024x1024'])
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--only', nargs='+', default=[], metavar='ENGINE')
    parser.add_argument('--no-train', action='store_true', help='leave out the training step')
    parser.add_argument('--forward', action='store_true', help='Net.forward against net.module')
    parser.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, name, folder = options.worker
        work(kind, name, Path(folder))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.forward:
            return face(folder, options)
        ((_, times, _),) = compare('rate', folder, options.repeats, options.threads, [])
        top = 2 * 2048**3 / statistics.median(each['seconds'] for each in times)
        print(
            f'{platform.processor() or platform.machine()}, {options.threads} threads, '
            f'{top / 1e9:.0f} GFLOP/s in products of 2048 x 2048'
        )
        with_onnx = any(map(importlib.util.find_spec, ('onnxruntime', 'openvino')))
        for text in options.sizes:
            size = int(text.split('x')[0]), int(text.split('x')[1])
            isolated(prepare, folder, size, with_onnx)
            print(f'\nFCN-8s, {text}')
            for line in table('infer', folder, options, arithmetic(size), top):
                print(line, flush=True)
        if not options.no_train:
            isolated(prepare, folder, (334, 500), False)
            print('\nA training step of FCN-32s, 334x500')
            for line in table('train', folder, options, 0, top):
                print(line, flush=True)
    return 0


def face(folder: Path, options: argparse.Namespace) -> int:
    """Print what Net.forward costs over net.module; the exit status says whether it is much."""
    isolated(prepare, folder, (256, 256), False)
    found = {
        name: [each['seconds'] for each in times]
        for name, times, _ in compare('face', folder, options.repeats, options.threads, [])
    }
    ratio = statistics.median(
        one / other for one, other in zip(found['Net.forward'], found['net.module'])
    )
    print(f'Net.forward / net.module {ratio:.3f} (bar {FACE_BAR})')
    return int(ratio > FACE_BAR)


if __name__ == '__main__':
    sys.exit(main())
