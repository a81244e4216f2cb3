"""The command score.py: its figures against a count of their own, resume, and refusals."""

import collections
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from matplotlib import colormaps
from PIL import Image

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.files import caffemodel, weights
from nets import siftflow_fcn8s, voc_fcn8s, voc_fcn32s
from solve import score
from solve.datasets import siftflow, voc
from solve.datasets.images import read_list
from solve.run import counting, evaluation, figures
from solve.run.metrics import Scores
from solve.samples import trees
from tests.solve.scored import NARROW, call, save_random


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Draw VOC's sample with five images to score, and weights for a narrow FCN-8s."""
    folder = tmp_path_factory.mktemp('voc')
    places = trees.draw_dataset('voc', folder / 'data', train=4, val=5, size=(112, 140))
    listed = read_list(voc.segmentation_list(places['voc_dir'], 'seg11valid'))
    path = save_random(voc_fcn8s.fcn('deploy', **NARROW), folder / 'random.caffemodel', seed=8)
    return places, path, listed


@pytest.fixture
def run(drawn, monkeypatch, tmp_path):
    """Return a function that scores the FCN-8s into tmp_path/out and returns the exit status."""
    places, path, _ = drawn
    given = [
        '--sbdd-dir',
        places['sbdd_dir'],
        '--voc-dir',
        places['voc_dir'],
        '--output',
        tmp_path / 'out',
    ]

    def scored(*arguments, net='voc_fcn8s', weights=path, charts=False):
        with monkeypatch.context() as patch:
            if not charts:  # they take longer than all else
                patch.setattr(figures, 'draw_confusion', lambda hist, names, path: None)
                patch.setattr(figures, 'draw_class_scores', lambda scores, names, path: None)
            return call(patch, score.main, net, weights, *given, *arguments)

    return scored


def counted(pairs, classes):
    """Count the confusion matrix of (labels, predictions), a pixel at a time."""
    hist = np.zeros((classes, classes), int)
    for labels, best in pairs:
        assert labels.shape == best.shape
        for (label, found), times in collections.Counter(
            zip(labels.ravel().tolist(), best.ravel().tolist())
        ).items():
            if 0 <= label < classes:
                hist[label, found] += times
    return hist


def by_formula(hist):
    """Compute the four numbers and the mean IU of labelled classes, class by class."""
    classes = range(len(hist))
    total = hist.sum()
    labelled = [c for c in classes if hist[c].sum()]
    seen = [c for c in classes if hist[c].sum() or hist[:, c].sum()]
    iu = {c: hist[c, c] / (hist[c].sum() + hist[:, c].sum() - hist[c, c]) for c in seen}
    return {
        'overall_accuracy': sum(hist[c, c] for c in classes) / total,
        'mean_accuracy': sum(hist[c, c] / hist[c].sum() for c in labelled) / len(labelled),
        'mean_iu': sum(iu.values()) / len(seen),
        'mean_iu_labelled': sum(iu[c] for c in labelled) / len(labelled),
        'fwavacc': sum(hist[c].sum() / total * iu[c] for c in labelled),
    }


def pixels(path):
    return np.array(Image.open(path)).astype(int)


def mean_loss(net, count, layer, gt):
    """Compute the sum over pixels of -log softmax, the mean over images, in float64."""
    losses = []
    for _ in range(count):
        net.forward()
        scores = net.blobs[layer].data[0].astype(float)
        labels = net.blobs[gt].data[0, 0].astype(int)
        y, x = np.nonzero(labels != 255)
        shifted = scores - scores.max(0)
        losses.append(-(shifted[labels[y, x], y, x] - np.log(np.exp(shifted).sum(0))[y, x]).sum())
    return sum(losses) / count


