"""The command infer.py: its labels at every size and for every kind of input, and its refusals."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import parallel, prototxt
from caffe_port.plan import planner
from caffe_port.plan.layout import Layout
from nets import (
    nyud_fcn32s_color_d,
    nyud_fcn32s_color_hha,
    nyud_fcn32s_hha,
    siftflow_fcn16s,
    voc_fcn8s,
    voc_fcn_alexnet,
)
from solve import infer
from solve.datasets import nyud, siftflow, voc
from solve.run import labelling, tiles
from tests.solve.feeding import noise
from tests.solve.scored import NARROW, call, save_random

HEIGHT, WIDTH = 37, 61


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a working directory with pictures of every kind."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise('a', HEIGHT, WIDTH, 3)).save('a.png')
    Image.fromarray(noise('b', 50, 43, 3)).save('b.jpg')
    Image.fromarray(noise('hha', HEIGHT, WIDTH, 3)).save('hha.png')
    depth = noise('depth', HEIGHT, WIDTH).astype(np.uint16) * 30 + 700
    Image.fromarray(depth).save('depth.png')
    return tmp_path


def pixels(path):
    return np.array(Image.open(path)).astype(int)


def bgr(path, mean):
    """Read a picture as the release feeds it: 1 x 3 x H x W, BGR minus mean."""
    return (pixels(path)[:, :, ::-1] - np.array(mean)).transpose(2, 0, 1)[np.newaxis]


def scores(param, path, **inputs):
    """Compute the scores of a net as a user of pycaffe does."""
    net = caffe.Net(param, str(path), caffe.TEST)
    for name, array in inputs.items():
        net.blobs[name].reshape(*array.shape)
        net.blobs[name].data[...] = array
    net.forward()
    return {name: net.blobs[name].data[0].copy() for name in net.outputs}


def written(name='a'):
    """Read the classes in a palette PNG of VOC's colours."""
    image = Image.open(f'predictions/{name}_labels.png')
    assert image.mode == 'P'
    assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    return np.array(image)


@pytest.mark.parametrize('net', [voc_fcn8s, voc_fcn_alexnet])
def test_pictures_of_any_size_get_the_best_class_of_each_pixel(net, folder, monkeypatch, capsys):
    name, param = net.__name__.removeprefix('nets.'), net.fcn('deploy', **NARROW)
    path = save_random(param, folder / 'w.caffemodel', seed=8)
    assert call(monkeypatch, infer.main, name, path, 'a.png', 'b.jpg') == 0
    printed = capsys.readouterr().out.splitlines()
    for line, file in zip(printed, ('a.png', 'b.jpg'), strict=True):
        best = scores(param, path, data=bgr(file, voc.MEAN))['score'].argmax(0)
        assert best.shape == pixels(file).shape[:2] and len(np.unique(best)) > 1
        assert np.array_equal(written(file[0]), best)
        numbers, counts = np.unique(best, return_counts=True)
        first = voc.CLASSES[numbers[counts.argmax()]]
        assert line.startswith(
            f'predictions/{file[0]}_labels.png: {first} {100 * counts.max() / best.size:.1f} %'
        )
    assert not list(folder.glob('predictions/*overlay*'))


def test_both_tasks_of_sift_flow_are_written(folder, monkeypatch, capsys):
    param = siftflow_fcn16s.fcn('deploy', **NARROW)
    path = save_random(param, folder / 'w.caffemodel')
    assert call(monkeypatch, infer.main, 'siftflow_fcn16s', path, 'a.png') == 0
    expected = scores(param, path, data=bgr('a.png', siftflow.MEAN))
    for task in ('sem', 'geo'):
        assert np.array_equal(written(f'a_{task}'), expected[f'score_{task}'].argmax(0))
    printed = capsys.readouterr().out
    for names, line in zip((siftflow.SEMANTIC, siftflow.GEOMETRIC), printed.splitlines()):
        assert line.split(': ')[1].split(' ')[0] in names


