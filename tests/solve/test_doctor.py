"""doctor.py: what is there and what is missing, scans of broken data, weights fetched."""

import hashlib
import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from nets import vgg16
from solve import doctor
from solve.datasets import voc
from solve.run import inventory
from solve.samples import trees
from solve.samples.trees import write_mat
from tests.solve.serving import PAGE, Answer, serve
from tests.vectors import FACTS


def call(monkeypatch, capsys, *arguments):
    """Run doctor.py in this process; its exit status and what it prints."""
    monkeypatch.setattr(sys, 'argv', ['doctor.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        doctor.main()
    printed = capsys.readouterr()
    return exit.value.code, printed.out, printed.err


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project."""
    monkeypatch.setattr(doctor, 'ROOT', tmp_path)
    return tmp_path


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('drawn')
    for name in ('voc', 'nyud', 'siftflow', 'pascalcontext'):
        trees.draw_dataset(name, folder / name, train=6, val=4)
    return folder


@pytest.fixture
def data(drawn, root):
    """A project with small data sets in the places where the scripts look for them."""
    for name in ('voc', 'nyud', 'siftflow', 'pascalcontext'):
        shutil.copytree(drawn / name, root / 'data', dirs_exist_ok=True)
    return root / 'data'


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    """A small whole .caffemodel."""
    path = tmp_path_factory.mktemp('weights') / 'net.caffemodel'
    caffe.Net(vgg16.classifier(21, 2, 8, size=193, batch=1), caffe.TEST).save(path)
    return path.read_bytes()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with serve() as server:
        yield server


@pytest.fixture
def published(monkeypatch, weights, server):
    """The weights of voc_fcn8s lie on a local server; returns their places."""
    server.answers = [Answer(body=weights)]
    checksum = 'sha1:' + hashlib.sha1(weights).hexdigest()
    places = ['data/voc-fcn16s.caffemodel', 'data/voc-fcn8s.caffemodel']
    for number, place in enumerate(places):
        address = server.url.replace('net.', f'{number}.')
        monkeypatch.setitem(
            inventory.WEIGHTS, place, inventory.Weights(address, len(weights), checksum)
        )
    return places


def state_of(text, what):
    """The states of the rows of a table with this `what`."""
    return re.findall(rf'^  (\S+) +{re.escape(what)}  ', text, re.MULTILINE)


# The table against the facts.


def test_every_experiment_is_there_with_its_officially_published_weights():
    official = json.loads((FACTS / 'official_nets.json').read_text())
    published = {name.replace('-', '_') for name in official}
    assert published == set(inventory.EXPERIMENTS) - {'voc_fcn_googlenet'}
    for name, net in official.items():
        place = f'data/{name}.caffemodel'
        found = inventory.WEIGHTS.get(place)
        assert (found.url if found else None) == net.get('caffemodel_url')
        assert (place in inventory.list_weights(name.replace('-', '_'))) == bool(found)


def test_every_experiment_trains_and_is_scored_on_the_official_splits():
    official = json.loads((FACTS / 'official_nets.json').read_text())
    for name, net in official.items():
        experiment = inventory.EXPERIMENTS[name.replace('-', '_')]
        for split, key in ((experiment.train, 'train_net'), (experiment.test, 'test_net')):
            layer = net[key][0]
            assert split.layer.__name__ == layer['python_param']['layer']
            wanted = layer['python_param']['param_str']
            assert split.params['split'] == wanted['split']
            assert split.params.get('tops') == wanted.get('tops')
            places = {key for key in wanted if key.endswith('_dir')}
            assert all(f'{{{place}}}' in str(split.files) + str(split.lists) for place in places)


def test_numbers_of_images_are_the_published_ones():
    facts = json.loads((FACTS / 'datasets.json').read_text())
    count = {
        name: (experiment.train.images, experiment.test.images)
        for name, experiment in inventory.EXPERIMENTS.items()
    }
    assert count['voc_fcn8s'] == (facts['sbd']['train_images'], facts['seg11valid']['images'])
    assert count['nyud_fcn32s_hha'][1] == facts['nyud']['test_images']
    assert count['siftflow_fcn8s'][1] == facts['siftflow']['test_images']
    assert count['pascalcontext_fcn8s'][1] == facts['pascalcontext']['val_images']


def test_every_script_starts_from_a_file_that_the_table_names():
    for name, experiment in inventory.EXPERIMENTS.items():
        script = (inventory.Path(doctor.__file__).with_name(f'{name}.py')).read_text()
        for place in experiment.start:
            assert f"'{place}'" in script
            assert place in inventory.WEIGHTS


# What is there.


def test_an_empty_project_lacks_everything_and_names_the_addresses(root, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys)
    assert status == 1
    assert '  there ' not in out
    for name in inventory.EXPERIMENTS:
        assert f'\n{name}\n' in f'\n{out}'
    for place, weights in inventory.WEIGHTS.items():
        assert place in out and weights.url in out
    assert '553.4 MB' in out  # what the published VGG16 takes
    assert 'machine' in out and 'memory' in out and 'disk' in out and 'CPU' in out


def test_all_there_is_status_0(data, root, weights, published, monkeypatch, capsys):
    for place in published:
        (root / place).write_bytes(weights)
    status, out, _ = call(monkeypatch, capsys, 'voc_fcn8s')
    assert status == 0
    assert 'missing' not in out and 'broken' not in out
    assert out.count('sha1 as published') == 2
    assert 'to train: ready; to score published weights: ready' in out


@pytest.mark.parametrize('name', inventory.EXPERIMENTS)
def test_data_in_its_place_is_found(data, name, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, name)
    assert status == 1  # weights are missing
    for split in (inventory.EXPERIMENTS[name].train, inventory.EXPERIMENTS[name].test):
        for kind in ('list', *split.files):
            assert state_of(out, f'{split.name}, {kind}') == ['there']


def test_folders_may_be_elsewhere(drawn, root, monkeypatch, capsys):
    tree = drawn / 'voc'
    _, out, _ = call(
        *(monkeypatch, capsys, 'voc_fcn32s'),
        *('--sbdd-dir', tree / 'sbdd/dataset', '--voc-dir', tree / 'pascal/VOC2011'),
    )
    assert state_of(out, 'SBD train, labels') == ['there']
    assert str(tree / 'pascal/VOC2011/JPEGImages') in out


def test_files_of_a_list_that_are_not_there_are_counted(data, monkeypatch, capsys):
    ids = (data / 'sbdd/dataset/train.txt').read_text().split()
    for name in ids[1:3]:
        (data / f'sbdd/dataset/cls/{name}.mat').unlink()
    _, out, _ = call(monkeypatch, capsys, 'voc_fcn32s')
    assert state_of(out, 'SBD train, images') == ['there']
    assert state_of(out, 'SBD train, labels') == ['part']
    assert f'2 of 6 files are not there, first {ids[1]}.mat' in out
    assert 'from http://www.cs.berkeley.edu/~bharath2' in out


def test_broken_lists_and_weights_are_named(data, root, weights, published, monkeypatch, capsys):
    (data / 'sbdd/dataset/train.txt').write_text('../../etc/passwd\n')
    (root / published[0]).write_bytes(weights[: len(weights) // 2])
    (root / published[1]).write_bytes(PAGE)
    status, out, _ = call(monkeypatch, capsys, 'voc_fcn8s')
    assert status == 1
    assert state_of(out, 'SBD train, list') == ['broken']
    assert "train.txt: line 1: '../../etc/passwd' is not an id" in out
    assert state_of(out, 'weights to start from') == state_of(out, 'trained weights') == ['broken']


def test_other_weights_than_the_published_are_there_but_remarked(
    root, weights, monkeypatch, capsys
):
    path = root / 'data/ilsvrc-nets/vgg16.caffemodel'
    path.parent.mkdir(parents=True)
    path.write_bytes(weights)
    status, out, _ = call(monkeypatch, capsys, 'vgg16')
    assert status == 0
    assert 'sha256 is not the published one' in out


def test_an_unknown_experiment_is_an_error(root, monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys, 'voc_fcn4s')
    assert (status, out) == (2, '')
    assert err.startswith('error: voc_fcn4s: no such experiment; there are voc_fcn32s, ')


def test_help_fits_a_screen_and_names_examples_and_statuses(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '100')
    status, out, _ = call(monkeypatch, capsys, '--help')
    assert status == 0
    assert len(out.splitlines()) <= 30
    assert out.index('examples:') < out.index('options:') < out.index('exit status: 0')


# Scans.


@pytest.mark.parametrize('name', ['voc_fcn32s', 'nyud_fcn32s_color_d', 'siftflow_fcn32s'])
def test_a_scan_of_whole_data_finds_nothing_wrong(data, name, monkeypatch, capsys):
    _, out, _ = call(monkeypatch, capsys, name, '--scan')
    assert 'wrong: nothing' in out
    assert out.count(' images read') == 2
    assert '6 of 6 images read' in out and '4 of 4 images read' in out


def test_a_scan_counts_pixels_as_they_are(data, monkeypatch, capsys):
    """Sizes, void share and classes against the label files, read by other means."""
    folder = data / 'pascal/VOC2011'
    listed = (folder / 'ImageSets/Segmentation/val.txt').read_text().split()
    trained_on = (data / 'sbdd/dataset/train.txt').read_text().split()
    labels = [
        np.asarray(Image.open(folder / f'SegmentationClass/{name}.png'))
        for name in listed
        if name not in trained_on
    ]
    pixels = np.bincount(np.concatenate([each.ravel() for each in labels]), minlength=256)
    _, out, _ = call(monkeypatch, capsys, 'voc_fcn32s', '--scan')
    out = out[out.index('VOC 2011 seg11valid: 4 of 4 images read') :]
    assert f'label, void              {100 * pixels[255] / pixels.sum():.1f} %' in out
    absent = [name for name, count in zip(voc.CLASSES, pixels) if not count]
    assert f'{21 - len(absent)} of 21; absent: {", ".join(absent)}\n' in out
    assert f'background {100 * pixels[0] / pixels.sum():.1f} %' in out
    small = min((each.shape for each in labels), key=np.prod)
    assert f'height x width           {small[0]} x {small[1]} to ' in out


def test_a_scan_names_every_fault_with_file_and_value(data, monkeypatch, capsys):
    sbdd, voc_dir = data / 'sbdd/dataset', data / 'pascal/VOC2011'
    ids = (sbdd / 'train.txt').read_text().split()
    # Of the first: a class that is none; the second's image cannot be read; the third is void
    # all over; the fourth's label is smaller than its image; the fifth is listed twice.
    size = Image.open(sbdd / f'img/{ids[0]}.jpg').size
    labels = np.zeros(size[::-1], np.uint8)
    labels[3, 5] = 77
    write_mat(sbdd / f'cls/{ids[0]}.mat', {'GTcls': {'Segmentation': labels}})
    (sbdd / f'img/{ids[1]}.jpg').write_bytes(PAGE)
    size = Image.open(sbdd / f'img/{ids[2]}.jpg').size
    write_mat(
        sbdd / f'cls/{ids[2]}.mat', {'GTcls': {'Segmentation': np.full(size[::-1], 255, np.uint8)}}
    )
    write_mat(sbdd / f'cls/{ids[3]}.mat', {'GTcls': {'Segmentation': np.zeros((7, 9), np.uint8)}})
    with open(sbdd / 'train.txt', 'a') as file:
        file.write(ids[4] + '\n')
    # And one that is trained on is scored on.
    (voc_dir / 'ImageSets/Segmentation/seg11valid.txt').write_text(f'{ids[5]}\n')
    status, out, _ = call(monkeypatch, capsys, 'voc_fcn32s', 'voc_fcn16s', '--scan')
    assert status == 1
    wrong = out[out.index('wrong: 6') :].split('\n\n')[0].splitlines()[1:]
    assert len(wrong) == 6  # each once, though two experiments share the data
    for text in (
        f'train.txt: {ids[4]} is in it more than once',
        f'cls/{ids[0]}.mat: image {ids[0]} has label 77 at row 3, column 5; 0..20 and 255',
        f'img/{ids[1]}.jpg: not a JPEG or PNG file',
        f'train.txt: image {ids[2]} has no label but 255 (void)',
        f'cls/{ids[3]}.mat: label of 7 x 9 (height x width), its image is',
        f'seg11valid.txt: {ids[5]} is in {sbdd / "train.txt"} too',
    ):
        assert any(text in line for line in wrong), text
    assert '3 of 6 images read' in out


def test_a_scan_says_which_data_is_missing(root, monkeypatch, capsys):
    status, out, _ = call(monkeypatch, capsys, 'siftflow_fcn8s', '--scan')
    assert status == 1
    assert 'SIFT Flow test: not scanned' in out
    assert 'data/sift-flow/trainval.txt: SIFT Flow trainval, list: missing' in out


# Weights.


def test_fetch_gets_what_an_experiment_starts_from_and_leads_to(
    data, root, weights, published, server, monkeypatch, capsys
):
    status, out, _ = call(monkeypatch, capsys, 'voc_fcn8s', '--fetch')
    assert status == 0
    # The same file under two addresses here, so both are asked for.
    assert [(root / place).read_bytes() for place in published] == [weights, weights]
    assert len(server.asked) == 2
    assert out.count('sha1 as published') == 2
    assert call(monkeypatch, capsys, 'voc_fcn8s', '--fetch')[0] == 0
    assert len(server.asked) == 2  # what is there is not asked for again


def test_one_published_file_in_two_places_is_fetched_once(
    root, weights, server, monkeypatch, capsys
):
    server.answers = [Answer(body=weights)]
    checksum = 'sha256:' + hashlib.sha256(weights).hexdigest()
    places = ['data/ilsvrc-nets/vgg16.caffemodel', 'data/ilsvrc-nets/vgg16-fcn.caffemodel']
    for place in places:
        monkeypatch.setitem(
            inventory.WEIGHTS, place, inventory.Weights(server.url, len(weights), checksum)
        )
    call(monkeypatch, capsys, 'vgg16', '--fetch')
    assert len(server.asked) == 1
    monkeypatch.setitem(inventory.CLASSIFIERS, 'caffenet', places[1])
    status, out, _ = call(monkeypatch, capsys, 'caffenet', '--fetch')
    assert status == 0 and len(server.asked) == 1
    assert f'{places[1]}: copied from {places[0]}' in out
    assert (root / places[1]).read_bytes() == weights


def test_what_cannot_be_fetched_is_named_and_the_rest_goes_on(
    data, root, weights, published, server, monkeypatch, capsys
):
    server.answers = [Answer(status=404), Answer(body=weights)]
    status, out, err = call(monkeypatch, capsys, 'voc_fcn8s', '--fetch')
    assert status == 2
    assert f'error: {inventory.WEIGHTS[published[0]].url}: HTTP 404' in err
    assert not (root / published[0]).exists()
    assert (root / published[1]).read_bytes() == weights
    assert state_of(out, 'weights to start from') == ['missing']


def test_a_file_that_is_no_weights_is_not_kept(root, server, monkeypatch, capsys):
    server.answers = [Answer(body=b'no protobuf' * 1000)]
    place = 'data/ilsvrc-nets/googlenet.caffemodel'
    monkeypatch.setitem(inventory.WEIGHTS, place, inventory.Weights(server.url))
    status, _, err = call(monkeypatch, capsys, 'googlenet', '--fetch')
    assert status == 2 and 'error: ' in err
    assert list((root / place).parent.iterdir()) == []


def test_a_part_that_is_left_is_remarked(root, monkeypatch, capsys):
    part = root / 'data/ilsvrc-nets/googlenet.caffemodel.part'
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1500))
    _, out, _ = call(monkeypatch, capsys, 'googlenet')
    assert '1.5 kB of it are in googlenet.caffemodel.part' in out


def test_fetch_wants_names(root, monkeypatch, capsys):
    status, _, err = call(monkeypatch, capsys, '--fetch')
    assert status == 2
    assert err == 'error: --fetch: name the experiments whose weights to get\n'


@pytest.mark.parametrize(
    ('nbytes', 'text'),
    [
        (0, '0 bytes'),
        (999, '999 bytes'),
        (1000, '1.0 kB'),
        (553432081, '553.4 MB'),
        (3.2e12, '3.2 TB'),
    ],
)
def test_sizes_read_well(nbytes, text):
    assert inventory.format_size(nbytes) == text
