"""parse_log: turn a training log into two tables, of the train and of the test net.

Source of columns and rules: Caffe's tools/extra/parse_log.py and extract_seconds.py.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from caffe_port.errors import CaffeError, replacing
from caffe_port.tools import glog_command

Row = dict[str, float]

_ITERATION = re.compile(r'Iteration (\d+)')
_RATE = re.compile(r'lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)')
_OUTPUT = re.compile(
    r'(Train|Test) net output #\d+: (\S+) = ([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))'
)
_TIME = re.compile(r'[IWEF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{6})')


class _Table:
    """The rows of one net: a row is an iteration's outputs, and ends when it is as long as
    the first."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._row: Row = {}

    def add(self, iteration: float, seconds: float, rate: float, name: str, value: float) -> None:
        if self._row.get('NumIters') != iteration:
            self.end()
            self._row = {'NumIters': iteration, 'Seconds': seconds, 'LearningRate': rate}
        self._row[name] = value
        if self.rows and len(self._row) == len(self.rows[0]):
            self.end()

    def end(self) -> None:
        """End the current row, if there is one."""
        if self._row:
            self.rows.append(self._row)
        self._row = {}

    def finish(self) -> list[Row]:
        """Return all rows; give the first row the second's learning rate.

        None was logged before it.
        """
        self.end()
        if len(self.rows) > 1:
            self.rows[0]['LearningRate'] = self.rows[1]['LearningRate']
        return self.rows


def parse_log(path: str | os.PathLike) -> tuple[list[Row], list[Row]]:
    """Return the rows of the train net and of the test net: a number for each column.

    Seconds count from the line "Solving", or the first with a time in a log without one. A
    log has no year: where the month falls, a new year has begun.

    Raises CaffeError if the file is not read or holds no line of a log.
    """
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            lines = file.read().splitlines()
        year = datetime.fromtimestamp(os.path.getctime(path)).year
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    tables = {'Train': _Table(), 'Test': _Table()}
    iteration, rate = -1.0, float('nan')
    last = start = _start(lines, year)
    if last is None or start is None:
        raise CaffeError(f"{path}: expected lines of a log in glog's form, found none")
    for line in lines:
        if found := _ITERATION.search(line):
            iteration = float(found[1])
        when = _time(line, year)
        if iteration < 0 or when is None:
            continue
        if when.month < last.month:
            year += 1
            when = when.replace(year=year)
        last = when
        if found := _RATE.search(line):
            rate = float(found[1])
        if found := _OUTPUT.search(line):
            seconds = (when - start).total_seconds()
            tables[found[1]].add(iteration, seconds, rate, found[2], float(found[3]))
    return tables['Train'].finish(), tables['Test'].finish()


def _start(lines: Iterable[str], year: int) -> datetime | None:
    timed = [line for line in lines if _TIME.match(line)]
    solving = (line for line in timed if 'Solving' in line)
    return next((_time(line, year) for line in (*solving, *timed)), None)


def _time(line: str, year: int) -> datetime | None:
    """Return when a line was logged; None if it does not say."""
    found = _TIME.match(line)
    if not found:
        return None
    try:
        month, day, hour, minute, second, micros = map(int, found.groups())
        return datetime(year, month, day, hour, minute, second, micros)
    except ValueError:  # as 30 February
        return None


def save_csv_files(
    path: str | os.PathLike,
    folder: str | os.PathLike,
    train: list[Row],
    test: list[Row],
    delimiter: str = ',',
    verbose: bool = False,
) -> None:
    """Write the rows as `folder`/<name of the log>.train and .test; no file for no rows."""
    for suffix, rows in (('train', train), ('test', test)):
        target = Path(folder, f'{Path(path).name}.{suffix}')
        if not rows:
            if verbose:
                print(f'Not writing {target}; no lines to write')
            continue
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
        with replacing(target) as temporary:
            temporary.write_bytes(text.getvalue().encode())
        if verbose:
            print(f'Wrote {target}')


def main(arguments: list[str]) -> int:
    """Write the two tables; return 0."""
    parser = argparse.ArgumentParser(
        prog='parse_log',
        description='Parse a Caffe training log into two CSV files containing training and '
        'testing information',
    )
    parser.add_argument('logfile_path', help='path to the log file')
    parser.add_argument('output_dir', help='folder in which to place the CSV files')
    parser.add_argument('--verbose', action='store_true', help='print the names of the files')
    parser.add_argument(
        '--delimiter', default=',', help="column delimiter in the files (default: '%(default)s')"
    )
    options = parser.parse_args(arguments)
    if len(options.delimiter) != 1:
        parser.error(f"--delimiter: expected one character, found '{options.delimiter}'")
    train, test = parse_log(options.logfile_path)
    save_csv_files(
        options.logfile_path, options.output_dir, train, test, options.delimiter, options.verbose
    )
    return 0


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
