"""Read a log as Caffe's own tools do, by their regular expressions (tools/extra of BVLC Caffe)."""

import re
from datetime import datetime

ITERATION = re.compile(r'Iteration (\d+)')
OUTPUTS = {
    'train': re.compile(r'Train net output #(\d+): (\S+) = ([\.\deE+-]+)'),
    'test': re.compile(r'Test net output #(\d+): (\S+) = ([\.\deE+-]+)'),
}
RATE = re.compile(r'lr = ([-+]?[0-9]*\.?[0-9]+([eE]?[-+]?[0-9]+)?)')


def time_of(line, year):
    """The time of a line, from its first two words: I0210 13:39:22.381027."""
    day, clock = line.split()[:2]
    return datetime.strptime(f'{year} {day[1:3]} {day[3:]} {clock}', '%Y %m %d %H:%M:%S.%f')


def parse_log(path):
    """Rows of the outputs of training and of tests: iteration, seconds, rate, name, value.

    Seconds count from the first line that says Solving; every line after it and after the
    first iteration must have its time.
    """
    year = datetime.fromtimestamp(path.stat().st_ctime).year
    lines = iter(path.read_text().splitlines())
    start = next(time_of(line, year) for line in lines if 'Solving' in line)
    rows = {kind: [] for kind in OUTPUTS}
    iteration, rate = None, None
    for line in lines:
        if found := ITERATION.search(line):
            iteration = int(found[1])
        if iteration is None:
            continue
        seconds = (time_of(line, year) - start).total_seconds()
        if found := RATE.search(line):
            rate = float(found[1])
        for kind, pattern in OUTPUTS.items():
            if found := pattern.search(line):
                rows[kind].append((iteration, seconds, rate, found[2], float(found[3])))
    return rows['train'], rows['test']