def test_figures_are_those_counted_from_the_predictions_and_label_files(drawn, run, tmp_path):
    places, path, ids = drawn
    assert run('--predictions', charts=True) == 0
    out = tmp_path / 'out'
    for name in ('confusion.png', 'classes.png'):
        assert figures.is_drawing(out / name)
    assert not (out / 'errors.png').exists()
    assert sorted(file.stem for file in (out / 'predictions').iterdir()) == sorted(ids)
    labels = Path(places['voc_dir'], 'SegmentationClass')
    hist = counted(
        [(pixels(labels / f'{name}.png'), pixels(out / f'predictions/{name}.png')) for name in ids],
        21,
    )
    assert (hist.sum(0) > 0).sum() >= 3 and np.diag(hist).any(), 'the net says one thing only'
    assert np.array_equal(np.load(out / 'confusion.npy'), hist)
    found = json.loads((out / 'scores.json').read_text())
    for what, value in by_formula(hist).items():
        assert found[what] == pytest.approx(value, rel=1e-12), what
    for name, row, column, right in zip(voc.CLASSES, hist, hist.T, np.diag(hist)):
        each = found['classes'][name]
        assert each['accuracy'] == (pytest.approx(right / row.sum()) if row.sum() else None)
        assert (each['iu'] is None) == (not row.sum() and not column.sum())
    net = caffe.Net(voc_fcn8s.fcn('seg11valid', **places, **NARROW), str(path), caffe.TEST)
    assert found['loss'] == pytest.approx(mean_loss(net, len(ids), 'score', 'label'), rel=1e-4)


def test_both_tasks_of_sift_flow_are_scored_in_one_pass(monkeypatch, tmp_path, capsys):
    data = trees.draw_dataset('siftflow', tmp_path / 'data', train=2, val=4, size=(112, 112))
    path = save_random(siftflow_fcn8s.fcn('deploy', **NARROW), tmp_path / 'random.caffemodel')
    forwards, forward = [], caffe.Net.forward_range
    monkeypatch.setattr(
        caffe.Net,
        'forward_range',
        lambda net, *range_: (forwards.append(1), forward(net, *range_))[1],
    )
    out = tmp_path / 'out'
    assert (
        call(
            monkeypatch,
            score.main,
            'siftflow_fcn8s',
            path,
            '--output',
            out,
            '--predictions',
            '--siftflow-dir',
            data['siftflow_dir'],
        )
        == 0
    )
    assert len(forwards) == 4
    printed = capsys.readouterr().out
    root = tmp_path / 'data/sift-flow'
    for gt, folder, names in (
        ('sem', 'SemanticLabels', siftflow.SEMANTIC),
        ('geo', 'GeoLabels', siftflow.GEOMETRIC),
    ):
        pairs = []
        for file in sorted((out / f'predictions_{gt}').iterdir()):
            stored = scipy.io.loadmat(root / folder / siftflow.SCENES / f'{file.stem}.mat')['S']
            pairs.append((stored.astype(int) - 1, pixels(file)))
        assert len(pairs) == 4
        hist = counted(pairs, len(names))
        found = json.loads((out / f'scores_{gt}.json').read_text())
        assert np.array_equal(np.load(out / f'confusion_{gt}.npy'), hist)
        for what, value in by_formula(hist).items():
            assert found[what] == pytest.approx(value, rel=1e-12), (gt, what)
        assert (out / f'confusion_{gt}.png').is_file()
        net = caffe.Net(siftflow_fcn8s.fcn('test', **data, **NARROW), str(path), caffe.TEST)
        assert found['loss'] == pytest.approx(mean_loss(net, 4, f'score_{gt}', gt), rel=1e-4)
        absent = [name for name, row in zip(names, hist) if not row.sum()]
        assert found['absent_from_ground_truth'] == absent
        if gt == 'sem':
            assert absent and found['mean_iu'] < found['mean_iu_labelled']
            assert f'absent from the ground truth: {", ".join(absent)}\n' in printed
            assert (
                f'mean IU {100 * found["mean_iu"]:.2f} %, without these '
                f'{100 * found["mean_iu_labelled"]:.2f} %'
            ) in printed


def test_do_seg_tests_returns_the_confusion_matrix_as_the_release_does(drawn, capsys):
    places, path, ids = drawn
    param = voc_fcn8s.fcn('seg11valid', **places, **NARROW)
    net, again = (caffe.Net(param, str(path), caffe.TEST) for _ in range(2))
    hist, loss = score.compute_hist(net, False, ids)
    found = score.do_seg_tests(again, 7, False, ids)
    assert found.dtype == hist.dtype == np.float64 and np.array_equal(found, hist)
    assert hist.sum() > 0 and loss == pytest.approx(
        mean_loss(net, len(ids), 'score', 'label'), 1e-4
    )
    printed = [line.split(' ', 3)[3] for line in capsys.readouterr().out.splitlines()]
    numbers = by_formula(hist.astype(int))
    for line, (name, value) in zip(
        printed,
        [
            ('loss', loss),
            ('overall accuracy', numbers['overall_accuracy']),
            ('mean accuracy', numbers['mean_accuracy']),
            ('mean IU', numbers['mean_iu']),
            ('fwavacc', numbers['fwavacc']),
        ],
        strict=True,
    ):
        start, _, number = line.rpartition(' ')
        assert start == f'Iteration 7 {name}' and float(number) == pytest.approx(value, rel=1e-12)


