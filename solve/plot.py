"""Learning curves of runs.

python solve/plot.py RUN... draws loss and mean IU of the runs in these output folders.
"""

if __name__ == '__main__':
    import _checkout

import argparse
from pathlib import Path

from caffe_port.errors import CaffeError
from solve.run.pictures import curve


def main() -> None:
    parser = argparse.ArgumentParser(description='Draw loss and mean IU of runs over iterations.')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='output folder of a run')
    parser.add_argument('--out', type=Path, default=Path('curve.png'), help='default: curve.png')
    args = parser.parse_args()
    try:
        curve(args.runs, args.out)
    except CaffeError as error:
        parser.exit(2, f'error: {error}\n')
    print(args.out)


if __name__ == '__main__':
    main()
