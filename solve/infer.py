"""Label every pixel of pictures with a trained net, at their own sizes."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import argparse
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from caffe_port import TEST, Net, mode, parallel, prototxt
from caffe_port.errors import CaffeError, make_folder, printable
from caffe_port.files import weights
from caffe_port.files.checksum import digest_file, digest_text
from caffe_port.zoo import load_all
from solve.datasets import voc
from solve.run import experiments, free_memory, inputs, options, results
from solve.run.dense import WAYS, Dense
from solve.run.labelling import Files, Labelling, describe, find_outputs, infer, make_reader
from solve.run.progress import show_progress

__all__ = ['describe', 'find_outputs', 'infer', 'make_reader']

USAGE = 'infer.py NET WEIGHTS PICTURE... [GPU] [--overlay] [--output DIR] [--force]'
DESCRIPTION = """\
Label every pixel of pictures with a trained net.

  infer.py voc_fcn8s fcn8s-heavy-pascal.caffemodel street.jpg dog.jpg --overlay
  infer.py siftflow_fcn16s siftflow.pth photos/ 'more/*.tif' list.txt
  infer.py nyud_fcn32s_color_d nyud.caffemodel color.png depth.png
  infer.py voc_fcn32s fcn32s-heavy-pascal.caffemodel street.jpg --dense 8 --dense-by stitch
"""
NOTES = """\
Writes dog_labels.png (palette PNG) and, with --overlay, dog_overlay.png; of nets of two outputs
beach_sem_labels.png and beach_geo_labels.png. Results that are there are kept: a stopped command
that is repeated goes on. Nets of two inputs take two files, folders or lists for each one: color
and depth (16-bit PNG, millimetres), or color and HHA. Transparent pixels are shown over white.

