"""Own pictures and classes: what the preflight finds, how the recipe scales, a whole tiny run."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import prototxt
from nets import vgg16, voc_fcn8s, voc_fcn8s_atonce, voc_fcn16s, voc_fcn32s, voc_fcn_alexnet
from solve import finetune, infer, score
from solve import voc_fcn32s as script
from solve.run import experiments, figures, log, preflight
from solve.run.adaptation import find_class_layers, scale_constants, start_from
from solve.samples import classifiers
from tests.solve.small import blank_figures

CLASSES = ('sky', 'tree', 'car')
WIDTHS = dict(width=2, fc=4)
SIZE = (20, 28)


def save_mask(path, numbers, palette=True):
    image = Image.fromarray(numbers.astype(np.uint8))
    if palette:
        image.putpalette([*range(256)] * 3)
    image.save(path)


@pytest.fixture
def data(tmp_path):
    """Six pictures, a third of each in each class, their masks and classes.txt."""
    rng = np.random.RandomState(3)
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    for number in range(6):
        mask = np.repeat(rng.permutation(3), [8, 10, 10])[None].repeat(SIZE[0], 0)
        rgb = (mask[..., None] * 90 + rng.randint(0, 30, (*SIZE, 3))).astype(np.uint8)
        Image.fromarray(rgb).save(tmp_path / 'images' / f'p{number}.jpg', quality=95)
        save_mask(tmp_path / 'labels' / f'p{number}.png', mask)
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    return tmp_path


def run(monkeypatch, *arguments):
    """Run finetune.py; return its exit status, 0 where it ends by itself."""
    monkeypatch.setattr(sys, 'argv', ['finetune.py', *map(str, arguments)])
    try:
        finetune.main()
    except SystemExit as ended:
        return ended.code
    return 0


def check(data, monkeypatch, capsys, *others):
    """Run --check; return the status and what was said on stderr."""
    status = run(
        monkeypatch, '--check', '--images', data / 'images', '--labels', data / 'labels',
        '--classes', data / 'classes.txt', *others,
    )  # fmt: skip
    return status, capsys.readouterr().err


def test_sound_data_pass(data, monkeypatch, capsys):
    status, said = check(data, monkeypatch, capsys)
    assert status == 0 and 'problem' not in said


def shrink(data):
    save_mask(data / 'labels' / 'p1.png', np.zeros((20, 27)))


def number(data):
    save_mask(data / 'labels' / 'p1.png', np.full(SIZE, 7))


def jpeg(data):
    (data / 'labels' / 'p1.png').unlink()
    Image.new('L', SIZE[::-1]).save(data / 'labels' / 'p1.jpg')


def hidden_jpeg(data):
    Image.new('L', SIZE[::-1]).save(data / 'labels' / 'p1.png', format='JPEG')


def colour(data):
    Image.new('RGB', SIZE[::-1]).save(data / 'labels' / 'p1.png')


def no_mask(data):
    (data / 'labels' / 'p1.png').unlink()


def no_picture(data):
    (data / 'images' / 'p1.jpg').unlink()


def twice(data):
    Image.new('RGB', SIZE[::-1]).save(data / 'images' / 'p1.png')


def other_kind(data):
    Image.new('RGB', SIZE[::-1]).save(data / 'images' / 'p9.bmp')


def broken(data):
    path = data / 'images' / 'p1.jpg'
    path.write_bytes(path.read_bytes()[:200])


def turned(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', SIZE[::-1]).save(data / 'images' / 'p1.jpg', exif=exif)


def deep(data):
    (data / 'images' / 'p1.jpg').unlink()
    Image.fromarray(np.full(SIZE, 900, np.uint16)).save(data / 'images' / 'p1.png')


def two_valued(data):
    for path in (data / 'labels').iterdir():
        save_mask(path, np.repeat([0, 255], [20, 8])[None].repeat(SIZE[0], 0), palette=False)


def empty(data):
    for path in [*(data / 'images').iterdir(), *(data / 'labels').iterdir()]:
        path.unlink()


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (shrink, r'labels/p1\.png: mask of 20 x 27 \(height x width\), its picture is 20 x 28'),
        (number, r'labels/p1\.png: .*label 7 at row 0, column 0; 0\.\.2 or 255 \(void\) expected'),
        (jpeg, r'labels/p1\.jpg: expected \.png: JPEG changes the numbers'),
        (hidden_jpeg, r'labels/p1\.png: a JPEG, which changes'),
        (colour, r'labels/p1\.png: colour mask \(mode RGB\)'),
        (no_mask, r'images/p1\.jpg: no mask p1\.png in'),
        (no_picture, r'labels/p1\.png: no picture of this stem'),
        (twice, r'images/p1\.png: p1\.jpg has the same stem'),
        (other_kind, r'images/p9\.bmp: expected \.jpg or'),
        (broken, r'images/p1\.jpg: broken JPEG'),
        (turned, r'images/p1\.jpg: EXIF orientation 6'),
        (deep, r'images/p1\.png: 16-bit grey'),
        (two_valued, r'only class in its masks is sky.*29 % are 255.*--map 0=0,255=1'),
        (empty, r'images: no picture in it'),
    ],
)
def test_each_fault_is_told_with_file_and_value(spoil, expected, data, monkeypatch, capsys):
    spoil(data)
    status, said = check(data, monkeypatch, capsys)
    assert status == 2 and re.search(expected, said), said
    assert re.search(r'error: .*problems? with pictures and masks', said)


@pytest.mark.parametrize(
    'train, val, expected',
    [
        ('p0\np1\n', 'p1\np2\n', 'p1: in train and in val'),
        ('', 'p1\n', r'train\.txt: empty'),
        ('p0\nq\n', 'p1\n', 'train.txt: line 2: no picture q in '),
        ('p0\np0\n', 'p1\n', r'train\.txt: p0 is in it 2 times'),
        ('p0.jpg x.png\n', 'p1\n', r'line 1: .*labels/x\.png: no such file'),
        ('p0\n', 'copy\n', r'images/p0\.jpg of train and .*copy\.jpg of val are the same picture'),
    ],
)
def test_faults_of_lists_are_told(train, val, expected, data, monkeypatch, capsys):
    (data / 'images' / 'copy.jpg').write_bytes((data / 'images' / 'p0.jpg').read_bytes())
    (data / 'labels' / 'copy.png').write_bytes((data / 'labels' / 'p0.png').read_bytes())
    for name, text in (('train', train), ('val', val)):
        (data / f'{name}.txt').write_text(text)
    lists = ['--train-list', data / 'train.txt', '--val-list', data / 'val.txt']
    status, said = check(data, monkeypatch, capsys, *lists)
    assert status == 2 and re.search(expected, said), said


@pytest.mark.parametrize(
    'others, expected',
    [
        (['--map', '7=3'], '--map 7=3: no class 3; there are 0..2 and 255'),
        (['--map', 'a=1'], "--map 'a=1': expected NUMBER=CLASS"),
        (['--map', '1=1,1=2'], '1 is in it twice'),
        (['--val-share', '1'], '--val-share 1: between 0 and 1'),
        (['--train-list', 'x'], '--train-list and --val-list go together'),
        (['--net', 'nyud_fcn32s_color'], 'a net whose number of classes is open; those are voc_'),
        (['--iterations', '0'], '--iterations 0: must be positive'),
    ],
)
def test_wrong_options_are_told(others, expected, data, monkeypatch, capsys):
    status, said = check(data, monkeypatch, capsys, *others)
    assert status == 2 and expected in said


def test_a_map_makes_classes_of_a_strangers_numbers(data, monkeypatch, capsys):
    for path in (data / 'labels').iterdir():
        save_mask(path, np.array([7, 26, 11])[np.asarray(Image.open(path))], palette=False)
    assert check(data, monkeypatch, capsys)[0] == 2
    assert check(data, monkeypatch, capsys, '--map', '7=0,26=2,*=255')[0] == 0


def test_the_share_is_drawn_from_the_seed():
    pairs = [preflight.Pair(str(i), None, None) for i in range(50)]
    train, val = preflight.split_pairs(pairs, 0.2, 5)
    assert len(val) == 10 and sorted(train + val) == sorted(pairs)
    assert (train, val) == preflight.split_pairs(pairs, 0.2, 5)
    assert val != preflight.split_pairs(pairs, 0.2, 6)[1]


def test_the_rate_falls_as_the_pixels_grow():
    """A quarter of the pixels makes a quarter of the summed gradient: four times the rate."""
    recipe = scale_constants(script.SOLVER, True, 8498, 500 * 375 / 4)
    assert recipe.constants['base_lr'] == pytest.approx(4e-10)
    assert recipe.constants['max_iter'] == 100000 and recipe.constants['momentum'] == 0.99
    assert 'last 100 images' in recipe.why[1]
    assert scale_constants(script.SOLVER, False, 10, 5).constants['base_lr'] == 1e-10
    assert scale_constants(script.SOLVER, True, 10, 5, 7, 0.5).constants['base_lr'] == 0.5


@pytest.mark.parametrize(
    'net', [voc_fcn32s, voc_fcn16s, voc_fcn8s, voc_fcn8s_atonce, voc_fcn_alexnet]
)
def test_every_layer_of_classes_follows_their_number(net):
    scores, ups = find_class_layers(net.fcn, 3)
    assert all(name.startswith('score') for name in scores) and 'score_fr' in scores
    assert len(ups) == len(scores) and all(name.startswith('upscore') for name in ups)
    outputs = {layer.convolution_param.num_output for layer in net.fcn('deploy', classes=3).layer}
    assert 21 not in outputs


def test_weights_of_other_classes_leave_scores_at_zero_or_come_first(tmp_path):
    rng = np.random.RandomState(0)
    old = caffe.Net(voc_fcn16s.fcn('deploy', **WIDTHS), caffe.TEST)
    for blobs in old.params.values():
        for blob in blobs:
            blob.data[...] = rng.randn(*blob.shape)
    old.save(tmp_path / 'old.caffemodel')
    layers = find_class_layers(voc_fcn8s.fcn, 23)
    for keep in (False, True):
        net = caffe.Net(voc_fcn8s.fcn('deploy', classes=23, **WIDTHS), caffe.TEST)
        start_from(net, tmp_path / 'old.caffemodel', *layers, keep)
        assert np.array_equal(net.params['fc6'][0].data, old.params['fc6'][0].data)
        new = net.params['score_fr'][0].data
        assert not new[21:].any()
        assert np.array_equal(new[:21], old.params['score_fr'][0].data) if keep else not new.any()
        assert not net.params['score_pool3'][0].data.any()  # FCN-16s has none
        assert net.params['upscore8'][0].data[5, 5].any()


def test_a_classifier_has_no_classes_to_keep(tmp_path):
    classifier(tmp_path / 'start.caffemodel')
    net = caffe.Net(voc_fcn32s.fcn('deploy', classes=23, **WIDTHS), caffe.TEST)
    layers = find_class_layers(voc_fcn32s.fcn, 23)
    with pytest.raises(caffe.CaffeError, match='start.caffemodel: no classes to keep'):
        start_from(net, tmp_path / 'start.caffemodel', *layers, True)


def test_scores_of_as_many_classes_as_before_start_anew_too(tmp_path):
    net = caffe.Net(voc_fcn32s.fcn('deploy', **WIDTHS), caffe.TEST)
    for blobs in net.params.values():
        blobs[0].data[...] = 1
    net.save(tmp_path / 'old.caffemodel')
    start_from(net, tmp_path / 'old.caffemodel', *find_class_layers(voc_fcn32s.fcn, 21), False)
    assert net.params['fc7'][0].data.all()
    net2 = caffe.Net(voc_fcn32s.fcn('deploy', **WIDTHS), caffe.TEST)
    start_from(net2, tmp_path / 'old.caffemodel', *find_class_layers(voc_fcn32s.fcn, 21), False)
    assert net2.params['fc7'][0].data.all() and not net2.params['score_fr'][0].data.any()


def test_skips_learn_at_the_rates_of_their_stages():
    param = finetune.Plan('voc_fcn8s', [*CLASSES], {}).make_net_param('train', 'lists')
    rates = {layer.name: [p.lr_mult for p in layer.param] for layer in param.layer}
    assert rates['score_fr'] == [1, 2]
    assert rates['score_pool4'] == pytest.approx([1e-2, 2e-2])
    assert rates['score_pool3'] == pytest.approx([1e-4, 2e-4])
    atonce = finetune.Plan('voc_fcn8s_atonce', [*CLASSES], {}).make_net_param('train', 'lists')
    assert [layer.param[0].lr_mult for layer in atonce.layer if layer.name == 'score_pool3'] == [1]


def classifier(path, **widths):
    net = caffe.Net(vgg16.classifier(10, size=193, **{**WIDTHS, **widths}), caffe.TEST)
    rng = np.random.RandomState(1)
    for weight, _ in net.params.values():
        weight.data[...] = rng.randn(*weight.shape) * np.sqrt(2 / weight.data[0].size)
    net.save(path)


@pytest.mark.parametrize(
    'start, others, expected, read',
    [
        (None, [], '--weights is needed', False),
        ('no.caffemodel', [], 'no.caffemodel: No such file', False),
        ('start.caffemodel', ['--keep-classes'], 'no classes to keep', True),
        ('start.caffemodel', ['--net', 'voc_fcn_alexnet'], 'lacks conv1, ', True),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    start, others, expected, read, data, monkeypatch, capsys
):
    classifier(data / 'start.caffemodel')
    monkeypatch.chdir(data)
    before = sorted(data.iterdir())
    own = ['--images', 'images', '--labels', 'labels', '--classes', 'classes.txt']
    own += ['--weights', start] if start else []
    assert run(monkeypatch, *own, *others, '--output', 'run') == 2
    said = capsys.readouterr()
    assert expected in said.err and ('all read' in said.out) == read
    assert sorted(data.iterdir()) == before


def test_a_whole_run_stops_resumes_scores_and_labels(data, monkeypatch, capsys):
    classifier(data / 'start.caffemodel')
    monkeypatch.chdir(data)
    own = [
        '--images', 'images', '--labels', 'labels', '--classes', 'classes.txt', '--net',
        'voc_fcn32s', '--weights', 'start.caffemodel', '--output', 'run',
    ]  # fmt: skip
    named, panels, draw = [], [], figures.draw_panel

    def draw_panel(titles, rows, path):
        named.extend(rows[0][-1].names)
        panels.append(len(rows))
        draw(titles, rows, path)

    monkeypatch.setattr(figures, 'draw_panel', draw_panel)
    assert run(monkeypatch, *own, '--iterations', '20', '--base-lr', '1e-6') == 0
    assert named == [*CLASSES]
    assert panels == [len((data / 'run/lists/val.txt').read_text().splitlines())]
    said = capsys.readouterr().out
    assert 'momentum    0.99' in said and 'Best: mean IU' in said
    folder, weights = data / 'run', data / 'run/snapshot/train_iter_20.caffemodel'
    for name in ('log.jsonl', 'curve.png', 'panel.png', 'train.prototxt', 'val.prototxt'):
        assert (folder / name).is_file(), name
    assert (folder / 'snapshot/classes.txt').read_text().split() == [*CLASSES]
    assert len([line for line in log.read(folder) if 'mean_iu' in line]) == 10
    plan = json.loads((folder / 'finetune.json').read_text())
    assert plan['arguments'] == WIDTHS and plan['constants']['base_lr'] == 1e-6

    assert run(monkeypatch, '--resume', 'latest', '--output', 'run', '--iterations', '22') == 0
    assert (folder / 'snapshot/train_iter_22.caffemodel').is_file()

    monkeypatch.setattr(
        sys, 'argv', ['score.py', 'run/val.prototxt', str(weights), '--output', 'scores']
    )
    score.main()
    found = json.loads((data / 'scores/scores.json').read_text())
    assert [*found['classes']] == [*CLASSES]
    logged = [line for line in log.read(folder) if line['iteration'] == 20 and 'mean_iu' in line]
    assert found['mean_iu'] == pytest.approx(logged[0]['mean_iu'])

    capsys.readouterr()
    for net in ('voc_fcn32s', 'run/snapshot/deploy.prototxt'):
        monkeypatch.setattr(
            sys, 'argv', ['infer.py', net, str(weights), 'images/p0.jpg', '--output', net[:3]]
        )
        infer.main()
        (line,) = capsys.readouterr().out.splitlines()
        path, _, shares = line.partition(': ')
        assert path == f'{net[:3]}/p0_labels.png' and (data / path).is_file()
        assert {share.split()[0] for share in shares.split(', ')} <= {*CLASSES}
    assert experiments.name_classes(None, len(CLASSES), weights) == [*CLASSES]


def test_without_pictures_it_draws_its_own_and_trains(tmp_path, monkeypatch, capsys):
    """An earlier sample's classifier is taken; here one with random weights, for the way's sake."""
    monkeypatch.chdir(tmp_path)
    blank_figures(monkeypatch)
    monkeypatch.setattr(finetune, 'SAMPLE_IMAGES', 8)
    (tmp_path / 'output/other-sample').mkdir(parents=True)
    narrow = {**WIDTHS, **classifiers.make_net_arguments('vgg16')}
    narrow.pop('drop')
    classifier(tmp_path / 'output/other-sample/vgg16-narrow.caffemodel', **narrow)
    assert run(monkeypatch, '--labels', 'x') == 2
    assert '--labels needs --images' in capsys.readouterr().err
    assert run(monkeypatch, '--net', 'voc_fcn32s', '--iterations', '2') == 0
    folder = tmp_path / 'output/finetune-sample'
    assert (folder / 'snapshot/classes.txt').read_text().split() == ['background', 'bus', 'sheep']
    assert len([*(folder / 'data/images').iterdir()]) == 8
    assert len((folder / 'lists/val.txt').read_text().splitlines()) == 2
    assert [line['iteration'] for line in log.read(folder) if 'mean_iu' in line] == [2]


def test_the_deploy_net_takes_a_picture(data):
    plan = finetune.Plan('voc_fcn8s', [*CLASSES], {}, arguments=WIDTHS)
    prototxt.write(plan.make_net_param('deploy', data), data / 'deploy.prototxt')
    net = caffe.Net(str(data / 'deploy.prototxt'), caffe.TEST)
    net.blobs['data'].reshape(1, 3, 20, 28)
    net.reshape()
    assert net.forward()['score'].shape == (1, 3, 20, 28)


@pytest.mark.parametrize(
    'text, expected', [('one\n', '1 names'), ('', '0 names'), ('a\na\n', "'a' is in it 2 times")]
)
def test_lists_of_classes_that_are_none_are_refused(text, expected, tmp_path):
    (tmp_path / 'classes.txt').write_text(text)
    with pytest.raises(caffe.CaffeError, match=expected):
        experiments.read_classes(tmp_path / 'classes.txt')


def test_help_begins_with_an_example_and_fits_a_screen():
    text = finetune._make_parser().format_help()
    assert text.startswith('usage: finetune.py --images') and 'exit status' in text
    assert len(text.splitlines()) <= 45


def test_a_sample_that_was_stopped_before_its_net_trains_starts_again(
    tmp_path, monkeypatch, capsys
):
    def end_with(error):
        def train(*_):
            raise error

        monkeypatch.setattr(classifiers, 'train_classifier', train)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finetune, 'SAMPLE_IMAGES', 10)
    end_with(KeyboardInterrupt())
    assert run(monkeypatch) == 130
    said = capsys.readouterr().err
    assert 'to go on: ' in said and '--resume latest --output output/finetune-sample' in said
    end_with(caffe.CaffeError('trains again'))
    assert run(monkeypatch, '--resume', 'latest') == 2
    printed = capsys.readouterr()
    assert 'the sample starts again' in printed.out and 'error: trains again' in printed.err
    assert [path.name for path in (tmp_path / 'output').iterdir()] == ['finetune-sample']
