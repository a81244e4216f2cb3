"""Label every pixel of pictures with a trained net, at their own sizes."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from caffe_port import TEST, Net, mode, parallel, prototxt
from caffe_port.blob import shape_text
from caffe_port.errors import CaffeError, WriteError, make_folder, printable
from caffe_port.files import weights
from caffe_port.zoo import load_all
from solve.datasets import nyud, voc
from solve.datasets.images import bgr_blob, existing
from solve.run import experiments, inputs, options, results, tiles
from solve.run.overlays import draw_overlay
from solve.run.pictures import save_labels, save_picture
from solve.run.progress import progress

USAGE = 'infer.py NET WEIGHTS PICTURE... [GPU] [--overlay] [--output DIR] [--force]'
DESCRIPTION = """\
Label every pixel of pictures with a trained net.

  infer.py voc_fcn8s fcn8s-heavy-pascal.caffemodel street.jpg dog.jpg --overlay
  infer.py siftflow_fcn16s siftflow.pth photos/ 'more/*.tif' list.txt
  infer.py nyud_fcn32s_color_d nyud.caffemodel color.png depth.png
"""
NOTES = """\
Writes dog_labels.png (palette PNG) and, with --overlay, dog_overlay.png; of nets of two outputs
beach_sem_labels.png and beach_geo_labels.png. Results that are there are kept: a stopped command
that is repeated goes on. Nets of two inputs take two files, folders or lists for each one: color
and depth (16-bit PNG, millimetres), or color and HHA. Transparent pixels lie over white.

exit status: 0; 1 if some pictures could not be labelled; 2 with one line `error: ...`;
130 if stopped
"""

Read = Callable[[Path], np.ndarray]
Files = tuple[Path, ...]
AHEAD, BEHIND = 2, 4  # pictures that are read before, and written after, the net's turn


def make_reader(net: str, top: str, mean_bgr: Sequence[float]) -> Read:
    """Return the function that reads a file as the input `top` of a net: 1 x C x H x W float32.

    As in the net's data layer, HHA's channels keep their order, depth becomes its logarithm,
    and all other pictures become BGR minus `mean_bgr`.
    """
    if top == 'depth':
        return lambda path: nyud.depth_blob(nyud.read_depth(path))
    if top == 'hha' or net == 'nyud_fcn32s_hha':
        return lambda path: bgr_blob(inputs.read_rgb(path)[:, :, ::-1], nyud.MEAN_HHA)
    return lambda path: bgr_blob(inputs.read_rgb(path), mean_bgr)


def infer(
    net: Net, arrays: Mapping[str, np.ndarray], budget: int | None = None
) -> dict[str, np.ndarray]:
    """Return the best class of every pixel, H x W uint8, by each output of the inputs' size.

    What does not fit into `budget` bytes is computed in tiles, with the same result.

    Raises CaffeError if the inputs do not have the net's channels and all one size, no output
    has that size, or a score is NaN or infinite.
    """
    first = next(iter(arrays.values()))
    for top, array in arrays.items():
        expected = (1, net.blobs[top].channels, *first.shape[2:])
        if array.shape != expected:
            raise CaffeError(
                f'input {top}: expected {shape_text(expected)}, found {shape_text(array.shape)}'
            )
    shapes = net.module.infer_shapes({top: array.shape for top, array in arrays.items()})
    outputs = find_outputs(net, shapes)
    return tiles.label(net.module, arrays, outputs, mode.device(), budget)


def find_outputs(net: Net, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the outputs that have a score for every pixel of the inputs.

    Raises CaffeError if there is none, or one has more classes than a PNG can hold.
    """
    size = shapes[net.inputs[0]][2:]
    found = [name for name in net.outputs if shapes[name][2:] == size]
    if not found:
        raise CaffeError(
            f'net "{net.name}": no output is of the image\'s size, '
            f'{shape_text(size)}; its outputs are {", ".join(net.outputs)}'
        )
    for name in found:
        if shapes[name][1] > 256:
            raise CaffeError(f'output {name}: {shapes[name][1]} classes, at most 256 fit in a PNG')
    return found


def describe(best: np.ndarray, names: Sequence[str]) -> str:
    """List the classes in a prediction, the largest first, with their shares of the pixels."""
    counts = np.bincount(best.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind='stable')
    return ', '.join(f'{names[i]} {100 * counts[i] / best.size:.1f} %' for i in order if counts[i])


def make_net(args: argparse.Namespace) -> Net:
    """Make the net that a command line names, with its weights.

    Raises CaffeError if it has no inputs, or a weight is NaN or infinite.
    """
    layers = weights.read(args.weights)
    net = Net(experiments.make_net(args.net, 'deploy', layers), TEST)
    if not net.inputs:
        raise CaffeError(
            f'{args.net}: no Input layer to put a picture into; take the deploy '
            "prototxt, or an experiment's name"
        )
    load_all(net, args.weights, layers)
    return net


