"""The command fcn-solve, which pip installs: the script of an experiment, by its name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from solve.run import command_names, experiments
from solve.samples import recipes

FOLDER = Path(__file__).resolve().parent
HELP = """\
usage: fcn-solve EXPERIMENT [GPU] [options]

  fcn-solve voc_fcn32s             a small sample, without data and weights
  fcn-solve voc_fcn32s 0 --keep 3  on GPU 0, with data and weights in ./data
  fcn-solve voc_fcn32s --help      what it starts from, what it costs, its options

Train an official experiment, or one of the papers' others. There are
  {}

exit status: that of the experiment; 2 with one line `error: ...` for a name that is none
"""


def list_scripts() -> dict[str, Path]:
    """Return the scripts of the experiments, by name."""
    names = (*(f'{data}_*' for data in experiments.DATA), *recipes.STUDIES)
    return {path.stem: path for name in names for path in sorted(FOLDER.glob(f'{name}.py'))}


def main() -> None:
    """Run the script that the first argument names with the arguments behind it."""
    scripts = list_scripts()
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(HELP.format('\n  '.join(scripts)), end='')
        return
    if name not in scripts:
        print(f'error: {name}: no such experiment; see fcn-solve --help', file=sys.stderr)
        sys.exit(2)
    command_names.start_as('fcn-solve', name)
    del sys.argv[1]
    # As Python does for a script: its folder is first on the path.
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(scripts[name]), run_name='__main__')
