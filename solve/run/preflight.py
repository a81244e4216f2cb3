"""Check own pictures and masks before training, and say which file is wrong and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_port.errors import CaffeError
from caffe_port.files.checksum import digest_file
from solve.datasets.folder import MASKS, PICTURES, Pair, map_labels, read_mask
from solve.datasets.images import VOID, check_exists, plain_name, read_rgb
from solve.run.progress import show_progress

MOST_LISTED = 10
_ORIENTATION = 0x0112
# Files that are no data: a folder may have them beside the pictures.
_IGNORED = ('.txt', '.md', '.json', '.db', '.ini', '.xml', '.csv')


@dataclass
class Preflight:
    """What reading the pictures of both splits has found.

    `pixels` has for train and val how many pixels each of 0..255 has; `images` how many
    pictures were read. `wrong` stops a training, `notes` do not.
    """

    classes: Sequence[str]
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    images: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labelled_per_image(self) -> float:
        """The mean number of labelled pixels in a picture of train."""
        return int(self.pixels['train'][:VOID].sum()) / max(self.images['train'], 1)

    def lines(self) -> list[str]:
        """Return the shares of the classes and of void, per split, as a table."""
        width = max(map(len, ('class', *self.classes)))
        rows = [f'{"class":{width}}     train       val']
        for number, name in [*enumerate(self.classes), (VOID, 'void')]:
            shares = [
                self.pixels[split][number] / max(self.pixels[split].sum(), 1)
                for split in ('train', 'val')
            ]
            rows.append(f'{name:{width}}  ' + '  '.join(f'{share:8.2%}' for share in shares))
        return rows


def find_pairs(
    images: Path, labels: Path, listed: Path | None = None
) -> tuple[list[Pair], list[str]]:
    """Return the pictures and masks of two folders, or those that a list names, and what is wrong.

    A line of the list is a stem, or a picture and a mask relative to their folders, with a
    tab or a space between them.
    """
    for folder, option in ((images, '--images'), (labels, '--labels')):
        if not folder.is_dir():
            raise CaffeError(f'{folder}: no such folder; {option} says where it is')
    wrong: list[str] = []
    pictures, masks = _by_stem(images, PICTURES, wrong), _by_stem(labels, MASKS, wrong)
    if listed is None:
        pairs = [_pair(stem, pictures, masks, images, labels, wrong) for stem in sorted(pictures)]
        for stem in sorted({*masks} - {*pictures}):
            wrong.append(f'{masks[stem]}: no picture of this stem in {images}')
        if not pictures:
            wrong.append(f'{images}: no picture in it; {", ".join(PICTURES)} expected')
        return [pair for pair in pairs if pair], wrong
    found = []
    for number, line in _lines(listed):
        parts = line.split('\t') if '\t' in line else line.split()
        stem = line if Path(line).suffix.lower() not in PICTURES else Path(line).stem
        if stem in pictures or len(parts) != 2:
            pair = _pair(stem, pictures, masks, images, labels, wrong, f'{listed}: line {number}: ')
        else:
            name = plain_name(Path(parts[0]).stem, f'{listed}: line {number}')
            pair = Pair(name, images / parts[0], labels / parts[1])
            missing = [path for path in pair[1:] if not path.is_file()]
            wrong += [f'{listed}: line {number}: {path}: no such file' for path in missing]
            pair = None if missing else pair
        if pair:
            found.append(pair)
    for name, count in Counter(pair.id for pair in found).items():
        if count > 1:
            wrong.append(f'{listed}: {name} is in it {count} times')
    if not found and not wrong:
        wrong.append(f'{listed}: empty, a stem a line expected')
    return found, wrong


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = check_exists(path).read_text(encoding='utf-8')
    except UnicodeError as error:
        raise CaffeError(f'{path}: not a list: {error}') from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _by_stem(folder: Path, suffixes: Sequence[str], wrong: list[str]) -> dict[str, Path]:
    """Return the files of a folder by stem; add two of one stem, and other kinds, to `wrong`."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.name.startswith('.') or path.is_dir() or suffix in _IGNORED:
            continue
        if suffix not in suffixes:
            jpeg = suffix in ('.jpg', '.jpeg')
            why = ': JPEG changes the numbers of a mask' if jpeg else ''
            wrong.append(f'{path}: expected {" or ".join(suffixes)}{why}')
        elif path.stem in found:
            wrong.append(f'{path}: {found[path.stem].name} has the same stem')
        else:
            found[path.stem] = path
    return found


