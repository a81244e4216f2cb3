"""Score a segmentation net as the official release does: any net, weights and split.

A stopped scoring goes on. As a module it has what the release's score.py has.
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from caffe_port import TEST, Net, mode, parallel, plugins, prototxt
from caffe_port.errors import CaffeError
from caffe_port.files import weights
from caffe_port.files.checksum import digest_file, digest_text
from caffe_port.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_port.zoo import load_all
from solve.datasets import voc
from solve.datasets.layer import Params, SegDataLayer
from solve.run import experiments, options, workspace
from solve.run.counting import compute_hist, do_seg_tests, find_data_layers, find_tasks, seg_tests
from solve.run.evaluation import Evaluation
from solve.run.experiments import ALL_PLACES
from solve.run.metrics import fast_hist
from solve.run.options import ROOT, name_option

__all__ = ['compute_hist', 'do_seg_tests', 'fast_hist', 'seg_tests']

# The split that the release scores each experiment on.
SPLITS = {'voc': 'seg11valid', 'nyud': 'test', 'siftflow': 'test', 'pascalcontext': 'val'}
EXAMPLES = """examples:
  score.py voc_fcn8s fcn8s-heavy-pascal.caffemodel
  score.py siftflow_fcn16s siftflow.pth --siftflow-dir SiftFlow --predictions
  score.py val.prototxt snapshot/train_iter_4000.caffemodel --split train

