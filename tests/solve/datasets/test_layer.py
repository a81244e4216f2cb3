"""The base of all data layers: the order of images, reading ahead, param_str."""

import copy
import json
import threading

import pytest

import caffe_port
from caffe_port import Blob
from caffe_port.errors import CaffeError
from solve.datasets import voc
from solve.datasets.images import read_rgb
from solve.datasets.layer import Order, Params
from tests.solve.feeding import IDS, Tree, fed, make, step


@pytest.fixture
def sbd(tmp_path):
    return Tree('sbd', tmp_path)


# The order of images.


def test_first_picks_of_8498_images_are_the_published_ones(sbd):
    order, picks = Order(8498, True, 1337), []
    for _ in range(6):
        picks.append(order.index)
        order.advance()
    assert picks == [5249, 4531, 3108, 4978, 1408, 7005]
    sbd.path('split', 'train').write_text('\n'.join(f'2008_{i:06d}' for i in range(8498)))
    layer = voc.SBDDSegDataLayer()
    layer.param_str = repr({**sbd.params, 'split': 'train', 'seed': 1337})
    layer.setup([], [Blob(), Blob()])
    assert layer.state()['index'] == 5249


@pytest.mark.parametrize('split', ['train', 'val'])
def test_state_resumes_the_order(sbd, split):
    layer, tops = sbd.make(split)
    fed(layer, tops, 5)
    state = json.loads(json.dumps(layer.state()))
    expected = fed(layer, tops, 9)
    other, other_tops = sbd.make(split)
    fed(other, other_tops, 2)
    other.set_state(state)
    assert fed(other, other_tops, 9) == expected


def test_a_copied_layer_goes_on_by_itself(sbd):
    layer, tops = sbd.make('train')
    fed(layer, tops, 3)
    other = copy.deepcopy(layer)
    assert fed(other, [Blob(), Blob()], 6) == fed(layer, tops, 6)


def test_foreign_states_are_refused_and_change_nothing(sbd):
    layer, _ = sbd.make('train')
    good = layer.state()
    words = good['random']
    changes = (
        {'count': 4}, {'index': 3}, {'index': -1}, {'index': True}, {'random': None},
        {'random': words[:-1]}, {'random': words[:-1] + [9999]}, {'random': ['x'] * 625},
        {'random': 5}, {'random': [-1] * 625}, {'skipped': []},
    )  # fmt: skip
    for bad in ({}, None, [1], *({**good, **change} for change in changes)):
        with pytest.raises(CaffeError, match='state of the data order'):
            layer.set_state(bad)
    assert layer.state() == good


# Reading ahead.


def test_no_image_is_read_twice(sbd, monkeypatch):
    read = []
    monkeypatch.setattr(voc, 'read_rgb', lambda path: (read.append(path.stem), read_rgb(path))[1])
    layer, tops = sbd.make()
    assert read == IDS[:1]
    fed(layer, tops, 5)
    layer.reshape([], tops)
    layer.reshape([], tops)
    assert read == (IDS * 2)[:6]


def test_next_image_is_read_while_the_net_works(sbd):
    layer, tops = sbd.make()
    begun, load = threading.Event(), layer.load
    layer.load = lambda name: (begun.set(), load(name))[1]
    layer.forward([], tops)
    assert begun.wait(10)
    assert layer.current == IDS[0]


def test_reading_ahead_keeps_no_process_alive(sbd):
    layer, tops = sbd.make()
    release, load = threading.Event(), layer.load
    layer.load = lambda name: (release.wait(30), load(name))[1]
    layer.forward([], tops)
    readers = [thread for thread in threading.enumerate() if thread.name == f'load {IDS[1]}']
    release.set()
    assert len(readers) == 1 and readers[0].daemon


def test_error_of_reading_ahead_comes_with_the_next_reshape(sbd):
    path = sbd.path('image', IDS[1])
    whole = path.read_bytes()
    path.write_bytes(b'')
    layer, tops = sbd.make()
    layer.forward([], tops)
    for _ in range(2):
        with pytest.raises(CaffeError, match=f'{IDS[1]}.jpg: not a JPEG'):
            layer.reshape([], tops)
        assert layer.current == IDS[0]
    path.write_bytes(whole)
    assert step(layer, tops) == IDS[1]


# param_str.


@pytest.mark.parametrize(
    'param_str',
    [
        "__import__('pathlib').Path({marker!r}).touch()",
        "dict(split='train')",
        '{{',
        '',
        'None',
        "['split']",
        '-' * 60_000 + '1',
        "{{'split': }}",
        "{{'split': open({marker!r}, 'w')}}",
    ],
)
def test_param_str_runs_no_code(tmp_path, param_str):
    marker = tmp_path / 'ran'
    with pytest.raises(CaffeError, match='Layer: param_str must be a dict literal'):
        Params.parse('Layer', param_str.format(marker=str(marker)))
    assert not marker.exists()


def test_a_param_str_above_64_kib_is_refused_before_it_is_parsed(monkeypatch):
    longest = repr({'split': 'x' * (2**16 - 13)})
    assert len(longest) == 2**16
    assert len(Params.parse('Layer', longest).text('split')) == 2**16 - 13
    monkeypatch.setattr('ast.literal_eval', None)
    with pytest.raises(CaffeError, match='Layer: param_str has 65537 characters, at most 65536'):
        Params.parse('Layer', longest + ' ')


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'split': 3}, "'split' must be a string, got 3"),
        ({'split': '../train'}, "'../train' is not an id"),
        ({'sbdd_dir': None}, "'sbdd_dir' must be a string, got None"),
        ({'mean': (1, 2)}, "'mean' must be 3 numbers"),
        ({'mean': (1, 2, float('1e999'))}, 'param_str'),
        ({'mean': 'abc'}, "'mean' must be 3 numbers, got 'abc'"),
        ({'mean': (1, 2, True)}, "'mean' must be 3 numbers"),
        ({'seed': '1337'}, "'seed' must be a whole number"),
        ({'randomize': 'no'}, "'randomize' must be True or False"),
    ],
)
def test_wrong_params_are_named(sbd, changed, message):
    with pytest.raises(CaffeError) as error:
        sbd.make(**{'split': 'train', **changed})
    assert message in str(error.value) and 'SBDDSegDataLayer' in str(error.value)


@pytest.mark.parametrize('key', ['sbdd_dir', 'split'])
def test_missing_params_are_named(sbd, key):
    params = {**sbd.params, 'split': 'train'}
    del params[key]
    with pytest.raises(CaffeError, match=f"SBDDSegDataLayer: param_str lacks '{key}'"):
        make(voc.SBDDSegDataLayer, 2, **params)


def test_errors_have_the_name_of_the_net_s_layer(tmp_path):
    path = tmp_path / 'net.prototxt'
    path.write_text(
        'layer { name: "data" type: "Python" top: "data" top: "label" python_param { '
        'module: "voc_layers" layer: "SBDDSegDataLayer" param_str: "{}" } }'
    )
    with pytest.raises(CaffeError, match=r'data \(Python\): SBDDSegDataLayer: param_str lacks'):
        caffe_port.Net(str(path), caffe_port.TEST)