# Going on.


def stop_after(monkeypatch, images):
    """Interrupt the scoring in the middle of the image after the first `images`."""
    calls, count = [], counting._Image.count

    def stopped(image, save_dirs):
        calls.append(1)
        if len(calls) > images:
            raise KeyboardInterrupt
        return count(image, save_dirs)

    monkeypatch.setattr(counting._Image, 'count', stopped)


# On a GPU an image is counted while the next is computed.
@pytest.mark.parametrize('images, behind', [(0, 0), (1, 1), (4, 1)])
def test_stopped_and_resumed_it_ends_digit_for_digit_the_same(
    images, behind, drawn, run, tmp_path, monkeypatch, capsys
):
    ids, loaded, load = drawn[2], [], voc.VOCSegDataLayer.load
    charts = images == 1
    assert run('--predictions', charts=charts) == 0
    straight = {
        file.relative_to(tmp_path / 'out'): file.read_bytes()
        for file in (tmp_path / 'out').rglob('*')
        if file.is_file()
    }
    (tmp_path / 'out').rename(tmp_path / 'straight')
    monkeypatch.setattr(counting, '_count_behind', lambda: behind)
    with monkeypatch.context() as patch:
        stop_after(patch, images)
        assert run('--predictions') == 130
    printed = capsys.readouterr().err
    assert f'stopped after {images} of {len(ids)} images' in printed and 'goes on' in printed
    assert len(list((tmp_path / 'out/predictions').iterdir())) == images
    monkeypatch.setattr(
        voc.VOCSegDataLayer, 'load', lambda layer, name: (loaded.append(name), load(layer, name))[1]
    )
    assert run('--predictions', charts=charts) == 0
    # The first is read when the net is made; after the last the first comes again.
    assert set(loaded) == {ids[0], *ids[images:]} and len(loaded) <= len(ids) - images + 2
    assert f'goes on after {images} of {len(ids)}' in capsys.readouterr().out
    assert straight == {
        file.relative_to(tmp_path / 'out'): file.read_bytes()
        for file in (tmp_path / 'out').rglob('*')
        if file.is_file()
    }


def test_killed_it_goes_on_from_what_was_saved_before(run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    written, write = [], evaluation.EvaluationState.write

    def killed_after_two(state, path):
        if len(written) == 2:
            raise Killed
        write(state, path)
        written.append(state.done)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, 'SAVE_EVERY', -1)
        patch.setattr(evaluation.EvaluationState, 'write', killed_after_two)
        with pytest.raises(Killed):
            run()
    assert json.loads((tmp_path / 'out/state.json').read_text())['done'] == written[-1] == 2
    assert run() == 0
    resumed = np.load(tmp_path / 'out/confusion.npy')
    assert run('--force') == 0
    assert np.array_equal(np.load(tmp_path / 'out/confusion.npy'), resumed)


def test_a_broken_image_stops_it_and_mended_it_goes_on(drawn, run, tmp_path, capsys):
    places, _, ids = drawn
    label = Path(places['voc_dir'], 'SegmentationClass', f'{ids[3]}.png')
    whole = label.read_bytes()
    try:
        label.write_bytes(whole[:100])
        assert run() == 2
        assert f'{ids[3]}.png: broken PNG' in capsys.readouterr().err
        assert json.loads((tmp_path / 'out/state.json').read_text())['done'] == 3
    finally:
        label.write_bytes(whole)
    assert run() == 0


def test_what_is_scored_is_not_scored_again_unless_forced(
    drawn, run, tmp_path, monkeypatch, capsys
):
    assert run() == 0
    first = (tmp_path / 'out/scores.json').read_bytes()
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert run('--voc-dir', f'{drawn[0]["voc_dir"]}/../VOC2011') == 0
        assert 'are scored already; --force' in capsys.readouterr().out
        assert run('--force') == 130
    assert run('--predictions') == 0
    assert (tmp_path / 'out/scores.json').read_bytes() == first