@pytest.mark.parametrize(
    'net, files, inputs',
    [
        (nyud_fcn32s_hha, ['hha.png'], {'data': 'hha'}),
        (nyud_fcn32s_color_d, ['a.png', 'depth.png'], {'color': 'color', 'depth': 'depth'}),
        (nyud_fcn32s_color_hha, ['a.png', 'hha.png'], {'color': 'color', 'hha': 'hha'}),
    ],
)
def test_nyud_nets_see_what_their_data_layer_would_show_them(
    net, files, inputs, folder, monkeypatch
):
    name, param = net.__name__.removeprefix('nets.'), net.fcn('deploy', **NARROW)
    path = save_random(param, folder / 'w.caffemodel', seed=6)
    raw = {
        'color': bgr('a.png', nyud.MEAN),
        'hha': (pixels('hha.png') - np.array(nyud.MEAN_HHA)).transpose(2, 0, 1)[np.newaxis],
        'depth': (np.log(pixels('depth.png')) - nyud.MEAN_LOG_DEPTH)[np.newaxis, np.newaxis],
    }
    expected = scores(param, path, **{top: raw[kind] for top, kind in inputs.items()})['score']
    assert call(monkeypatch, infer.main, name, path, *files) == 0
    best = written(files[0][:-4])
    # Depths are float32: at a single pixel they may tip the balance between equal scores.
    gap = np.sort(expected, 0)
    assert ((best == expected.argmax(0)) | (gap[-1] - gap[-2] < 1e-4 * abs(expected).max())).all()
    assert len(np.unique(best)) > 1
    for top, file in zip(inputs, files):
        read = infer.make_reader(name, top, nyud.MEAN)(folder / file)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, raw[inputs[top]], rtol=1e-5, atol=1e-5)