exit status: 0; 1 if some pictures could not be labelled; 2 with one line `error: ...`;
130 if stopped
"""


def load_net(args: argparse.Namespace) -> Net:
    """Make the net that a command line names, with its weights.

    Raises CaffeError if it is not valid or has no inputs, or a weight is NaN or infinite.
    """
    layers = weights.read(args.weights)
    param = experiments.make_net_param(args.net, 'deploy', layers)
    try:
        net = Net(param, TEST)
    except CaffeError as error:
        raise CaffeError(f'{args.net}: {error}') from error
    if not net.inputs:
        raise CaffeError(
            f'{args.net}: no Input layer to put a picture into; take the deploy '
            "prototxt, or an experiment's name"
        )
    load_all(net, args.weights, layers)
    return net


def group_files(net: Net, arguments: Sequence[Path]) -> list[Files]:
    """Group files by picture, one for each input of the net.

    Raises CaffeError if one is missing, or two pictures have one name.
    """
    per = len(net.inputs)
    if len(arguments) % per:
        raise CaffeError(
            f'{len(arguments)} files given, {per} needed for each picture: ' + ', '.join(net.inputs)
        )
    groups: list[Files] = []
    for together in zip(*[iter(arguments)] * per):
        found = [inputs.find_pictures(argument) for argument in together]
        if len({len(files) for files in found}) > 1:
            counts = ', '.join(f'{len(files)} in {name}' for files, name in zip(found, together))
            raise CaffeError(f'{counts}: as many are needed of each: {", ".join(net.inputs)}')
        groups.extend(zip(*found))
    named: dict[str, Path] = {}
    for first, *_ in groups:
        if first.stem in named:
            raise CaffeError(
                f'two pictures named {first.stem}: one would replace the other '
                f'({named[first.stem]}, {first})'
            )
        named[first.stem] = first
    return groups


def prepare(args: argparse.Namespace) -> tuple[Labelling, list[Files]]:
    """Make what a command line asks for, and refuse what cannot be done, before any computing."""
    data = experiments.find_data(args.net)
    mean = args.mean or getattr(data, 'MEAN', voc.MEAN)
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(digest_file, args.weights)
        net = load_net(args)
    outputs = find_outputs(net, net.module.shapes)
    readers = {top: make_reader(args.net, top, mean) for top in net.inputs}
    groups = group_files(net, args.pictures)
    if args.dense_by and args.dense is None:
        raise CaffeError(f'--dense-by {args.dense_by}: --dense says how far apart the scores are')
    if args.dense and args.precision != mode.FP32:
        raise CaffeError(f'--precision {args.precision}: --dense computes in fp32 alone')
    way = args.dense_by or WAYS[0]
    dense = None if args.dense is None else Dense(net, outputs, args.dense, way)
    budget = args.max_memory
    if budget is None and (free := free_memory.free_bytes(mode.device())) is not None:
        budget = free // 2
    what = prototxt.to_text(net.module.param) + digest.result() + repr([*mean])
    if args.precision != mode.FP32:
        what += args.precision
    if dense:
        what += f'dense {args.dense} {way}'
    text = {
        results.SOFTWARE: results.OURS,
        results.NET: f'{Path(args.net).name}, net and weights and mean sha256 ' + digest_text(what),
    }
    kinds = ['labels', 'overlay'] if args.overlay else ['labels']
    labelling = Labelling(
        net,
        data,
        args.weights,
        readers,
        args.output,
        outputs,
        kinds,
        text,
        args.force,
        budget,
        args.precision,
        dense,
    )
    written = [path for files in groups for path in labelling.name_results(files).values()]
    if not args.force:
        results.refuse_foreign(written)
    read = {path.resolve() for files in groups for path in files}
    for path in written:
        if path.resolve() in read:
            raise CaffeError(f'{path}: is one of the pictures; --output names another folder')
    results.check_writable(make_folder(args.output))
    return labelling, groups


def label_pictures(args: argparse.Namespace) -> None:
    """Do what a command line asks: label its pictures and print what is in them.

    Each of many ranks labels its share. Exits with status 1 if pictures were left out.
    """
    is_new = not args.output.exists()
    labelling, groups = prepare(args)
    share = groups[parallel.solver_rank() :: parallel.solver_count()]
    lines: list[str] = []
    errors: list[str] = []
    kept, start = 0, time.monotonic()
    try:
        with show_progress(
            desc='labelling', unit='img', total=len(share), leave=False, disable=len(share) < 2
        ) as bar:
            for done in labelling.run(share, partial(bar.write, file=sys.stderr)):
                if isinstance(done, CaffeError):
                    errors.append(printable(str(done)))
                    bar.write(f'error: {errors[-1]}', file=sys.stderr)
                elif done is None:
                    kept += 1
                else:
                    lines += done
                    for line in done:
                        bar.write(line, file=sys.stdout)
                        sys.stdout.flush()
                bar.update()
    except KeyboardInterrupt:
        with suppress(ValueError):
            bar.close()
        raise KeyboardInterrupt(
            f'stopped after {bar.n} of {len(share)} pictures; the same command goes on from there'
        ) from None
    seconds = time.monotonic() - start
    of_ranks = parallel.gather((lines, errors, kept))
    if is_new:
        with suppress(OSError):
            args.output.rmdir()  # empty: no picture could be labelled
    report(of_ranks, len(groups), seconds)


def report(
    of_ranks: Sequence[tuple[list[str], list[str], int]], count: int, seconds: float
) -> None:
    """Print what ranks other than 0 have done, and the sums; exit with status 1 on errors."""
    for lines, errors, _ in of_ranks[1:]:
        print(*lines, sep='\n', end='\n' * bool(lines))
        for error in errors:
            print(f'error: {error}', file=sys.stderr)
    failed = sum(len(errors) for _, errors, _ in of_ranks)
    kept = sum(kept for *_, kept in of_ranks)
    made = count - failed - kept
    if count > 1 or kept:
        speed = f' ({made / seconds:.3g} images/s)' if made and seconds else ''
        print(f'{made} of {count} pictures labelled{speed}', end='', file=sys.stderr)
        print(f', {kept} kept from before' if kept else '', file=sys.stderr)
    if failed:
        if count > 1:
            print(f'{failed} of {count} pictures could not be labelled', file=sys.stderr)
        sys.exit(1)


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f'{text}: a finite number expected')
    return value


def _parse_memory(text: str) -> int:
    try:
        return free_memory.parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class _Pictures(options.OneGpu):
    """Take pictures, and a number behind them that is no file as the GPU's."""

    def __call__(self, parser, namespace, values, option=None) -> None:
        if len(values) > 1 and str(values[-1]).isdecimal() and not values[-1].exists():
            super().__call__(parser, namespace, int(str(values.pop())))
        namespace.pictures = values


def main() -> None:
    parser = options.make_net_parser('infer.py', DESCRIPTION, NOTES)
    parser.usage = USAGE
    add = parser.add_argument
    add(
        'pictures',
        metavar='PICTURE',
        nargs='+',
        type=Path,
        action=_Pictures,
        help="file, folder, 'pattern*', or .txt list of pictures, of any size",
    )
    add(
        '--output',
        type=Path,
        default=Path('predictions'),
        metavar='DIR',
        help='folder for the results (default: predictions)',
    )
    add('--overlay', action='store_true', help='also draw the classes over the picture')
    add('--force', action='store_true', help='compute anew; replace files of others')
    add(
        '--mean',
        type=_parse_finite,
        nargs=3,
        metavar=('B', 'G', 'R'),
        help="to subtract (default: the experiment's; for a prototxt, VOC's)",
    )
    add(
        '--max-memory',
        type=_parse_memory,
        metavar='SIZE',
        help='as 2G; larger pictures go in tiles (default: half of the free)',
    )
    add(
        '--dense',
        type=int,
        metavar='STRIDE',
        help='of 32s nets: take scores every STRIDE pixels, not every 32, and interpolate',
    )
    add(
        '--dense-by',
        choices=WAYS,
        help='by filter rarefaction (the default) or by shift-and-stitch',
    )
    options.run_net_command(parser, label_pictures)


if __name__ == '__main__':
    main()