def group_files(net: Net, arguments: Sequence[Path]) -> list[Files]:
    """Group files by picture, one for each input of the net.

    Raises CaffeError if one is missing, or two pictures have one name.
    """
    per = len(net.inputs)
    if len(arguments) % per:
        raise CaffeError(
            f'{len(arguments)} files given, {per} needed for each picture: ' + ', '.join(net.inputs)
        )
    groups: list[Files] = []
    for together in zip(*[iter(arguments)] * per):
        found = [inputs.find(argument) for argument in together]
        if len({len(files) for files in found}) > 1:
            counts = ', '.join(f'{len(files)} in {name}' for files, name in zip(found, together))
            raise CaffeError(f'{counts}: as many are needed of each: {", ".join(net.inputs)}')
        groups.extend(zip(*found))
    named: dict[str, Path] = {}
    for first, *_ in groups:
        if first.stem in named:
            raise CaffeError(
                f'two pictures named {first.stem}: one would replace the other '
                f'({named[first.stem]}, {first})'
            )
        named[first.stem] = first
    return groups


@dataclass
class Picture:
    """A picture that was read: what the net sees of it, and what its results say and are."""

    files: Files
    text: dict[str, str]
    paths: dict[tuple[str, str], Path]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # none if its results are there


@dataclass
class Labelling:
    """A net and what it does with every picture."""

    net: Net
    data: ModuleType | None
    weights: Path
    readers: dict[str, Read]
    output: Path
    outputs: list[str]
    kinds: list[str]
    text: dict[str, str]  # what is the same in all results
    force: bool
    budget: int | None

    def name_results(self, files: Files) -> dict[tuple[str, str], Path]:
        return results.name_results(self.output, files[0], self.outputs, self.kinds)

    def read(self, files: Files) -> Picture:
        """Read a picture, unless its results are there."""
        for path in files:
            existing(path)
        text = {**self.text, results.PICTURE: f'sha256 {results.digest_file(*files)}'}
        picture = Picture(files, text, self.name_results(files))
        if self.force or not all(results.holds(path, text) for path in picture.paths.values()):
            picture.arrays = {
                top: read(path) for (top, read), path in zip(self.readers.items(), files)
            }
        return picture

    def write(self, picture: Picture, best: Mapping[str, np.ndarray]) -> list[str]:
        """Write a picture's results; return a line on each of its labels."""
        lines = []
        for name, labels in best.items():
            classes = experiments.name_classes(
                self.data, self.net.blobs[name].channels, self.weights
            )
            path = picture.paths[name, 'labels']
            lines.append(f'{path}: {describe(labels, classes)}')
            # The overlay first: who finds the labels finds both.
            if 'overlay' in self.kinds:
                rgb = inputs.read_rgb(picture.files[0])
                drawn = draw_overlay(rgb, labels, classes)
                save_picture(drawn, picture.paths[name, 'overlay'], picture.text)
            save_labels(labels, path, picture.text)
        return lines

    def run(self, groups: Sequence[Files]) -> Iterator[list[str] | CaffeError | None]:
        """Label pictures; yield of each its lines, an error, or None where results are kept.

        Pictures are read ahead and written behind, and yielded when they are written.
        """
        writing: deque[Future[list[str]]] = deque()
        with ThreadPoolExecutor(AHEAD) as readers, ThreadPoolExecutor(1) as writer:
            waiting = iter(groups)
            reading: deque[tuple[Files, Future[Picture]]] = deque()
            try:
                while True:
                    while len(reading) < AHEAD and (files := next(waiting, None)):
                        reading.append((files, readers.submit(self.read, files)))
                    if not reading:
                        break
                    files, future = reading.popleft()
                    try:
                        picture = future.result()
                        best = picture.arrays and infer(self.net, picture.arrays, self.budget)
                    except WriteError:
                        raise
                    except CaffeError as error:
                        yield _name_file(error, files)
                        continue
                    if not best:
                        yield None
                        continue
                    writing.append(writer.submit(self.write, picture, best))
                    while len(writing) > BEHIND or (writing and writing[0].done()):
                        yield writing.popleft().result()
                while writing:
                    yield writing.popleft().result()
            finally:
                for _, future in reading:
                    future.cancel()


def _name_file(error: CaffeError, files: Files) -> CaffeError:
    """Return the error with the picture's file before it, unless it names a file of it."""
    text = str(error)
    return error if text.startswith(tuple(map(str, files))) else CaffeError(f'{files[0]}: {text}')


