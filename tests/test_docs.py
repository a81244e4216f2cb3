"""What the pages say is so: their code runs, their tables are computed anew, their flags exist."""

import io
import logging
import os
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.__main__ import TOOLS, main
from caffe_port.files import weights
from caffe_port.ops.base import LAYER_TYPES
from caffe_port.tools import compute_image_mean, convert_imageset
from caffe_port.tools.brew import COMMANDS
from caffe_port.tools.brew import FLAGS as BREW_FLAGS
from nets import voc_fcn8s, voc_fcn16s, voc_fcn32s

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'SECURITY', 'CHANGELOG')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
BLOCK = re.compile(r'^```python\n(.*?)^```', re.M | re.S)
ROW = re.compile(r'^\| (.*) \|$', re.M)


def blocks(page):
    return BLOCK.findall((ROOT / page).read_text())


def rows(page, first):
    """The rows of numbers of the table whose head begins with `first`, as lists of cells."""
    text = (ROOT / page).read_text()
    table = text[text.index(f'| {first} |') :].partition('\n\n')[0]
    return [line.split(' | ') for line in ROW.findall(table)][2:]


@pytest.fixture
def contributed():
    """What CONTRIBUTING's examples define, run from top to bottom."""
    names = {}
    try:
        for block in blocks('CONTRIBUTING.md'):
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
    (block,) = blocks('README.md')
    exec(block, names)
    assert names['labels'].shape == (1, 40, 40)
    assert names['score'].shape == (1, 21, 500, 500)


def test_sizes_of_the_page_on_offsets_are_the_nets():
    net = caffe.Net(voc_fcn32s.fcn('deploy', width=2, fc=4), caffe.TEST)
    names = ['conv1_1', *(f'pool{i}' for i in range(1, 6)), 'score_fr', 'upscore']
    table = rows('docs/offsets.md', 'image')
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
    for net, crop, offset in rows('docs/offsets.md', 'net'):
        assert found[net, crop] == offset
    for block in blocks('docs/offsets.md'):
        exec(block, {})


def commands():
    """Each `python FILE ...` and `python -m MODULE ...` of the pages, in blocks and in tables."""
    for page in PAGES:
        text = page.read_text().replace('\\\n', ' ')
        for line in re.findall(
            r'(?:python(?: -m)?|torchrun [^`\n]*?) '
            r'((?:(?:solve|caffe_port|tests)/|caffe_port[. ])[^`\n]*)',
            text,
        ):
            command = re.split(r' && |;|\.\.\.$', line)[0].strip()
            yield pytest.param(command, id=f'{page.name}: {command[:60]}')


@pytest.mark.parametrize('command', list(commands()))
def test_commands_of_the_pages_are_there_and_take_their_flags(command, monkeypatch):
    script, *arguments = shlex.split(command.replace('...', ''))
    path = ROOT / script
    flags = [argument for argument in arguments if argument.startswith('--')]
    monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
    said = io.StringIO()
    if '/' in script:
        assert path.is_file(), script
        monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
        monkeypatch.delitem(sys.modules, '_checkout', raising=False)
        with redirect_stdout(said), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name='__main__')
    elif script == 'caffe_port':  # its usage ends with status 1; its own page's test has the rest
        assert arguments[0] in {*COMMANDS, *TOOLS, 'NAME'}
        if arguments[0] in COMMANDS:
            assert {flag[2:].split('=')[0] for flag in flags} <= set(BREW_FLAGS)
        return
    else:
        with redirect_stdout(said), pytest.raises(SystemExit) as ended:
            runpy.run_module(script, run_name='__main__')
    assert not ended.value.code
    for flag in flags:
        assert re.search(rf'{flag}\b', said.getvalue()), f'{script} has no {flag}'


def write_what_the_tools_need(folder):
    """The files that docs/caffe-tools.md begins with."""
    (folder / 'images').mkdir()
    random = np.random.RandomState(0)
    for name in ('train', 'test'):
        lines = []
        for i in range(6):
            pixels = (random.randint(0, 99, (8, 8)) + 150 * (i % 2)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / 'images' / f'{name}{i}.png')
            lines.append(f'{name}{i}.png {i % 2}\n')
        (folder / 'images' / f'{name}.txt').write_text(''.join(lines))
    (folder / 'train_val.prototxt').write_text(
        ''.join(
            'layer { name: "d" type: "Data" top: "data" top: "label" '
            f'include {{ phase: {phase} }} data_param {{ source: "{name}_lmdb" '
            'backend: LMDB batch_size: 2 } '
            'transform_param { mean_file: "mean.binaryproto" scale: 0.01 } }'
            for phase, name in (('TRAIN', 'train'), ('TEST', 'test'))
        )
        + 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { '
        'num_output: 2 weight_filler { type: "xavier" } } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
    )
    (folder / 'solver.prototxt').write_text(
        'net: "train_val.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 40 snapshot: 20 '
        'display: 20 snapshot_prefix: "snap"'
    )
    for suffix in ('prototxt', 'caffemodel'):
        old = ROOT / 'tests/golden/formats' / f'legacy_v1.{suffix}'
        (folder / f'old.{suffix}').write_bytes(old.read_bytes())
    (folder / 'old_solver.prototxt').write_text('net: "x" solver_type: ADAM')


def test_commands_of_the_page_on_caffes_tools_run(tmp_path, monkeypatch):
    pytest.importorskip('lmdb')
    write_what_the_tools_need(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'docs/caffe-tools.md').read_text()
    commands = re.findall(r'^    python -m caffe_port (.*)$', text, re.M)
    assert {command.split()[0] for command in commands} == {*COMMANDS, *TOOLS} - {'device_query'}
    for command in commands:
        arguments, _, target = command.partition(' 2> ')
        handler = logging.FileHandler(target or os.devnull)
        logging.getLogger('caffe_port').addHandler(handler)
        try:
            assert main(shlex.split(arguments)) == 0, command
        finally:
            logging.getLogger('caffe_port').removeHandler(handler)
            handler.close()
    results = 'train_lmdb', 'mean.binaryproto', 'train.log.train', 'features', 'new.caffemodel'
    assert all((tmp_path / name).exists() for name in results)


def test_the_page_on_caffes_tools_names_every_flag_and_no_other():
    table = {
        re.search(r'`(\w+)', name)[1]: set(re.findall(r'--(\w+)', arguments))
        for name, arguments in (
            row.split(' | ', 1) for row in ROW.findall((ROOT / 'docs/caffe-tools.md').read_text())
        )
        if name in {f'`{each}`' for each in (*COMMANDS, *TOOLS)}
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
    (block,) = blocks('docs/own-data.md')
    pets = type(sys)('pets')
    monkeypatch.setitem(sys.modules, 'pets', pets)
    exec(block, pets.__dict__)
    net = caffe.Net(pets.fcn('train', folder=str(tmp_path), width=2, fc=4), caffe.TRAIN)
    net.forward()
    assert net.blobs['label'].data[0, 0, :, 0].tolist() == [255, *[2] * 6]
    assert net.blobs['score'].shape == (1, 3, 7, 9)
