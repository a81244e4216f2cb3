"""Train an official net on your own pictures and classes."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import argparse
import functools
import logging
import sys
from pathlib import Path
from typing import Any

from caffe_port import parallel, prototxt
from caffe_port.errors import CaffeError, make_folder, replacing
from caffe_port.files import weights
from nets.data import SEED
from solve import launch, score, voc_fcn32s, voc_fcn_alexnet, voc_fcn_googlenet
from solve.datasets import folder as own
from solve.run import command_names, events, experiments, options, preflight, retention, workspace
from solve.run.adaptation import find_class_layers, scale_constants, start_from
from solve.run.finetuning import PLAN, Plan, find_net, parse_map
from solve.run.job import FILES, LATEST, Job
from solve.run.precision import FOR_TRAINING
from solve.samples import classifiers, own_data, recipes

USAGE = 'finetune.py --images DIR --labels DIR --classes FILE --weights FILE [options]'
EXAMPLES = """\
examples:
  finetune.py --images photos --labels masks --classes classes.txt --weights vgg16-fcn.caffemodel
  finetune.py --resume latest --output output/finetune    go on with a stopped run
  finetune.py       draw three classes and train a narrow net on them: minutes on a CPU

Train an official net on your own pictures and classes.
"""
DEFAULT = Path('output/finetune')
LISTS = tuple(f'{own.PLACES["lists_dir"]}/{split}.txt' for split in ('train', 'val'))
# Files that a run writes into its folder.
OWN_FILES = (
    *FILES,
    PLAN,
    'train.prototxt',
    'val.prototxt',
    'snapshot/deploy.prototxt',
    f'snapshot/{experiments.CLASSES_FILE}',
    *LISTS,
)
SAMPLE_IMAGES = 150
# The nets whose loss is a mean over pixels; the others' is a sum.
NORMALISED = {'voc_fcn_alexnet': voc_fcn_alexnet, 'voc_fcn_googlenet': voc_fcn_googlenet}


def solve(job: Job, plan: Plan) -> None:
    lists = job.folder.absolute() / own.PLACES['lists_dir']
    fcn = functools.partial(plan.make_net_param, lists_dir=lists)
    solver = job.make_solver({}, fcn, train='train', test='val')
    if not job.restore(solver):  # --resume
        layers = find_class_layers(find_net(plan.net), len(plan.classes))
        try:
            start_from(solver.net, job.weights[0], *layers, plan.keep_classes)
        except CaffeError:
            if not parallel.solver_rank() and workspace.is_new(job.folder):
                forget(job)
            raise
    parallel.call_on_first(lambda: write_nets(job, plan, fcn))
    with job.watch(solver, 1, step=solver.param.snapshot, prune=job.prune) as rounds:
        for iterations in rounds:
            solver.step(iterations)
            scores = score.seg_tests(solver, False, job.images, layer='score')
            job.record(solver, scores, plan.classes)
            job.prune(solver)  # --keep
    job.save_and_report(solver, data=own.MEAN)
    best = job.prefix.with_name(f'{job.prefix.name}_iter_{solver.notes["best"]["iteration"]}')
    print(
        f'Best: mean IU {100 * solver.notes["best"]["mean_iu"]:.2f} % on val. To use it:\n'
        + command_names.as_called(
            f'  python solve/infer.py {plan.net} {best}.caffemodel PICTURE... --overlay\n'
            f'  python solve/score.py {job.folder}/val.prototxt {best}.caffemodel'
        )
    )


def forget(job: Job) -> None:
    """Remove the plan and lists of a run that could not start; without them its folder goes too."""
    for name in (PLAN, *LISTS):
        (job.folder / name).unlink(missing_ok=True)


def write_nets(job: Job, plan: Plan, fcn: Any) -> None:
    """Write the nets to the run's folder, deploy.prototxt and classes.txt beside the weights."""
    for split in ('train', 'val'):
        prototxt.write(fcn(split), job.folder / f'{split}.prototxt')
    beside = make_folder(job.prefix.parent)
    prototxt.write(fcn('deploy'), beside / 'deploy.prototxt')
    with replacing(beside / experiments.CLASSES_FILE) as temporary:
        temporary.write_text(''.join(f'{name}\n' for name in plan.classes), encoding='utf-8')


