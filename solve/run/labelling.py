"""Label the pixels of pictures: read them ahead, run the net, write the results behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor

from caffe_port import Net, mode
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError, WriteError
from caffe_port.files.checksum import digest_file
from solve.datasets import nyud
from solve.datasets.images import bgr_blob, check_exists
from solve.run import experiments, inputs, precision, results, tiles
from solve.run.dense import Dense
from solve.run.overlays import draw_overlay, format_share
from solve.run.pictures import save_labels, save_picture
from solve.run.transfer import Upload

ReadPicture = Callable[[Path], np.ndarray]
Files = tuple[Path, ...]
AHEAD, BEHIND = 2, 4  # pictures that are read before, and written after, the net's turn


def make_reader(net: str, top: str, mean_bgr: Sequence[float]) -> ReadPicture:
    """Return the function that reads a file as the input `top` of a net: 1 x C x H x W float32.

    As in the net's data layer, HHA's channels keep their order, depth becomes its logarithm,
    and all other pictures become BGR minus `mean_bgr`.
    """
    if top == 'depth':
        return lambda path: nyud.depth_blob(nyud.read_depth(path))
    if top == 'hha' or net == 'nyud_fcn32s_hha':
        return lambda path: bgr_blob(inputs.read_upright(path)[:, :, ::-1], nyud.MEAN_HHA)
    return lambda path: bgr_blob(inputs.read_upright(path), mean_bgr)


def infer(
    net: Net,
    arrays: Mapping[str, np.ndarray],
    budget: int | None = None,
    dense: Dense | None = None,
) -> dict[str, np.ndarray]:
    """Return the best class of every pixel, H x W uint8, by each output of the inputs' size.

    What does not fit into `budget` bytes is computed in tiles, with the same result. `dense`
    scores take the place of the net's own; they are not computed in tiles.

    Raises CaffeError if the inputs do not have the net's channels and all one size, no output
    has that size, or a score is NaN or infinite.
    """
    return begin(net, Upload(arrays, mode.device()).tensors(), budget, dense).fetch()


def begin(
    net: Net, inputs: Mapping[str, Tensor], budget: int | None, dense: Dense | None = None
) -> tiles.Labels:
    """Begin what `infer` does, with inputs on the net's device."""
    outputs = _check(net, inputs)
    if dense:
        return dense.label(inputs, budget)
    return tiles.label(net.module, inputs, outputs, budget)


def _check(net: Net, inputs: Mapping[str, Tensor]) -> list[str]:
    """Return the outputs of the inputs' size; raise CaffeError if there is none."""
    first = next(iter(inputs.values()))
    for top, tensor in inputs.items():
        expected = (1, net.blobs[top].channels, *first.shape[2:])
        if tensor.shape != expected:
            raise CaffeError(
                f'input {top}: expected {format_shape(expected)}, '
                f'found {format_shape(tensor.shape)}'
            )
    shapes = net.module.infer_shapes({top: tuple(each.shape) for top, each in inputs.items()})
    return find_outputs(net, shapes)


