"""What the pages say is so: their Python runs, and their tables are computed anew."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.files import weights
from caffe_port.ops.base import LAYER_TYPES
from caffe_port.tools import compute_image_mean, convert_imageset
from caffe_port.tools.brew import COMMANDS
from caffe_port.tools.brew import FLAGS as BREW_FLAGS
from nets import voc_fcn8s, voc_fcn16s, voc_fcn32s
from tests.docs.pages import PAGES, list_blocks, list_rows


@pytest.fixture
def contributed():
    """What CONTRIBUTING's examples define, run from top to bottom."""
    names = {}
    try:
        for block in list_blocks('CONTRIBUTING.md'):
            exec(block, names)
        yield names
    finally:
        LAYER_TYPES.pop('Mish', None)


def test_the_examples_of_contributing_are_a_layer_and_a_net(contributed):
    assert LAYER_TYPES['Mish'] is contributed['Mish']
    net = caffe.Net(contributed['fcn']('deploy', width=2, fc=4), caffe.TEST)
    net.blobs['data'].reshape(1, 3, 20, 30)
    net.reshape()
    assert net.forward()['score'].shape == (1, 2, 20, 30)


def test_the_example_of_a_data_set_feeds_a_net(contributed, tmp_path, monkeypatch):
    (tmp_path / 'train.txt').write_text('one\n')
    Image.new('RGB', (9, 7), (10, 20, 30)).save(tmp_path / 'one.jpg', quality=100)
    Image.new('L', (9, 7), 1).save(tmp_path / 'one.png')
    module = type(sys)('roads')
    module.RoadsLayer = contributed['RoadsLayer']
    monkeypatch.setitem(sys.modules, 'roads', module)
    net = caffe.Net(contributed['fcn']('train', folder=str(tmp_path), width=2, fc=4), caffe.TRAIN)
    net.forward()
    assert (net.blobs['label'].data == 1).all()
    assert net.blobs['data'].data[0, :, 0, 0] == pytest.approx([-74, -97, -114], abs=3)


def test_the_example_of_a_file_kind_goes_both_ways(contributed, tmp_path, monkeypatch):
    monkeypatch.setitem(weights.READERS, '.json', contributed['read_json'])
    monkeypatch.setitem(weights.WRITERS, '.json', contributed['write_json'])
    monkeypatch.setattr(weights, 'SUFFIXES', (*weights.SUFFIXES, '.json'))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / 'a.npz', **{'fc.weight': array})
    weights.write(tmp_path / 'b.json', weights.read(tmp_path / 'a.npz'))
    (layer,) = weights.read(tmp_path / 'b.json')
    assert layer.name == 'fc' and np.array_equal(layer.blobs[0].array(), array)
    (tmp_path / 'c.json').write_text('{"a": ')
    with pytest.raises(caffe.CaffeError, match='c.json: no JSON of nested lists'):
        weights.read(tmp_path / 'c.json')


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    net = caffe.Net(voc_fcn8s.fcn('deploy', width=2, fc=4), caffe.TEST)
    (tmp_path / 'deploy.prototxt').write_text(str(voc_fcn8s.fcn('deploy', width=2, fc=4)))
    for name in ('weights.caffemodel', 'fcn8s-heavy-pascal.caffemodel'):
        net.save(str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip('torch')
    names = dict(image=np.zeros((3, 500, 500), np.float32), tensor=torch.zeros(1, 3, 40, 40))
    (block,) = list_blocks('README.md')
    exec(block, names)
    assert names['labels'].shape == (1, 40, 40)
    assert names['score'].shape == (1, 21, 500, 500)


def test_sizes_of_the_page_on_offsets_are_the_nets():
    net = caffe.Net(voc_fcn32s.fcn('deploy', width=2, fc=4), caffe.TEST)
    names = ['conv1_1', *(f'pool{i}' for i in range(1, 6)), 'score_fr', 'upscore']
    table = list_rows('docs/offsets.md', 'image')
    assert len(table) == 5
    for size, *sides in table:
        net.blobs['data'].reshape(1, 3, int(size), int(size))
        net.reshape()
        assert list(map(int, sides)) == [net.blobs[name].height for name in names], size


def test_offsets_of_the_page_are_the_nets():
    found = {}
    for title, module in (('FCN-32s', voc_fcn32s), ('FCN-16s', voc_fcn16s), ('FCN-8s', voc_fcn8s)):
        for layer in module.fcn('deploy').layer:
            if layer.type == 'Crop':
                first, second = layer.bottom
                second = 'the image' if second == 'data' else second
                found[title, f'{first} to {second}'] = str(layer.crop_param.offset[0])
    for net, crop, offset in list_rows('docs/offsets.md', 'net'):
        assert found[net, crop] == offset
    for block in list_blocks('docs/offsets.md'):
        exec(block, {})


def test_the_page_on_caffes_tools_names_every_flag_and_no_other():
    table = {
        name.strip('`'): set(re.findall(r'--(\w+)', ' '.join(arguments)))
        for name, *arguments in list_rows('docs/caffe-tools.md', 'Command')
    }
    assert set().union(*(table[name] for name in COMMANDS)) == set(BREW_FLAGS)
    for tool in (convert_imageset, compute_image_mean):
        assert table[tool.__name__.rpartition('.')[2]] == set(tool.FLAGS)


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
            assert '://' in target or (page.parent / target).exists(), f'{page.name}: {target}'


def test_the_data_layer_of_the_page_on_own_data_feeds_a_net(tmp_path, monkeypatch):
    (tmp_path / 'train.txt').write_text('one\n')
    Image.new('RGB', (9, 7), (10, 20, 30)).save(tmp_path / 'one.jpg', quality=100)
    mask = np.full((7, 9), 3, np.uint8)
    mask[0] = 0
    Image.fromarray(mask).save(tmp_path / 'one.png')
    (block,) = list_blocks('docs/own-data.md')
    pets = type(sys)('pets')
    monkeypatch.setitem(sys.modules, 'pets', pets)
    exec(block, pets.__dict__)
    net = caffe.Net(pets.fcn('train', folder=str(tmp_path), width=2, fc=4), caffe.TRAIN)
    net.forward()
    assert net.blobs['label'].data[0, 0, :, 0].tolist() == [255, *[2] * 6]
    assert net.blobs['score'].shape == (1, 3, 7, 9)