def prepare(args: argparse.Namespace) -> tuple[Job, Plan] | None:
    """Check the data and the options, make the run's folder and return its job; None for --check.

    Raises CaffeError for options that do not go together, and for data that is not right.
    """
    find_net(args.net)
    if args.tensorboard:
        events.require()
    if args.iterations is not None and args.iterations < 1:
        raise CaffeError(f'--iterations {args.iterations}: must be positive')
    if args.base_lr is not None and not args.base_lr > 0:
        raise CaffeError(f'--base-lr {args.base_lr:g}: must be positive')
    if args.resume:
        return _resume(args)
    if args.images is None:
        return _prepare_sample(args)
    for given, name in ((args.labels, '--labels'), (args.classes, '--classes')):
        if given is None:
            raise CaffeError(f'{name} is needed beside --images')
    plan = Plan(
        args.net,
        experiments.read_classes(args.classes),
        parse_map(args.map, experiments.read_classes(args.classes)),
        args.keep_classes,
    )
    # Weights are indexed in no time, pictures read in minutes.
    widths = {} if args.check else _find_widths(args)
    splits, found = check_data(args, plan)
    if args.check:
        return None
    recipe = scale_constants(
        NORMALISED.get(args.net, voc_fcn32s).SOLVER,
        args.net not in NORMALISED,
        len(splits['train']),
        found.labelled_per_image,
        args.iterations,
        args.base_lr,
    )
    print(*recipe.why, sep='\n')
    folder = args.output = launch.make_run_folder(args.output or DEFAULT, None, OWN_FILES)
    return _begin(args, plan, splits, folder, args.weights, widths, recipe.constants)


def _find_widths(args: argparse.Namespace) -> dict[str, Any]:
    if args.weights is None:
        raise CaffeError('--weights is needed: a classifier such as VGG16, or a trained FCN')
    widths = experiments.find_widths(find_net(args.net), weights.read(args.weights))
    widths.pop('classes', None)
    return widths


def _begin(
    args: argparse.Namespace,
    plan: Plan,
    splits: dict[str, list[own.Pair]],
    folder: Path,
    start: Path,
    arguments: dict[str, Any],
    constants: dict[str, Any],
) -> tuple[Job, Plan]:
    """Write the lists and the plan of a run into its folder and return its job."""
    lists = workspace.make(folder / own.PLACES['lists_dir'])
    for split, pairs in splits.items():
        own.write_pairs(lists / f'{split}.txt', pairs)
    plan = Plan(
        plan.net,
        plan.classes,
        plan.table,
        plan.keep_classes,
        str(start.absolute()),
        arguments,
        constants,
    )
    plan.write(folder / PLAN)
    print(f'Output folder: {folder}', flush=True)
    return _make_job(folder, plan, None, args), plan


def _make_job(folder: Path, plan: Plan, resume: Path | None, args: argparse.Namespace) -> Job:
    start = [Path(plan.weights)] if plan.weights else []
    job = Job(
        plan.net, folder, start, resume, constants=plan.constants, tensorboard=args.tensorboard
    )
    job.step, job.iterations, job.keep = plan.constants['snapshot'], args.iterations, args.keep
    if parallel.is_restarted() and retention.list_states(job.prefix):
        job.resume = LATEST
    return job


def _resume(args: argparse.Namespace) -> tuple[Job, Plan] | None:
    if args.resume != LATEST and not args.resume.is_file():
        raise CaffeError(f'{args.resume}: no such file; --resume takes a .solverstate or `latest`')
    folder = launch.find_run(args.resume, args.output, [DEFAULT, recipes.folder_of('finetune')])
    args.output = folder
    if args.resume == LATEST and recipes.is_in(folder) and not (folder / PLAN).exists():
        print('Nothing is saved there yet: the sample starts again.', flush=True)
        return _prepare_sample(args)
    plan, state = Plan.read(folder / PLAN), args.resume
    if state == LATEST and not launch.has_snapshots(folder / 'snapshot/train'):
        print('Nothing is saved there yet: the training starts again.', flush=True)
        state = None
    return _make_job(folder, plan, state, args), plan


def _prepare_sample(args: argparse.Namespace) -> tuple[Job, Plan] | None:
    """Draw data of three classes and train a narrow classifier to start from; then go on as usual.

    Raises CaffeError if an option for own data is given.
    """
    for name in ('labels', 'classes', 'weights', 'list', 'train_list', 'val_list', 'map'):
        if getattr(args, name):
            raise CaffeError(f'{options.name_option(name)} needs --images')
    sample = args.net if args.net in NORMALISED else 'voc_fcn32s'
    name = recipes.RECIPES[sample].classifier
    folder = args.output or recipes.folder_of('finetune')
    sample_files = [*OWN_FILES, 'data', f'{name}-narrow.caffemodel']
    folder = args.output = launch.make_run_folder(folder, args.resume, sample_files)
    print(
        f'No --images, so this draws {SAMPLE_IMAGES} pictures of {len(own_data.CLASSES)} classes '
        f'into {folder}/data and trains a narrow net on them.',
        flush=True,
    )
    data = own_data.draw_pairs(folder / 'data', SAMPLE_IMAGES)
    args.images, args.labels = data / 'images', data / 'labels'
    plan = Plan(args.net, [*own_data.CLASSES], {})
    splits, _ = check_data(args, plan)
    if args.check:
        return None
    file = f'{name}-narrow.caffemodel'
    start = folder / file
    earlier = [path for path in sorted(folder.parent.glob(f'*-sample*/{file}')) if path != start]
    if earlier:
        start = earlier[0]
        print(f'Starting from {start}', flush=True)
    else:
        classifiers.train_classifier(name, start, recipes.SEED)
    published = NORMALISED.get(args.net, voc_fcn32s).SOLVER
    constants = {**published, **recipes.make_settings(sample)['constants']}
    # Three classes need fewer iterations than 21.
    constants.update(max_iter=args.iterations or 240, snapshot=80, display=20)
    constants['base_lr'] = args.base_lr or constants['base_lr']
    print(
        f'rate {constants["base_lr"]:g}, momentum {constants["momentum"]:g}, '
        f'{constants["max_iter"]} iterations: those of the samples, for narrow nets'
    )
    arguments = classifiers.make_net_arguments(name)
    return _begin(args, plan, splits, folder, start, arguments, constants)