def find_outputs(net: Net, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the outputs that have a score for every pixel of the inputs.

    Raises CaffeError if there is none, or one has more classes than a PNG can hold.
    """
    size = shapes[net.inputs[0]][2:]
    found = [name for name in net.outputs if shapes[name][2:] == size]
    if not found:
        raise CaffeError(
            f'net "{net.name}": no output is of the image\'s size, '
            f'{format_shape(size)}; its outputs are {", ".join(net.outputs)}'
        )
    for name in found:
        if shapes[name][1] > 256:
            raise CaffeError(f'output {name}: {shapes[name][1]} classes, at most 256 fit in a PNG')
    return found


def describe(best: np.ndarray, names: Sequence[str]) -> str:
    """List the classes in a prediction, the largest first, with their shares of the pixels."""
    counts = np.bincount(best.ravel(), minlength=len(names))
    order = np.argsort(-counts, kind='stable')
    shares = ((names[i], counts[i] / best.size) for i in order if counts[i])
    return ', '.join(f'{name} {format_share(share)}' for name, share in shares)


@dataclass
class LoadedPicture:
    """A picture that was read: its files, the text and paths of its results, the net's inputs.

    There are no inputs if its results are there.
    """

    files: Files
    text: dict[str, str]
    paths: dict[tuple[str, str], Path]
    inputs: Upload | None = None


@dataclass
class Labelling:
    """A net and what it does with every picture."""

    net: Net
    data: ModuleType | None
    weights: Path
    readers: dict[str, ReadPicture]
    output: Path
    outputs: list[str]
    kinds: list[str]
    text: dict[str, str]  # what is the same in all results
    force: bool
    budget: int | None
    precision: str = mode.FP32
    dense: Dense | None = None

    def name_results(self, files: Files) -> dict[tuple[str, str], Path]:
        return results.name_results(self.output, files[0], self.outputs, self.kinds)

    def read(self, files: Files) -> LoadedPicture:
        """Read a picture, unless its results are there."""
        for path in files:
            check_exists(path)
        text = {**self.text, results.PICTURE: f'sha256 {digest_file(*files)}'}
        picture = LoadedPicture(files, text, self.name_results(files))
        if self.force or not all(results.holds(path, text) for path in picture.paths.values()):
            arrays = {top: read(path) for (top, read), path in zip(self.readers.items(), files)}
            picture.inputs = Upload(arrays, mode.device())
        return picture

    def write(self, picture: LoadedPicture, found: tiles.Labels) -> list[str]:
        """Wait for a picture's labels and write its results; return a line on each."""
        lines = []
        for name, labels in found.fetch().items():
            classes = experiments.name_classes(
                self.data, self.net.blobs[name].channels, self.weights
            )
            path = picture.paths[name, 'labels']
            lines.append(f'{path}: {describe(labels, classes)}')
            # Write the overlay first, so that labels on disk imply an overlay.
            if 'overlay' in self.kinds:
                rgb = inputs.read_upright(picture.files[0])
                drawn = draw_overlay(rgb, labels, classes)
                save_picture(drawn, picture.paths[name, 'overlay'], picture.text)
            save_labels(labels, path, picture.text)
        return lines

    def run(
        self, groups: Sequence[Files], say: Callable[[str], None] = print
    ) -> Iterator[list[str] | CaffeError | None]:
        """Label pictures; yield for each its lines, an error, or None if its results were there.

        Pictures are read ahead and written behind, and yielded when they are written. What
        another precision changes is told to `say`.
        """
        writing: deque[tuple[Files, Future[list[str]]]] = deque()
        with ThreadPoolExecutor(AHEAD) as readers, ThreadPoolExecutor(1) as writer:
            waiting = iter(groups)
            reading: deque[tuple[Files, Future[LoadedPicture]]] = deque()
            try:
                while True:
                    while len(reading) < AHEAD and (files := next(waiting, None)):
                        reading.append((files, readers.submit(self.read, files)))
                    if not reading:
                        break
                    files, future = reading.popleft()
                    try:
                        picture = future.result()
                        found = picture.inputs and self._begin(picture.inputs.tensors(), say)
                    except WriteError:
                        raise
                    except CaffeError as error:
                        yield _name_file(error, files)
                        continue
                    if not found:
                        yield None
                        continue
                    writing.append((files, writer.submit(self.write, picture, found)))
                    while len(writing) > BEHIND or (writing and writing[0][1].done()):
                        yield _result(*writing.popleft())
                while writing:
                    yield _result(*writing.popleft())
            finally:
                for _, future in reading:
                    future.cancel()

    def _begin(self, inputs: Mapping[str, Tensor], say: Callable[[str], None]) -> tiles.Labels:
        """Begin to label a picture; the first one also tells what another precision changes."""
        if mode.precision() != self.precision:
            outputs = _check(self.net, inputs)
            tile = next(tiles.tiles_of(self.net.module, inputs, outputs, self.budget))
            run = partial(tiles.compute, self.net.module, tile.inputs, outputs)
            say(precision.change(self.net, self.precision, run))
        return begin(self.net, inputs, self.budget, self.dense)


def _result(files: Files, future: Future[list[str]]) -> list[str] | CaffeError:
    try:
        return future.result()
    except WriteError:
        raise
    except CaffeError as error:
        return _name_file(error, files)


def _name_file(error: CaffeError, files: Files) -> CaffeError:
    """Return the error with the picture's file before it, unless it names a file of it."""
    text = str(error)
    return error if text.startswith(tuple(map(str, files))) else CaffeError(f'{files[0]}: {text}')
