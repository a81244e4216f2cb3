"""Label the pixels of pictures: read them ahead, run the net, write the results behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from caffe_port import Net, mode
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError, WriteError
from caffe_port.files.checksum import digest_file
from solve.datasets import nyud
from solve.datasets.images import bgr_blob, check_exists
from solve.run import experiments, inputs, results, tiles
from solve.run.dense import Dense
from solve.run.overlays import draw_overlay, format_share
from solve.run.pictures import save_labels, save_picture

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
    first = next(iter(arrays.values()))
    for top, array in arrays.items():
        expected = (1, net.blobs[top].channels, *first.shape[2:])
        if array.shape != expected:
            raise CaffeError(
                f'input {top}: expected {format_shape(expected)}, found {format_shape(array.shape)}'
            )
    if dense:
        return dense.label(arrays, mode.device(), budget)
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
    """A picture that was read: its files, the text and paths of its results, the net's inputs."""

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
    readers: dict[str, ReadPicture]
    output: Path
    outputs: list[str]
    kinds: list[str]
    text: dict[str, str]  # what is the same in all results
    force: bool
    budget: int | None
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
            picture.arrays = {
                top: read(path) for (top, read), path in zip(self.readers.items(), files)
            }
        return picture

    def write(self, picture: LoadedPicture, best: Mapping[str, np.ndarray]) -> list[str]:
        """Write a picture's results; return a line on each of its labels."""
        lines = []
        for name, labels in best.items():
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

    def run(self, groups: Sequence[Files]) -> Iterator[list[str] | CaffeError | None]:
        """Label pictures; yield for each its lines, an error, or None if its results were there.

        Pictures are read ahead and written behind, and yielded when they are written.
        """
        writing: deque[Future[list[str]]] = deque()
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
                        best = picture.arrays and infer(
                            self.net, picture.arrays, self.budget, self.dense
                        )
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
