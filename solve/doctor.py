"""Show what the experiments need, how much of it is here, and what this machine offers."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from caffe_port.errors import CaffeError, ignore_closed_pipe, make_folder, printable, replacing
from caffe_port.files import caffemodel
from caffe_port.files.checksum import compute_checksum
from caffe_port.files.table import align_columns
from solve.run import inventory
from solve.run.experiments import ALL_PLACES, DATA
from solve.run.fetch import fetch
from solve.run.inventory import CLASSIFIERS, EXPERIMENTS, WEIGHTS, ImageSplit, Row, format_size
from solve.run.options import ROOT, ROOT_NAME, make_parser, name_option
from solve.run.scan import Scan, find_overlap, scan

HELP = """\
examples:
  doctor.py                      what all experiments need and what is here
  doctor.py voc_fcn8s --fetch    get the weights of FCN-8s
  doctor.py voc_fcn32s --scan --sbdd-dir SBD/dataset --voc-dir VOC2011
"""
STATUSES = """\
A download that was stopped or broke off resumes when --fetch is called again. Data sets are
not fetched; the tables name their addresses.

exit status: 0 all that the named experiments need is here, 1 something is missing, broken or
(--scan) wrong, 2 an error, as with a weight file that cannot be fetched, 130 stopped
"""


def list_rows(name: str, places: Mapping[str, Path]) -> Iterator[Row]:
    """Look at everything that an experiment or classifier needs, row by row."""
    for place, what in inventory.list_weights(name).items():
        yield inventory.weight_row(place, what, ROOT)
    if name in EXPERIMENTS:
        for split in (EXPERIMENTS[name].train, EXPERIMENTS[name].test):
            yield from inventory.data_rows(split, places)


def format_rows(title: str, rows: Sequence[Row]) -> str:
    """Format rows as a table, with a row's remark and address in the lines below it."""
    shown = [(row.state, row.what, row.size, _short(row.path)) for row in rows]
    head = ('state', 'what', 'size', 'place')
    lines = [title, *(f'  {line}' for line in align_columns([head, *shown]))]
    below = ' ' * (max(len(state) for state, *_ in (head, *shown)) + 4)
    number = 3
    for row in rows:
        extra = [row.remark] * bool(row.remark) + [f'from {row.url}'] * bool(row.url)
        lines[number:number] = [below + printable(text) for text in extra]
        number += 1 + len(extra)
    return '\n'.join(lines)


