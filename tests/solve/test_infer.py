"""The command infer.py: its labels at every size and for every kind of input, and its refusals."""

import shutil

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import prototxt
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
    image = Image.open(f'predictions/{name}.png')
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
        assert line.startswith(f'predictions/{file[0]}.png: {first} {counts.max() / best.size:.1%}')
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


def test_an_overlay_is_half_picture_half_colours(folder, monkeypatch):
    path = save_random(voc_fcn8s.fcn('deploy', **NARROW), folder / 'w.caffemodel', seed=8)
    assert call(monkeypatch, infer.main, 'voc_fcn8s', path, 'a.png', '--overlay') == 0
    colours = np.array(Image.open('predictions/a.png').convert('RGB')).astype(int)
    assert np.array_equal(pixels('predictions/a_overlay.png'), (pixels('a.png') + colours) // 2)


def test_an_overlay_does_not_take_the_place_of_another_picture(folder, monkeypatch, capsys):
    path = save_random(voc_fcn8s.fcn('deploy', **NARROW), folder / 'w.caffemodel', seed=8)
    shutil.copy('a.png', 'a_overlay.png')
    assert (
        call(monkeypatch, infer.main, 'voc_fcn8s', path, 'a.png', 'a_overlay.png', '--overlay') == 2
    )
    assert "a_overlay.png is another picture's already" in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('voc_fcn8s w.caffemodel none.jpg', 'none.jpg: no such file'),
        ('voc_fcn8s w.caffemodel a.png b.jpg w.caffemodel', 'w.caffemodel: not a JPEG or PNG file'),
        ('voc_fcn8s w.caffemodel a.png a.png', 'two pictures named a: one would replace the other'),
        ('voc_fcn8s w.caffemodel a.png --output .', 'a.png: is in the output folder'),
        ('voc_fcn8s w.caffemodel a.png --output b.jpg', 'b.jpg: cannot be made'),
        ('voc_fcn16s w.caffemodel a.png', 'w.caffemodel: does not fit the net: 1 layers missing'),
        ('train.prototxt w.caffemodel a.png', 'train.prototxt: no Input layer'),
        ('trunk.prototxt w.caffemodel a.png', "no output is of the image's size, 37 x 61"),
        (
            'nyud_fcn32s_color_d w.caffemodel a.png depth.png b.jpg',
            '3 files given, 2 needed for each picture: color, depth',
        ),
        (
            'nyud_fcn32s_color_d w.caffemodel b.jpg depth.png',
            'b.jpg: input depth: expected 1 x 1 x 50 x 43, found 1 x 1 x 37 x 61',
        ),
        (
            'nyud_fcn32s_color_d w.caffemodel a.png hha.png',
            'hha.png: PNG of mode RGB, must be grey',
        ),
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
    del param.layer[12:]
    prototxt.write(param, folder / 'trunk.prototxt')
    assert call(monkeypatch, infer.main, *arguments.split()) == 2
    printed = capsys.readouterr().err
    assert printed.startswith('error: ') and printed.count('\n') == 1 and message in printed


def test_a_picture_is_not_overwritten_by_its_labels(folder, monkeypatch):
    path, before = (
        save_random(voc_fcn8s.fcn('deploy', **NARROW), folder / 'w.caffemodel'),
        (folder / 'a.png').read_bytes(),
    )
    assert call(monkeypatch, infer.main, 'voc_fcn8s', path, 'a.png', '--output', folder) == 2
    assert (folder / 'a.png').read_bytes() == before
    assert call(monkeypatch, infer.main, 'voc_fcn8s', path, 'b.jpg', '--output', folder) == 0
    assert (folder / 'b.png').is_file() and (folder / 'b.jpg').is_file()
