"""Draw loss and mean IU of runs over their iterations, from their logs."""

if __name__ == '__main__':
    import _checkout
from pathlib import Path

from caffe_port.errors import CaffeError
from solve.run import options
from solve.run.figures import KINDS, draw_curve, is_drawing

DESCRIPTION = """examples:
  plot.py output/voc_fcn32s
  plot.py output/voc_chain old/log.jsonl --output curves.pdf

Draw loss and mean IU of runs over their iterations, from their logs.
"""


def main() -> None:
    parser = options.make_parser('plot.py', DESCRIPTION, options.STATUS)
    add = parser.add_argument
    add(
        'runs',
        nargs='+',
        type=Path,
        metavar='RUN',
        help='output folder of a run or of a chain, or a log.jsonl',
    )
    add(
        '--output',
        '--out',
        type=Path,
        default=Path('curve.png'),
        metavar='FILE',
        help=f'{", ".join(KINDS)} by its suffix (default: curve.png)',
    )
    add('--force', action='store_true', help='replace a FILE that this project has not drawn')
    args = parser.parse_args()
    with options.session():
        if not args.force and args.output.exists() and not is_drawing(args.output):
            raise CaffeError(
                f'{args.output}: exists and is not a drawing of this project; --force replaces it'
            )
        draw_curve(args.runs, args.output)
        print(args.output)


if __name__ == '__main__':
    main()