def check_data(
    args: argparse.Namespace, plan: Plan
) -> tuple[dict[str, list[own.Pair]], preflight.Preflight]:
    """Find and read all pictures and masks; print what is in them, and what is wrong.

    Raises CaffeError if anything is wrong.
    """
    if bool(args.train_list) != bool(args.val_list):
        raise CaffeError('--train-list and --val-list go together')
    if args.list and args.train_list:
        raise CaffeError(
            '--list is one list for both splits: leave out --train-list and --val-list'
        )
    if args.train_list:
        train, wrong = preflight.find_pairs(args.images, args.labels, args.train_list)
        val, more = preflight.find_pairs(args.images, args.labels, args.val_list)
        wrong = list(dict.fromkeys(wrong + more))
    else:
        pairs, wrong = preflight.find_pairs(args.images, args.labels, args.list)
        train, val = preflight.split_pairs(pairs, args.val_share, args.seed)
    splits = {'train': train, 'val': val}
    splits = {split: [_absolute(pair) for pair in pairs] for split, pairs in splits.items()}
    found = preflight.check(splits, plan.classes, plan.table, wrong)
    if found.wrong:
        for line in found.wrong[: preflight.MOST_LISTED]:
            print(f'  {line}', file=sys.stderr)
        raise CaffeError(
            f'{args.images}: {len(found.wrong)} '
            f'problem{"s" * (len(found.wrong) > 1)} with pictures and masks, '
            + ('listed above' if len(found.wrong) <= preflight.MOST_LISTED else
               f'the first {preflight.MOST_LISTED} listed above')
        )  # fmt: skip
    print(f'{len(train)} pictures to train on, {len(val)} to score, all read.')
    print(*found.lines(), sep='\n')
    for note in found.notes:
        print(f'Note: {note}', file=sys.stderr)
    return splits, found


def _absolute(pair: own.Pair) -> own.Pair:
    return own.Pair(pair.id, pair.image.absolute(), pair.label.absolute())


def _make_parser() -> argparse.ArgumentParser:
    parser = options.make_parser('finetune.py', EXAMPLES, options.STATUS, USAGE)
    add = parser.add_argument
    add('--images', type=Path, metavar='DIR', help='pictures, JPEG or PNG')
    add('--labels', type=Path, metavar='DIR', help='palette or grey PNG masks of the same stems')
    add('--classes', type=Path, metavar='FILE', help='a name a line, from number 0 on')
    add('--map', metavar='MAP', help='7=0,8=1,*=255: numbers in masks to classes; 255 is void')
    add('--net', default='voc_fcn8s', metavar='NET', help='default: voc_fcn8s')
    add('--weights', type=Path, metavar='FILE', help='a classifier, or an FCN of any classes')
    add('--keep-classes', action='store_true', help="the weights' classes are the first ones")
    add('--list', type=Path, metavar='FILE', help='stems (or IMAGE MASK) to use (default: all)')
    add('--train-list', type=Path, metavar='FILE', help='those to train on')
    add('--val-list', type=Path, metavar='FILE', help='those to score')
    add('--val-share', type=float, default=0.2, metavar='X', help='without lists (default: 0.2)')
    add('--seed', type=int, default=SEED, metavar='N', help='of that draw (default: 1337)')
    add('--check', action='store_true', help='only read the data and say what is wrong')
    add('--iterations', type=int, metavar='N', help='default: 12 times over the data')
    add('--base-lr', type=float, metavar='X', help='default: scaled from the release')
    add('--keep', type=int, default=0, metavar='N', help='newest snapshots to keep (default: all)')
    add('--tensorboard', action='store_true', help="write TensorBoard's event files too")
    add('--resume', type=Path, metavar='FILE', help='.solverstate, or `latest`')
    add('--output', type=Path, metavar='DIR', help=f'default: {DEFAULT}')
    options.add_gpu(parser, positional=True)
    options.add_computing(parser, FOR_TRAINING)
    options.add_recompute(parser)
    return parser


def main() -> None:
    args = _make_parser().parse_intermixed_args()
    logging.getLogger('caffe_port').handlers.clear()
    with options.session(lasting=True), launch.resumable(args):
        options.start_training(args)
        if prepared := parallel.call_on_first(lambda: prepare(args)):
            solve(*prepared)


if __name__ == '__main__':
    main()