def test_a_deploy_prototxt_takes_the_mean_it_is_expected(folder, monkeypatch, capsys):
    param = voc_fcn8s.fcn('deploy', **NARROW)
    path = save_random(param, folder / 'w.caffemodel', seed=8)
    prototxt.write(param, 'deploy.prototxt')
    assert call(monkeypatch, infer.main, 'deploy.prototxt', path, 'a.png') == 0
    plain = written()
    assert np.array_equal(
        plain, scores(param, path, data=bgr('a.png', voc.MEAN))['score'].argmax(0)
    )
    assert capsys.readouterr().out.split(': ')[1].split(' ')[0].isdecimal()
    assert (
        call(monkeypatch, infer.main, 'deploy.prototxt', path, 'a.png', '--mean', 10, 200, -300.5)
        == 0
    )
    expected = scores(param, path, data=bgr('a.png', (10, 200, -300.5)))['score'].argmax(0)
    assert np.array_equal(written(), expected) and not np.array_equal(plain, expected)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('voc_fcn8s w.caffemodel none.jpg', 'none.jpg: no such file'),
        ('voc_fcn8s w.caffemodel a.png a.png', 'two pictures named a: one would replace the other'),
        ('voc_fcn8s w.caffemodel a.png --output b.jpg', 'b.jpg: cannot be made'),
        ('voc_fcn16s w.caffemodel a.png', 'w.caffemodel: does not fit the net: 1 layer missing'),
        ('train.prototxt w.caffemodel a.png', 'train.prototxt: no Input layer'),
        ('trunk.prototxt w.caffemodel a.png', "no output is of the image's size"),
        (
            'nyud_fcn32s_color_d w.caffemodel a.png depth.png b.jpg',
            '3 files given, 2 needed for each picture: color, depth',
        ),
        ('nyud_fcn32s_color_d w.caffemodel a.png .', '1 in a.png, 4 in .: as many are needed'),
        ('voc_fcn8s w.caffemodel empty', 'empty: no picture in this folder'),
        ('voc_fcn8s w.caffemodel *.gif', '*.gif: no file matches'),
        ('voc_fcn8s w.caffemodel list.txt', 'list.txt: empty, one picture a line expected'),
        ('voc_fcn8s w.caffemodel a.png --output /proc/self', '/proc/self: no file can be written'),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, message, folder, monkeypatch, capsys):
    net = nyud_fcn32s_color_d if 'color_d' in arguments else voc_fcn8s
    param = net.fcn('deploy', **NARROW)
    save_random(param, folder / 'w.caffemodel')
    (folder / 'train.prototxt').write_text(
        'layer { name: "data" type: "DummyData" top: "data" '
        'dummy_data_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }'
    )
    (folder / 'empty').mkdir()
    (folder / 'list.txt').write_bytes(b'\xef\xbb\xbf\n')
    del param.layer[12:]
    prototxt.write(param, folder / 'trunk.prototxt')
    assert call(monkeypatch, infer.main, *arguments.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 1 and message in printed
    assert not Path('predictions').exists()


def run(monkeypatch, path, *arguments, net='voc_fcn8s'):
    return call(monkeypatch, infer.main, net, path, *arguments)


@pytest.fixture
def weights(folder):
    return save_random(voc_fcn8s.fcn('deploy', **NARROW), folder / 'w.caffemodel', seed=8)


def results(folder='predictions'):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_file_of_another_is_not_replaced_without_force(folder, weights, monkeypatch, capsys):
    before = Path('a.png').read_bytes()
    assert run(monkeypatch, weights, 'a.png', 'b.jpg', '--output', '.', '--overlay') == 0
    assert Path('a.png').read_bytes() == before
    for name in ('a_labels.png', 'a_overlay.png'):
        shutil.copy('hha.png', name)
    capsys.readouterr()
    assert run(monkeypatch, weights, 'b.jpg', 'a.png', '--output', '.', '--overlay') == 2
    printed = capsys.readouterr().err
    assert printed.count('\n') == 1
    assert 'a_labels.png (and 1 more): exists and is not a result of infer.py' in printed
    assert Path('a_labels.png').read_bytes() == Path('hha.png').read_bytes()
    assert run(monkeypatch, weights, 'a.png', '--output', '.', '--overlay', '--force') == 0
    assert Path('a_labels.png').read_bytes() != Path('hha.png').read_bytes()


def test_a_picture_is_never_replaced_by_labels_even_with_force(folder, weights, monkeypatch):
    shutil.copy('a.png', 'b_labels.png')
    before = Path('b_labels.png').read_bytes()
    arguments = 'b.jpg', 'b_labels.png', '--output', '.', '--force'
    assert run(monkeypatch, weights, *arguments) == 2
    assert Path('b_labels.png').read_bytes() == before


def test_results_are_kept_as_long_as_net_weights_mean_and_picture_are_the_same(
    folder, weights, monkeypatch, capsys
):
    computed = []
    label = labelling.begin
    monkeypatch.setattr(labelling, 'begin', lambda *a: computed.append(1) or label(*a))

    def count(*arguments):
        computed.clear()
        assert run(monkeypatch, weights, 'a.png', 'b.jpg', *arguments) == 0
        return len(computed)

    assert count() == 2
    first = results()
    assert count() == 0
    assert '0 of 2 pictures labelled, 2 kept from before' in capsys.readouterr().err
    assert results() == first
    assert count('--force') == 2 and results() == first
    assert count('--overlay') == 2
    assert count('--overlay') == 0
    assert count('--mean', 1, 2, 3) == 2
    Path('predictions/b_labels.png').write_bytes(Path('predictions/b_labels.png').read_bytes()[:60])
    assert run(monkeypatch, weights, 'b.jpg') == 2  # no longer known as ours
    Path('predictions/b_labels.png').unlink()
    assert count() == 2  # a.png has another mean
    Image.fromarray(noise('c', 50, 43, 3)).save('a.png')
    assert count() == 1
    save_random(voc_fcn8s.fcn('deploy', **NARROW), weights, seed=9)
    assert count() == 2 and results() != first


def test_a_stopped_run_goes_on_when_it_is_repeated(folder, weights, monkeypatch, capsys):
    label, computed = labelling.begin, []

    def stop(*arguments):
        if len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(1)
        return label(*arguments)

    monkeypatch.setattr(labelling, 'begin', stop)
    assert run(monkeypatch, weights, 'a.png', 'b.jpg', 'hha.png') == 130
    assert 'of 3 pictures; the same command goes on' in capsys.readouterr().err
    assert list(results()) == ['a_labels.png']
    monkeypatch.setattr(labelling, 'begin', label)
    assert run(monkeypatch, weights, 'a.png', 'b.jpg', 'hha.png') == 0
    assert '2 of 3 pictures labelled' in capsys.readouterr().err
    assert len(results()) == 3


def test_a_bad_picture_is_named_and_the_rest_goes_on(folder, weights, monkeypatch, capsys):
    Path('bad.png').write_bytes(Path('a.png').read_bytes()[:500])
    Path('list.txt').write_text('bad.png\ngone.png\nw.caffemodel\nb.jpg\n')
    assert run(monkeypatch, weights, 'list.txt', 'a.png') == 1
    printed = capsys.readouterr()
    for line in (
        'bad.png: broken picture',
        'gone.png: no such file',
        'w.caffemodel: not a picture',
    ):
        assert f'error: {line}' in printed.err
    assert '3 of 5 pictures could not be labelled' in printed.err
    assert sorted(results()) == ['a_labels.png', 'b_labels.png']


def test_inputs_of_one_picture_that_do_not_fit_are_named(folder, monkeypatch, capsys):
    path = save_random(nyud_fcn32s_color_d.fcn('deploy', **NARROW), folder / 'd.caffemodel')
    for files, message in (
        (('b.jpg', 'depth.png'), 'b.jpg: input depth: expected 1 x 1 x 50 x 43, found 1 x 1 x 37'),
        (('a.png', 'hha.png'), 'hha.png: PNG of mode RGB, must be grey'),
    ):
        assert run(monkeypatch, path, *files, net='nyud_fcn32s_color_d') == 1
        assert f'error: {message}' in capsys.readouterr().err
    assert not Path('predictions').exists()


def test_weights_that_are_nan_are_told_with_their_layer(folder, weights, monkeypatch, capsys):
    net = caffe.Net(voc_fcn8s.fcn('deploy', **NARROW), str(weights), caffe.TEST)
    net.params['conv3_2'][0].data[0, 0, 0, :2] = np.nan, np.inf
    net.save('nan.caffemodel')
    assert run(monkeypatch, 'nan.caffemodel', 'a.png') == 2
    printed = capsys.readouterr()
    assert 'nan.caffemodel: layer conv3_2, blob 0: 2 of ' in printed.err and not printed.out
    assert not Path('predictions').exists()


def test_scores_that_are_nan_are_told_with_the_first_layer(folder, weights, monkeypatch, capsys):
    net = caffe.Net(voc_fcn8s.fcn('deploy', **NARROW), str(weights), caffe.TEST)
    for name in ('conv3_2', 'conv3_3'):
        net.params[name][0].data[...] *= 3e30
    net.save('large.caffemodel')
    assert run(monkeypatch, 'large.caffemodel', 'a.png') == 1
    printed = capsys.readouterr()
    assert 'error: a.png: output score: NaN or infinite scores at ' in printed.err
    assert 'the first layer with such values is conv3_3 (Convolution)' in printed.err
    assert not printed.out and not Path('predictions').exists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--mean', 'nan', '1', '2'), 'nan: a finite number expected'),
        (('--mean', '1', '2', 'inf'), 'inf: a finite number expected'),
        (('--max-memory', 'much'), 'not an amount of memory such as 2G'),
        (('--max-memory', '0'), 'not an amount of memory such as 2G'),
    ],
)
def test_numbers_without_meaning_are_refused(arguments, message, monkeypatch, capsys):
    assert run(monkeypatch, 'w.caffemodel', 'a.png', *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_small_memory_gives_the_labels_of_a_large_one(folder, weights, monkeypatch, capsys):
    Image.fromarray(noise('large', 500, 600, 3)).save('large.png')
    assert run(monkeypatch, weights, 'large.png', '--max-memory', '2G', '--output', 'whole') == 0
    cut = []
    plan = tiles.plan
    monkeypatch.setattr(tiles, 'plan', lambda *a: cut.append(plan(*a)) or cut[0])
    assert run(monkeypatch, weights, 'large.png', '--max-memory', '90M', '--output', 'tiles') == 0
    assert len(cut[0][0]) > 1 and len(cut[0][1]) > 1
    assert results('whole') == results('tiles')


def test_folders_of_color_and_depth_are_paired_in_order(folder, monkeypatch, capsys):
    path = save_random(nyud_fcn32s_color_d.fcn('deploy', **NARROW), folder / 'd.caffemodel')
    for name in ('color', 'depth'):
        Path(name).mkdir()
    for number in (2, 10):
        shutil.copy('a.png', f'color/frame{number}.png')
        shutil.copy('depth.png', f'depth/frame{number}.png')
    assert run(monkeypatch, path, 'color', 'depth', net='nyud_fcn32s_color_d') == 0
    lines = [line.split(':')[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ['predictions/frame2_labels.png', 'predictions/frame10_labels.png']


def test_the_overlays_of_a_run_are_its_pictures_with_a_legend(folder, weights, monkeypatch):
    assert run(monkeypatch, weights, 'a.png', '--overlay') == 0
    drawn, labels = pixels('predictions/a_overlay.png'), written()
    assert drawn.shape[0] > HEIGHT and drawn.shape[1] > WIDTH  # the legend is wider
    assert (labels == 0).any()
    assert np.array_equal(drawn[:HEIGHT, :WIDTH][labels == 0], pixels('a.png')[labels == 0])


def test_the_help_begins_with_an_example_and_names_the_exit_statuses(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '80')
    assert call(monkeypatch, infer.main, '--help') == 0
    text = capsys.readouterr().out
    assert text.index('infer.py voc_fcn8s') < text.index('positional arguments')
    assert 'exit status: 0; 1 if' in text and text.count('\n') <= 40


def test_ranks_share_the_pictures_out(folder, weights, monkeypatch, capsys):
    monkeypatch.setattr(parallel, 'solver_count', lambda: 2)
    monkeypatch.setattr(parallel, 'solver_rank', lambda: 0)
    other = (['of rank 1'], ['bad.png: broken'], 0)
    monkeypatch.setattr(parallel, 'gather', lambda own: [own, other])
    assert run(monkeypatch, weights, 'a.png', 'b.jpg', 'hha.png') == 1
    assert sorted(results()) == ['a_labels.png', 'hha_labels.png']
    printed = capsys.readouterr()
    assert 'of rank 1' in printed.out and 'error: bad.png: broken' in printed.err
    assert '2 of 3 pictures labelled' in printed.err


def test_a_picture_too_large_for_any_tile_is_named(folder, weights, monkeypatch, capsys):
    assert run(monkeypatch, weights, 'a.png', '--max-memory', '1M') == 1
    assert 'error: a.png: a picture of 37 x 61 takes about' in capsys.readouterr().err


def test_the_gpu_may_stand_behind_the_pictures(tmp_path, monkeypatch):
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(infer.options, 'run_net_command', lambda parser, _: found.append(parser))
    infer.main()
    (parser,) = found
    args = parser.parse_intermixed_args(['voc_fcn8s', 'w.pth', 'a.jpg', '1', '--overlay'])
    assert (args.gpu, args.pictures) == (1, [Path('a.jpg')])
    (tmp_path / '1').touch()
    args = parser.parse_intermixed_args(['voc_fcn8s', 'w.pth', 'a.jpg', '1'])
    assert (args.gpu, args.pictures) == (None, [Path('a.jpg'), Path('1')])
    (tmp_path / '1').unlink()
    with pytest.raises(SystemExit):
        parser.parse_intermixed_args(['voc_fcn8s', 'w.pth', 'a.jpg', '1', '--gpu', '0'])


def test_another_precision_says_what_it_changes_and_computes_anew(
    folder, weights, monkeypatch, capsys
):
    assert run(monkeypatch, weights, 'a.png', 'b.jpg') == 0
    exact = {name: written(name) for name in 'ab'}
    capsys.readouterr()
    for again in (False, True):  # the second time all is kept, and nothing is compared
        assert run(monkeypatch, weights, 'a.png', 'b.jpg', '--precision', 'bf16') == 0
        said = re.findall(r'bf16 against fp32 on the first image: (.*)', capsys.readouterr().err)
        assert len(said) == 1 - again
        if said:
            share, apart = re.fullmatch(
                r'(\S+)% of the pixels have the same class, scores differ by at most (\S+) of the '
                r'largest',
                said[0],
            ).groups()
            assert float(share) == pytest.approx(100 * (written() == exact['a']).mean(), abs=1e-3)
            assert 1e-4 < float(apart) < 0.05
    assert run(monkeypatch, weights, 'a.png', 'b.jpg') == 0
    assert all(np.array_equal(written(name), exact[name]) for name in 'ab')


def test_infer_takes_arrays_of_any_strides(folder, weights):
    net = caffe.Net(voc_fcn8s.fcn('deploy', **NARROW), str(weights), caffe.TEST)
    array = bgr('a.png', voc.MEAN).astype(np.float32)
    turned = array[:, :, ::-1].copy()[:, :, ::-1]  # the same values, rows stored upside down
    assert np.array_equal(
        infer.infer(net, {'data': turned})['score'], infer.infer(net, {'data': array})['score']
    )


def test_tf32_is_refused_on_the_cpu(folder, weights, monkeypatch, capsys):
    assert run(monkeypatch, weights, 'a.png', '--precision', 'tf32') == 2
    assert (
        capsys.readouterr().err == 'error: precision tf32: needs a GPU; the CPU computes in fp32\n'
    )


def test_a_plan_labels_pictures(folder, weights, monkeypatch):
    """A net large enough for a plan is computed by it, and the labels are the same."""
    made = []
    plain = Layout.run
    monkeypatch.setattr(Layout, 'run', lambda *a: made.append(1) or plain(*a))
    monkeypatch.setattr(planner, 'LEAST', 0)
    assert run(monkeypatch, weights, 'a.png', 'b.jpg') == 0
    assert len(made) == 2
    planned = {name: written(name) for name in 'ab'}
    assert run(monkeypatch, weights, 'a.png', 'b.jpg', '--force', '--no-plan') == 0
    assert len(made) == 2
    assert all(np.array_equal(written(name), planned[name]) for name in 'ab')