def test_predictions_asked_for_later_are_made_from_the_first_image_on(
    drawn, run, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run() == 130
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run('--predictions') == 130
    assert 'without all predictions, so this starts over' in capsys.readouterr().out
    assert run() == 0  # goes on, and makes no more of them
    assert len(list((tmp_path / 'out/predictions').iterdir())) == 2
    assert run('--predictions') == 0
    assert 'without all predictions, so this starts over' in capsys.readouterr().out
    assert len(list((tmp_path / 'out/predictions').iterdir())) == len(drawn[2])
    next((tmp_path / 'out/predictions').iterdir()).unlink()
    assert run('--predictions') == 0
    assert len(list((tmp_path / 'out/predictions').iterdir())) == len(drawn[2])


def test_another_precision_says_what_it_changes(drawn, run, tmp_path, capsys):
    assert run() == 0
    exact = np.load(tmp_path / 'out/confusion.npy')
    capsys.readouterr()
    assert run('--precision', 'bf16', '--force') == 0
    said = capsys.readouterr().err
    assert said.count('bf16 against fp32 on the first image: ') == 1
    assert '% of the pixels have the same class, scores differ by at most ' in said
    rounded = np.load(tmp_path / 'out/confusion.npy')
    assert rounded.sum() == exact.sum() and not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).sum() < 0.05 * exact.sum()


def test_another_scorings_state_is_refused_and_stays(drawn, run, tmp_path, capsys):
    assert run() == 0
    state = (tmp_path / 'out/state.json').read_bytes()
    other = save_random(voc_fcn8s.fcn('deploy', **NARROW), tmp_path / 'other.caffemodel', seed=1)
    coarse = save_random(voc_fcn32s.fcn('deploy', **NARROW), tmp_path / 'coarse.caffemodel')
    for what, again in (
        ('weights', lambda: run(weights=other)),
        ('images', lambda: run('--split', 'val')),
        ('precision', lambda: run('--precision', 'bf16')),
        ('net and weights', lambda: run(net='voc_fcn32s', weights=coarse)),
    ):
        capsys.readouterr()
        assert again() == 2
        assert f'state.json: of another scoring, whose {what} differ' in capsys.readouterr().err
        assert (tmp_path / 'out/state.json').read_bytes() == state
    assert run('--force', weights=other) == 0