def _pair(
    stem: str,
    pictures: Mapping[str, Path],
    masks: Mapping[str, Path],
    images: Path,
    labels: Path,
    wrong: list[str],
    where: str = '',
) -> Pair | None:
    if stem in pictures and stem in masks:
        return Pair(plain_name(stem, str(images)), pictures[stem], masks[stem])
    if stem in pictures:
        wrong.append(f'{pictures[stem]}: no mask {stem}.png in {labels}')
    else:
        wrong.append(f'{where}no picture {stem} in {images}')
    return None


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Draw `share` of the pairs for val, at least one, the same for one seed; others are train."""
    if not 0 < share < 1:
        raise CaffeError(f'--val-share {share:g}: between 0 and 1 expected')
    count = min(max(round(share * len(pairs)), 1), len(pairs) - 1)
    drawn = set(np.random.RandomState(seed).permutation(len(pairs))[: max(count, 0)].tolist())
    return (
        [pair for number, pair in enumerate(pairs) if number not in drawn],
        [pair for number, pair in enumerate(pairs) if number in drawn],
    )


def check(
    splits: Mapping[str, Sequence[Pair]],
    classes: Sequence[str],
    table: Mapping[int | str, int],
    wrong: Iterable[str] = (),
) -> Preflight:
    """Read every picture and mask of train and val and return what was found."""
    found = Preflight(classes, wrong=[*wrong])
    digests: dict[str, dict[str, Path]] = {}
    for split, pairs in splits.items():
        found.pixels[split] = np.zeros(256, np.int64)
        digests[split] = {}
        if not pairs:
            found.wrong.append(f'{split}: no pictures left for it')
        with ThreadPoolExecutor(4) as readers:
            read = readers.map(lambda pair: _read(pair, classes, table), pairs)
            for pair, (problem, counts, digest) in zip(
                pairs, show_progress(read, total=len(pairs), desc=f'reading {split}', leave=False)
            ):
                found.images[split] += 1
                found.pixels[split] += counts
                digests[split][digest] = pair.image
                if problem:
                    found.wrong.append(problem)
    _compare(found, splits, digests)
    if not found.wrong:
        _weigh(found)
    return found


def _read(
    pair: Pair, classes: Sequence[str], table: Mapping[int | str, int]
) -> tuple[str | None, np.ndarray, str]:
    """Return a problem of a pair, how often each of 0..255 is in its mask, and a digest."""
    nothing = np.zeros(256, np.int64)
    try:
        digest = digest_file(check_exists(pair.image))
        rgb = read_rgb(pair.image)
        with Image.open(pair.image) as image:
            mode, turned = image.mode, image.getexif().get(_ORIENTATION, 1)
        if mode.startswith('I'):
            return f'{pair.image}: 16-bit grey, 8 bits a channel expected', nothing, digest
        if turned != 1:
            return (
                f'{pair.image}: EXIF orientation {turned}, so a mask may be turned against it; '
                'save the picture upright',
                nothing,
                digest,
            )
        problem = _check_jpeg(pair.label)
        if problem:
            return problem, nothing, digest
        numbers = read_mask(pair.label)
        if numbers.shape != rgb.shape[:2]:
            return (
                f'{pair.label}: mask of {numbers.shape[0]} x {numbers.shape[1]} (height x '
                f'width), its picture is {rgb.shape[0]} x {rgb.shape[1]}',
                nothing,
                digest,
            )
        labels = map_labels(numbers, table, len(classes), pair.label)
        return None, np.bincount(labels.ravel(), minlength=256), digest
    except (CaffeError, OSError, SyntaxError, ValueError) as error:
        return (
            str(error) if isinstance(error, CaffeError) else f'{pair.image}: {error}',
            nothing,
            '',
        )


def _check_jpeg(path: Path) -> str | None:
    with open(check_exists(path), 'rb') as file:
        if file.read(3) == b'\xff\xd8\xff':
            return f'{path}: a JPEG, which changes the numbers of a mask; save masks as PNG'
    return None


def _compare(
    found: Preflight,
    splits: Mapping[str, Sequence[Pair]],
    digests: Mapping[str, Mapping[str, Path]],
) -> None:
    """Add the pictures that train and val share, by name or by content."""
    shared = {pair.id for pair in splits['train']} & {pair.id for pair in splits['val']}
    found.wrong += [f'{name}: in train and in val' for name in sorted(shared)]
    for digest in sorted({*digests['train']} & {*digests['val']} - {''}):
        train, val = digests['train'][digest], digests['val'][digest]
        if train != val:
            found.wrong.append(f'{train} of train and {val} of val are the same picture')


def _weigh(found: Preflight) -> None:
    """Add what the counts of the classes say: one class alone, or classes that are absent."""
    names, train, val = found.classes, found.pixels['train'], found.pixels['val']
    present = [name for number, name in enumerate(names) if train[number]]
    if len(present) < 2:
        hint = (
            f'; {100 * train[VOID] / max(train.sum(), 1):.0f} % are 255, which is void: if it '
            'means a class, as in masks of 0 and 255, say --map 0=0,255=1'
            if train[VOID]
            else ''
        )
        found.wrong.append(
            f'train: the only class in its masks is {present[0] if present else "void"}, '
            f'at least 2 of {", ".join(names)} expected{hint}'
        )
    if not val[:VOID].any():
        found.wrong.append('val: no labelled pixel in it')
    for number, name in enumerate(names):
        if not train[number]:
            found.notes.append(f'class {number} ({name}) is in no mask of train')
        elif not val[number]:
            found.notes.append(f'class {number} ({name}) is in no mask of val')
