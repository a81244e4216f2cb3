"""Draw loss and mean IU of runs over their iterations, from the logs in their output folders."""

if __name__ == '__main__':
    import _checkout
from pathlib import Path

from solve.run import options
from solve.run.pictures import draw_curve

EXAMPLES = """examples:
  plot.py output/voc_fcn32s
  plot.py output/voc_fcn32s output/voc_fcn16s --out curves.png
"""


def main() -> None:
    parser = options.make_parser('plot.py', f'{EXAMPLES}\n{__doc__}', options.STATUS)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='output folder of a run')
    parser.add_argument(
        '--out', type=Path, default=Path('curve.png'), metavar='FILE', help='default: curve.png'
    )
    args = parser.parse_args()
    with options.session():
        draw_curve(args.runs, args.out)
        print(args.out)


if __name__ == '__main__':
    main()