DAMAGES = [
    lambda text: text[: len(text) // 2],
    lambda text: '[]',
    lambda text: json.dumps({**json.loads(text), 'of': None}),
    lambda text: json.dumps({**json.loads(text), 'tasks': [{}]}),
]


def test_a_broken_state_is_refused(run, tmp_path, capsys):
    assert run() == 0
    path = tmp_path / 'out/state.json'
    whole = path.read_text()
    for damage in DAMAGES:
        capsys.readouterr()
        path.write_text(damage(whole))
        assert path.read_text() != whole and run() == 2
        assert 'state.json: not ' in one_line(capsys)
    assert run('--force') == 0


def test_labels_that_have_changed_under_the_same_ids_are_not_scored_already(
    drawn, run, tmp_path, capsys
):
    places, _, ids = drawn
    copy = tmp_path / 'copy'
    shutil.copytree(places['voc_dir'], copy)
    assert run() == 0
    expected = (tmp_path / 'out/scores.json').read_bytes()
    assert run('--voc-dir', copy) == 0, 'the same files elsewhere'
    label = copy / 'SegmentationClass' / f'{ids[1]}.png'
    other = Image.open(label)
    other.putpixel((3, 3), 1 + other.getpixel((3, 3)) % 2)
    other.save(label)
    assert run('--voc-dir', copy) == 2
    message = f'state.json: of other pictures or labels: 1 of 5 have changed, first {ids[1]}; '
    assert message in one_line(capsys)
    assert (tmp_path / 'out/scores.json').read_bytes() == expected
    assert run('--voc-dir', copy, '--force') == 0
    assert (tmp_path / 'out/scores.json').read_bytes() != expected


def write_changed(model, path, change):
    """Write the weights of `model` to `path`, changed."""
    net = prototxt.parse_net('name: "x"')
    blobs = {
        layer.name: [blob.array().copy() for blob in layer.blobs]
        for layer in caffemodel.read(model)
    }
    change(blobs)
    for name in blobs:
        net.layer.add(name=name, type='Convolution')
    caffemodel.write(path, net, blobs)
    return path


def test_weights_that_are_not_finite_are_refused_before_scoring(drawn, run, tmp_path, capsys):
    def spoil(blobs):
        blobs['fc7'][1][2] = np.nan

    assert run(weights=write_changed(drawn[1], tmp_path / 'nan.caffemodel', spoil)) == 2
    assert 'nan.caffemodel: layer fc7, blob 1: ' in one_line(capsys)
    assert not (tmp_path / 'out').exists()


def test_scores_that_are_not_finite_are_warned_of(drawn, run, tmp_path, capsys):
    def blow_up(blobs):
        for name in ('conv1_1', 'fc6', 'fc7', 'score_fr'):
            blobs[name][0] *= 1e30

    assert run(weights=write_changed(drawn[1], tmp_path / 'big.caffemodel', blow_up)) == 0
    found = capsys.readouterr()
    assert 'Warning: ' in found.err and 'big.caffemodel: the loss is nan' in found.err


def test_on_a_full_disk_the_scores_are_printed_before_the_error(run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        assert run() == 2
    printed = capsys.readouterr()
    assert 'mean IU ' in printed.out and 'class' in printed.out
    assert printed.err.splitlines()[-1] == (
        f'error: {tmp_path}/out/confusion.npy: not written: No space left on device'
    )
    assert 'state.json: not written' in printed.err


def test_a_folder_that_cannot_be_written_is_told_before_scoring(run, tmp_path, monkeypatch, capsys):
    def refused(path, flags, *mode, **given):
        if flags & os.O_CREAT and str(path).endswith('.lock'):
            raise OSError(30, 'Read-only file system', str(path))
        return plain(path, flags, *mode, **given)

    plain = os.open
    (tmp_path / 'out').mkdir()
    monkeypatch.setattr(os, 'open', refused)
    monkeypatch.setattr(score.Evaluation, 'count', lambda *_: pytest.fail('it scored'))
    assert run() == 2
    assert one_line(capsys) == f'error: {tmp_path}/out: not written to: Read-only file system'


def test_a_folder_that_another_process_scores_into_is_refused(run, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    # A lock belongs to the open file, so this one counts as another process's.
    with open(tmp_path / 'out/.lock', 'w') as lock:
        lock.write('4711 on elsewhere')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run() == 2
    assert f'{tmp_path}/out: process 4711 on elsewhere works in it' in one_line(capsys)
    assert run() == 0


@pytest.mark.parametrize(
    'name', ['confusion.npy', 'classes.png', 'scores.json', 'report.html', 'predictions/{}.png']
)
def test_a_file_of_the_user_is_not_replaced_without_force(drawn, run, tmp_path, capsys, name):
    mine = tmp_path / 'out' / name.format(drawn[2][1])
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    if name == 'report.html':  # a run's folder is not that of a scoring
        (tmp_path / 'out/log.jsonl').touch()
    options = ['--report'] * (name == 'report.html') + ['--predictions'] * ('/' in name)
    for _ in range(2):  # the refusal leaves nothing that a later call takes for its own
        assert run(*options) == 2
        assert one_line(capsys) == (
            f'error: {mine}: exists and is not a result of score.py; --force replaces it, '
            '--output names another folder'
        )
    assert mine.read_text() == '{"mine": 1}'
    if name == 'classes.png':
        assert run('--force', charts=True) == 0 and figures.is_drawing(mine)
        (tmp_path / 'out/state.json').unlink()
        assert run() == 0, 'its own scores are a record too'


def test_a_file_that_a_scoring_does_not_write_is_no_hindrance(run, tmp_path):
    (tmp_path / 'out').mkdir()
    for name in ('report.html', 'errors.png', 'confusion_sem.png'):
        (tmp_path / 'out' / name).write_text('mine')
    assert run() == 0
    assert (tmp_path / 'out/report.html').read_text() == 'mine'


def test_killed_before_it_saved_it_takes_its_predictions_for_its_own(run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self, state):
        if state.done:
            raise Killed
        return save(self, state)

    save = evaluation.Evaluation._save
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluation, '_save', killed)
        with pytest.raises(Killed):
            run('--predictions')
    assert any((tmp_path / 'out/predictions').iterdir())
    assert run('--predictions') == 0


def test_a_report_shows_the_worst_and_best_pictures_also_of_a_scoring_that_was_stopped(
    drawn, run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run() == 130
    assert run('--report', '--errors') == 0
    errors = Image.open(tmp_path / 'out/errors.png').convert('RGB')
    reds = (np.array(errors) == (200, 30, 40)).all(2)
    # The last of four columns alone shows errors.
    assert reds[:, 3 * errors.width // 4 :].any() and not reds[:, : errors.width // 2].any()
    page = (tmp_path / 'out/report.html').read_text()
    assert all(f'alt="prediction for {name}"' in page for name in drawn[2])
    state = json.loads((tmp_path / 'out/state.json').read_text())
    order = [name for _, name in sorted(zip([each[0] for each in state['mean_iu']], drawn[2]))]
    worst = page.partition('<h3>Worst</h3>')[2]
    assert worst.index(f'alt="{order[0]}"') < worst.index(f'alt="{order[1]}"')
    assert order[0] not in page.partition('<h3>Worst</h3>')[0].partition('<h3>Best</h3>')[2]


def test_a_scoring_outlives_its_terminal(run, monkeypatch):
    found = []
    numbers = signal.SIGHUP, signal.SIGTERM
    monkeypatch.setattr(score, 'score_net', lambda _: found.extend(map(signal.getsignal, numbers)))
    before = [*map(signal.getsignal, numbers)]
    assert run() == 0
    assert found == [signal.SIG_IGN, signal.default_int_handler]
    assert [*map(signal.getsignal, numbers)] == before


def test_the_gpu_may_be_named_in_its_place_or_by_the_option(drawn, run, monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(score, 'score_net', lambda args: chosen.append(args.gpu))
    for given in (['0'], ['--gpu', '0'], []):
        assert run(*given) == 0
    assert chosen == [0, 0, None]
    assert run('1', '--gpu', '2') == 2
    assert 'GPU 2 and GPU 1: one expected' in capsys.readouterr().err


# Nets, weights and splits.


def test_weights_of_every_kind_score_the_same(drawn, run, tmp_path):
    assert run() == 0
    expected = np.load(tmp_path / 'out/confusion.npy')
    for suffix in ('.pth', '.safetensors', '.npz', '.caffemodel.h5'):
        weights.write(tmp_path / f'other{suffix}', weights.read(drawn[1]))
        assert run('--force', weights=tmp_path / f'other{suffix}') == 0
        assert np.array_equal(np.load(tmp_path / 'out/confusion.npy'), expected)


def test_a_training_split_is_gone_through_in_order_each_image_once(drawn, run, tmp_path):
    places, _, _ = drawn
    assert run('--split', 'train', '--predictions') == 0
    ids = (tmp_path / 'out/predictions').iterdir()
    listed = Path(places['sbdd_dir'], 'train.txt').read_text().split()
    assert sorted(path.stem for path in ids) == sorted(listed)
    hist = counted(
        [
            (
                scipy.io.loadmat(f'{places["sbdd_dir"]}/cls/{name}.mat')['GTcls']['Segmentation'][
                    0, 0
                ].astype(int),
                pixels(tmp_path / f'out/predictions/{name}.png'),
            )
            for name in listed
        ],
        21,
    )
    assert np.array_equal(np.load(tmp_path / 'out/confusion.npy'), hist)


def test_a_prototxt_scores_as_the_experiment_does_on_its_split_or_another(
    drawn, run, tmp_path, monkeypatch
):
    places, path, ids = drawn
    assert run() == 0
    expected = json.loads((tmp_path / 'out/scores.json').read_text())
    file, out = tmp_path / 'val.prototxt', tmp_path / 'plain'
    prototxt.write(voc_fcn8s.fcn('seg11valid', **places, **NARROW), file)
    assert call(monkeypatch, score.main, file, path, '--output', out) == 0
    found = json.loads((out / 'scores.json').read_text())
    assert {**found, 'of': None} == {**expected, 'of': None}
    assert (
        call(
            monkeypatch,
            score.main,
            file,
            path,
            '--split',
            'val',
            '--predictions',
            '--output',
            tmp_path / 'val',
        )
        == 0
    )
    listed = voc.segmentation_list(places['voc_dir'], 'val').read_text().split()
    assert listed != ids
    assert sorted(p.stem for p in (tmp_path / 'val/predictions').iterdir()) == sorted(listed)


def test_by_default_the_folder_is_named_for_net_weights_and_split(
    drawn, tmp_path, monkeypatch, capsys
):
    places, path, _ = drawn
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, score.main, 'voc_fcn8s', path, '--voc-dir', places['voc_dir']) == 0
    assert (tmp_path / 'output/score/voc_fcn8s-random-seg11valid/scores.json').is_file()
    assert 'the official seg11valid has 736 images' in capsys.readouterr().err


# What is refused.


def one_line(capsys):
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and printed.endswith(errors[0] + '\n'), printed
    return errors[0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['voc_fcn7s', '{w}'],
            'voc_fcn7s: no such file, nor an experiment; those are nyud_fcn32s_col',
        ),
        (['voc_fcn8s', '{tmp}/none.pth'], 'none.pth'),
        (['voc_fcn8s', '{tmp}/weights.txt'], 'weights.txt: expected a name that ends in'),
        (['voc_fcn16s', '{w}'], 'random.caffemodel: does not fit the net: 1 layer missing'),
        (['voc_fcn8s', '{w}', '--split', 'nothing'], 'nothing.txt: no such file'),
        (['voc_fcn8s', '{w}', '--split', '../val'], "'../val' is not an id"),
        (
            ['voc_fcn8s', '{w}', '--voc-dir', '{tmp}/nowhere', '--split', 'val'],
            'nowhere: no such folder; --voc-dir says where it is',
        ),
        (
            ['voc_fcn8s', '{w}', '--nyud-dir', '{tmp}'],
            "--nyud-dir: not a folder of this net's data; those are --sbdd-dir and --voc-dir",
        ),
        (
            ['{tmp}/deploy.prototxt', '{w}'],
            'deploy.prototxt: no data layer of solve/datasets in it',
        ),
        (
            ['voc_fcn8s', '{w}', '--output', '{tmp}/deploy.prototxt'],
            'deploy.prototxt: cannot be made',
        ),
    ],
)
def test_what_cannot_be_scored_is_said_in_one_line(
    arguments, message, drawn, tmp_path, monkeypatch, capsys
):
    places, path, _ = drawn
    prototxt.write(voc_fcn8s.fcn('deploy', **NARROW), tmp_path / 'deploy.prototxt')
    monkeypatch.chdir(tmp_path)
    given = [each.format(w=path, tmp=tmp_path) for each in arguments]
    if '--voc-dir' not in given and '--nyud-dir' not in given and '.prototxt' not in given[0]:
        given += ['--voc-dir', places['voc_dir']]
    assert call(monkeypatch, score.main, *given) == 2
    assert message in one_line(capsys)


def test_weights_wider_than_the_net_ask_for_no_more_memory_than_its_own(run, tmp_path, capsys):
    wide = np.zeros((5000, 3, 3, 3), np.float32)
    net = prototxt.parse_net('layer { name: "conv1_1" type: "Convolution" }')
    caffemodel.write(tmp_path / 'wide.caffemodel', net, {'conv1_1': [wide, wide[:, 0, 0, 0]]})
    assert run(weights=tmp_path / 'wide.caffemodel') == 2
    assert '1 layer of other shapes' in one_line(capsys)


# The picture.


def test_rows_of_the_confusion_picture_are_shares_of_their_class(tmp_path):
    dark = {}
    for name, hist in (
        ('uneven', [[1000, 0], [0, 10]]),
        ('even', [[10, 0], [0, 10]]),
        ('half', [[5, 5], [0, 10]]),
    ):
        figures.draw_confusion(np.array(hist), ['a', 'b'], tmp_path / f'{name}.png')
        picture = np.array(Image.open(tmp_path / f'{name}.png').convert('RGB'))
        full = (np.array(colormaps['Blues'](1.0)[:3]) * 255).round().astype(int)
        dark[name] = (abs(picture.astype(int) - full).max(2) <= 1).sum()
    assert dark['uneven'] == dark['even'] > 1.8 * dark['half'] > 0


def test_scores_that_are_not_defined_are_null_and_not_nan():
    written = json.dumps(evaluation.to_json(Scores(np.diag([3, 0])), ['a', 'b']))
    assert 'NaN' not in written
    assert json.loads(written)['classes']['b'] == {'accuracy': None, 'iu': None}