Score a net on a split, as the official release does. If it is stopped, the same command goes on
where it was.
"""
OUTPUT_HELP = """
The output folder then holds scores.json, confusion.npy (rows are labels, columns predictions),
confusion.png, classes.png (bars of IU and accuracy) and what the options add. SIFT Flow has two
tasks: each has its own files, with _sem or _geo behind their names.
"""


def prepare(args: argparse.Namespace) -> Evaluation:
    """Make the net that a command line names, with its weights, and the folder for its scores."""
    layers = weights.read(args.weights)
    data = experiments.find_data(args.net)
    split = args.split or (SPLITS[args.net.split('_')[0]] if data else None)
    param = experiments.make_net_param(args.net, split, layers)
    places = {place: ROOT / folder for place, folder in data.PLACES.items()} if data else {}
    places |= {place: getattr(args, place) for place in ALL_PLACES if getattr(args, place)}
    set_data(param, split, places)
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(digest_file, args.weights)
        net = make_test_net(args.net, param, places)
        load_all(net, args.weights, layers)
    fed, tasks = find_data_layers(net), find_tasks(net)
    if not fed:
        raise CaffeError(f'{args.net}: no data layer of solve/datasets in it, so nothing to score')
    if not tasks:
        raise CaffeError(
            f'{args.net}: no SoftmaxWithLoss in it, so no scores to compare with labels'
        )
    layer = fed[0]
    if layer.split == 'seg11valid' and len(layer.ids) != voc.SEG11VALID_IMAGES:
        print(
            f'Note: the official seg11valid has {voc.SEG11VALID_IMAGES} images, this one '
            f'{len(layer.ids)}: do not compare the scores with published ones',
            file=sys.stderr,
        )
    named = (
        Path(args.net).stem,
        args.weights.name.removesuffix(weights.kind_of(args.weights)),
        layer.split,
    )
    folder = args.output or Path('output', 'score', '-'.join(named))
    of = identify(param, layer, args.weights, digest.result())
    if args.precision != mode.FP32:
        of['precision'] = args.precision
    scoring = Evaluation(net, layer, tasks, folder, of, args.weights, args.precision)
    parallel.call_on_first(lambda: _take_folder(scoring, args))
    print(
        f'{args.net} with {args.weights} on {layer.split}, {len(layer.ids)} images; '
        f'output folder: {folder}',
        flush=True,
    )
    return scoring


def _take_folder(scoring: Evaluation, args: argparse.Namespace) -> None:
    """Take the folder for the scores; raise CaffeError if files of others would be replaced."""
    if not args.force:
        workspace.refuse_foreign(
            scoring.folder,
            scoring.list_files(args.predictions, args.report, args.errors),
            scoring.has_record(),
            'score.py',
            '--force replaces it, --output names another folder',
        )
    workspace.take(scoring.folder)


def set_data(param: NetParameter, split: str | None, places: dict[str, Path]) -> None:
    """Let the data layers of a net feed `split` in order, from the folders in `places`."""
    for layer, params in _parse_data_layers(param):
        own = plugins.import_layer_module(layer.python_param.module).PLACES
        for place in places:
            if place not in own:
                raise CaffeError(
                    f"{name_option(place)}: not a folder of this net's data; those are "
                    + ' and '.join(map(name_option, own))
                )
        changes = {
            'randomize': False,
            **{place: str(path) for place, path in places.items()},
            **({'split': split} if split else {}),
        }
        layer.python_param.param_str = repr({**params.values, **changes})


def _parse_data_layers(param: NetParameter) -> Iterator[tuple[LayerParameter, Params]]:
    """Yield the data layers of a net that solve/datasets has, with their parsed param_str."""
    for layer in param.layer:
        module = None
        with suppress(CaffeError):  # whatever is wrong with it, making the net says so
            if layer.type == 'Python':
                module = plugins.import_layer_module(layer.python_param.module)
        if hasattr(module, 'PLACES'):
            yield layer, Params.parse(layer.name, layer.python_param.param_str)


def make_test_net(name: str, param: NetParameter, places: dict[str, Path]) -> Net:
    """Make a net to test; where a folder of its data is missing, name the option for it."""
    try:
        return Net(param, TEST)
    except CaffeError as error:
        for place, folder in places.items():
            if str(folder) in str(error) and not folder.is_dir():
                raise CaffeError(
                    f'{folder}: no such folder; {name_option(place)} says where it is'
                ) from error
        raise CaffeError(f'{name}: {error}') from error


def identify(param: NetParameter, layer: SegDataLayer, path: Path, digest: str) -> dict[str, str]:
    """Return digests of what is scored: net, weights and images, whatever their folders.

    digest: of the weight file at `path`.
    """
    plain = NetParameter()
    plain.CopyFrom(param)
    for data, params in _parse_data_layers(plain):
        kept = {
            key: params.values[key] for key in sorted({*params.values} - {'split', *ALL_PLACES})
        }
        data.python_param.param_str = repr(kept)
    return {
        'net': f'sha256 {digest_text(prototxt.to_text(plain))}',
        'weights': f'{path.stat().st_size} bytes, sha256 {digest}',
        'images': f'{len(layer.ids)} of {layer.split}, sha256 {digest_text(repr(layer.ids))}',
    }


def score_net(args: argparse.Namespace) -> None:
    """Score the net that a command line names and report its scores."""
    scoring = prepare(args)
    state = scoring.count(args.predictions, args.force)
    parallel.call_on_first(lambda: scoring.report(state, args.report, args.errors))


def main() -> None:
    parser = options.make_net_parser(
        'score.py', EXAMPLES, f'{OUTPUT_HELP}\n{options.STATUS}', positional_gpu=True
    )
    add = parser.add_argument
    add('--split', help="default: the published one; for a prototxt, the prototxt's")
    for place in ALL_PLACES:
        add(
            name_option(place),
            type=Path,
            metavar='DIR',
            help="default: the script's, or the prototxt's",
        )
    add('--output', type=Path, metavar='DIR', help='default: output/score/NET-WEIGHTS-SPLIT')
    add('--predictions', action='store_true', help='write predictions as palette PNGs')
    add('--report', action='store_true', help='write report.html, with best and worst pictures')
    add(
        '--errors', action='store_true', help='write errors.png: where the worst pictures are wrong'
    )
    add('--force', action='store_true', help='start over; replace files of others')
    options.run_net_command(parser, score_net)


if __name__ == '__main__':
    main()