def _short(path: Path) -> str:
    """Return a path relative to the project if it is inside it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def describe_machine() -> str:
    """Describe what this machine offers: GPUs, cores, memory and disk."""
    lines = [('PyTorch', str(torch.__version__))]
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        lines.append(
            (
                f'GPU {number}',
                f'{torch.cuda.get_device_name(number)}, {format_size(total)}, '
                f'{format_size(free)} free',
            )
        )
    if not torch.cuda.is_available():
        lines.append(('GPU', 'none, so nets compute on the CPU'))
    lines.append(('CPU', f'{os.cpu_count()} cores'))
    page = os.sysconf('SC_PAGE_SIZE')
    total, free = page * os.sysconf('SC_PHYS_PAGES'), page * os.sysconf('SC_AVPHYS_PAGES')
    lines.append(('memory', f'{format_size(total)}, {format_size(_available() or free)} free'))
    for folder in dict.fromkeys((ROOT, Path.cwd())):
        disk = shutil.disk_usage(folder)
        lines.append(
            ('disk', f'{format_size(disk.total)}, {format_size(disk.free)} free, at {folder}')
        )
    return '\n'.join(['machine', *(f'  {what:9} {text}' for what, text in lines)])


def _available() -> int | None:
    """Return how many bytes of memory are free; None if the system does not say."""
    try:
        for line in Path('/proc/meminfo').read_text().splitlines():
            if line.startswith('MemAvailable:'):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def fetch_weights(names: Sequence[str]) -> list[str]:
    """Download the weights of these experiments that are not here; return what went wrong."""
    errors = []
    for place in dict.fromkeys(place for name in names for place in inventory.list_weights(name)):
        path, published = ROOT / place, WEIGHTS[place]
        if path.exists():
            continue
        try:
            twin = _twin(place)
            if twin:
                print(f'{_short(path)}: copied from {_short(twin)}', flush=True)
                make_folder(path.parent)
                with replacing(path) as temporary:
                    shutil.copyfile(twin, temporary)
                continue
            print(f'{_short(path)}: from {published.url}', flush=True)
            fetch(published.url, path, published.nbytes, published.checksum, check=caffemodel.read)
        except CaffeError as error:
            print(f'error: {error}', file=sys.stderr, flush=True)
            errors.append(str(error))
    return errors


def _twin(place: str) -> Path | None:
    """Return another place in the project that has the same published file, by checksum."""
    wanted = WEIGHTS[place].checksum or ''
    for other, published in WEIGHTS.items():
        path = ROOT / other
        if (
            other != place
            and published == WEIGHTS[place]
            and path.is_file()
            and compute_checksum(path, wanted) == wanted
        ):
            return path
    return None


class Scanner:
    """Scans splits, each once even if several experiments share it."""

    def __init__(self) -> None:
        self._scans: dict[str, Scan | CaffeError] = {}
        self.wrong: dict[str, None] = {}  # in order, each line once

    def scan(self, name: str, places: Mapping[str, Path]) -> None:
        """Scan what an experiment trains on and is scored on, and compare the two lists."""
        experiment = EXPERIMENTS[name]
        found = [self._of(split, places) for split in (experiment.train, experiment.test)]
        lists = [str(split.list_path(places)) for split in (experiment.train, experiment.test)]
        if isinstance(found[0], Scan) and isinstance(found[1], Scan):
            self.wrong |= dict.fromkeys(find_overlap(found[0].ids, found[1].ids, *lists))

    def _of(self, split: ImageSplit, places: Mapping[str, Path]) -> Scan | CaffeError:
        key = repr(split)
        if key not in self._scans:
            self._scans[key] = result = self._scan(split, places)
            if isinstance(result, Scan):
                print('\n'.join(result.lines()), flush=True)
                self.wrong |= dict.fromkeys(result.wrong)
            else:
                print(f'{split.name}: not scanned', flush=True)
                self.wrong[str(result)] = None
        return self._scans[key]

    def _scan(self, split: ImageSplit, places: Mapping[str, Path]) -> Scan | CaffeError:
        for row in inventory.data_rows(split, places):
            if row.state == 'missing':
                return CaffeError(f'{row.path}: {row.what}: missing')
        try:
            return scan(
                split.name, inventory.open_layer(split, places), str(split.list_path(places))
            )
        except CaffeError as error:
            return error


def diagnose(args: argparse.Namespace) -> int:
    """Do what the command line asks and return the exit status."""
    known = (*EXPERIMENTS, *CLASSIFIERS)
    for name in args.experiments:
        if name not in known:
            raise CaffeError(f'{name}: no such experiment; there are {", ".join(known)}')
    if args.fetch and not args.experiments:
        raise CaffeError('--fetch: name the experiments whose weights to get')
    names = args.experiments or list(EXPERIMENTS)
    errors = fetch_weights(names) if args.fetch else []
    missing, scanner = False, Scanner()
    for name in names:
        places = _places(name, args)
        rows = list(list_rows(name, places))
        missing |= any(row.state != 'there' for row in rows)
        print(f'{format_rows(name, rows)}\n  {format_verdict(name, rows)}\n', flush=True)
    if args.scan:
        for name in names:
            if name in EXPERIMENTS:
                scanner.scan(name, _places(name, args))
        print(f'\nwrong: {len(scanner.wrong) or "nothing"}')
        print(''.join(f'  {printable(line)}\n' for line in scanner.wrong), flush=True)
    print(describe_machine())
    return 2 if errors else int(missing or bool(scanner.wrong))


def _places(name: str, args: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of an experiment's data: as given, or the script's defaults."""
    data = DATA.get(name.split('_')[0])
    return {
        place: getattr(args, place) or ROOT / folder
        for place, folder in (data.PLACES if data else {}).items()
    }


def format_verdict(name: str, rows: Sequence[Row]) -> str:
    """Say in one line whether the experiment can be trained and scored with what is here."""

    def ready(counts: Callable[[Row], bool]) -> str:
        lacking = sum(row.state != 'there' for row in rows if counts(row))
        return f'{lacking} missing or broken' if lacking else 'ready'

    if name in CLASSIFIERS:
        return f'to use: {ready(lambda row: True)}'
    test = EXPERIMENTS[name].test.name
    return f'to train: {ready(lambda row: row.what != "trained weights")}; to score published ' + (
        f'weights: {ready(lambda row: row.what == "trained weights" or test in row.what)}'
        if any(row.what == 'trained weights' for row in rows)
        else 'weights: the release has none'
    )


def main() -> None:
    parser = make_parser(
        'doctor.py', HELP, STATUSES, 'doctor.py [EXPERIMENT...] [--fetch] [--scan] [folders]'
    )
    add = parser.add_argument
    add(
        'experiments',
        nargs='*',
        metavar='EXPERIMENT',
        help='as voc_fcn8s, or a classifier: vgg16, caffenet, googlenet (default: all experiments)',
    )
    add('--fetch', action='store_true', help='download the weights that are missing')
    add('--scan', action='store_true', help='open every image and label and list what is wrong')
    for place in ALL_PLACES:
        add(name_option(place), type=Path, metavar='DIR', help=_default(place))
    args = parser.parse_args()
    try:
        with ignore_closed_pipe():
            sys.exit(diagnose(args))
    except CaffeError as error:
        parser.exit(2, f'error: {printable(str(error))}\n')
    except KeyboardInterrupt:
        parser.exit(130, 'stopped; the same command goes on with a download\n')


def _default(place: str) -> str:
    folders = dict.fromkeys(data.PLACES[place] for data in DATA.values() if place in data.PLACES)
    return f'default: {" or ".join(folders)} in {ROOT_NAME}'


if __name__ == '__main__':
    main()