def prepare(args: argparse.Namespace) -> tuple[Labelling, list[Files]]:
    """Make what a command line asks for, and refuse what cannot be done, before any computing."""
    data = experiments.find_data(args.net)
    mean = args.mean or getattr(data, 'MEAN', voc.MEAN)
    net = make_net(args)
    outputs = find_outputs(net, net.module.shapes)
    readers = {top: make_reader(args.net, top, mean) for top in net.inputs}
    groups = group_files(net, args.pictures)
    output = make_folder(args.output)
    budget = args.max_memory
    if budget is None and (free := tiles.free_bytes(mode.device())) is not None:
        budget = free // 2
    text = {
        results.SOFTWARE: results.OURS,
        results.NET: f'{Path(args.net).name}, net and weights and mean sha256 '
        + results.digest_text(
            prototxt.to_text(net.module.param) + results.digest_file(args.weights) + repr([*mean])
        ),
    }
    kinds = ['labels', 'overlay'] if args.overlay else ['labels']
    labelling = Labelling(
        net, data, args.weights, readers, output, outputs, kinds, text, args.force, budget
    )
    results.check_writable(output)
    written = [path for files in groups for path in labelling.name_results(files).values()]
    if not args.force:
        results.refuse_foreign(written)
    read = {path.resolve() for files in groups for path in files}
    for path in written:
        if path.resolve() in read:
            raise CaffeError(f'{path}: is one of the pictures; --output names another folder')
    return labelling, groups


def label_pictures(args: argparse.Namespace) -> None:
    """Do what a command line asks: label its pictures and print what is in them.

    Each of many ranks labels its share. Exits with status 1 if pictures were left out.
    """
    labelling, groups = prepare(args)
    share = groups[parallel.solver_rank() :: parallel.solver_count()]
    lines: list[str] = []
    errors: list[str] = []
    kept, start = 0, time.monotonic()
    try:
        with progress(
            desc='labelling', unit='img', total=len(share), leave=False, disable=len(share) < 2
        ) as bar:
            for done in labelling.run(share):
                if isinstance(done, CaffeError):
                    errors.append(printable(str(done)))
                    bar.write(f'error: {errors[-1]}', file=sys.stderr)
                elif done is None:
                    kept += 1
                else:
                    lines += done
                    for line in done:
                        bar.write(line, file=sys.stdout)
                        sys.stdout.flush()
                bar.update()
    except KeyboardInterrupt:
        with suppress(ValueError):
            bar.close()
        raise KeyboardInterrupt(
            f'stopped after {bar.n} of {len(share)} pictures; the same command goes on from there'
        ) from None
    seconds = time.monotonic() - start
    report(parallel.gather((lines, errors, kept)), len(groups), seconds)


def report(
    of_ranks: Sequence[tuple[list[str], list[str], int]], count: int, seconds: float
) -> None:
    """Print what ranks other than 0 have done, and the sums; exit with status 1 on errors."""
    for lines, errors, _ in of_ranks[1:]:
        print(*lines, sep='\n', end='\n' * bool(lines))
        for error in errors:
            print(f'error: {error}', file=sys.stderr)
    failed = sum(len(errors) for _, errors, _ in of_ranks)
    kept = sum(kept for *_, kept in of_ranks)
    made = count - failed - kept
    if count > 1 or kept:
        speed = f' ({made / seconds:.3g} images/s)' if made and seconds else ''
        print(f'{made} of {count} pictures labelled{speed}', end='', file=sys.stderr)
        print(f', {kept} kept from before' if kept else '', file=sys.stderr)
    if failed:
        if count > 1:
            print(f'{failed} of {count} pictures could not be labelled', file=sys.stderr)
        sys.exit(1)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f'{text}: a finite number expected')
    return value


def _memory(text: str) -> int:
    try:
        return tiles.parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _Pictures(options.OneGpu):
    """Take pictures, and a number behind them that is no file as the GPU's."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        if len(values) > 1 and str(values[-1]).isdecimal() and not values[-1].exists():
            super().__call__(parser, namespace, int(str(values.pop())))
        namespace.pictures = values


def main() -> None:
    parser = options.make_net_parser('infer.py', DESCRIPTION, NOTES)
    parser.usage = USAGE
    add = parser.add_argument
    add(
        'pictures',
        metavar='PICTURE',
        nargs='+',
        type=Path,
        action=_Pictures,
        help="file, folder, 'pattern*', or .txt list of pictures, of any size",
    )
    add(
        '--output',
        type=Path,
        default=Path('predictions'),
        metavar='DIR',
        help='folder for the results (default: predictions)',
    )
    add('--overlay', action='store_true', help='also draw the classes over the picture')
    add('--force', action='store_true', help='compute anew; replace files of others')
    add(
        '--mean',
        type=_finite,
        nargs=3,
        metavar=('B', 'G', 'R'),
        help="to subtract (default: the experiment's; for a prototxt, VOC's)",
    )
    add(
        '--max-memory',
        type=_memory,
        metavar='SIZE',
        help='as 2G; larger pictures go in tiles (default: half of the free)',
    )
    options.run_net_command(parser, label_pictures)


if __name__ == '__main__':
    main()
