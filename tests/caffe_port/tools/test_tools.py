"""Caffe's tools: what they write, what they refuse, and with which exit status."""

import csv
import io
import logging
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.__main__ import TOOLS, main
from caffe_port.ops.databases import Records
from caffe_port.proto.caffe_pb2 import BlobProto, DataParameter, Datum, NetParameter
from caffe_port.tools import new_database, parse_log
from tests.formulas import RANDOM
from tests.vectors import GOLDEN, net_of

SIZE = 6, 5
IMAGES = RANDOM(0).randint(0, 256, (4, *SIZE, 3)).astype(np.uint8)  # RGB
BACKENDS = 'lmdb', 'leveldb'


@pytest.fixture(autouse=True)
def packages():
    pytest.importorskip('lmdb')
    pytest.importorskip('plyvel')


@pytest.fixture
def folder(tmp_path):
    for i, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(tmp_path / f'image {i}.png')
    names = [f'image {i}.png {10 + i}\n' for i in range(len(IMAGES))]
    (tmp_path / 'list.txt').write_text(''.join(names))
    return tmp_path


def convert(folder, *flags, name='db', listing='list.txt'):
    return main(
        ['convert_imageset', *flags, f'{folder}/', f'{folder}/{listing}', f'{folder}/{name}']
    )


def records(folder, name='db', backend='lmdb'):
    found = Records(DataParameter.DB.Value(backend.upper()), str(folder / name))
    return [(found.key.decode(), datum) for datum in found.walk()]


def said(caplog):
    return '\n'.join(record.getMessage() for record in caplog.records)


def leftovers(folder):
    return [path.name for path in Path(folder).iterdir() if '.tmp' in path.name]


# convert_imageset.


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dashes', ['-', '--'])
def test_images_become_datums_under_their_number_and_name(folder, backend, dashes, caplog):
    assert convert(folder, f'{dashes}backend', backend) == 0
    found = records(folder, backend=backend)
    assert [key for key, _ in found] == [f'{i:08d}_image {i}.png' for i in range(4)]
    for (_, datum), pixels, label in zip(found, IMAGES, range(10, 14)):
        data = pixels[..., ::-1].transpose(2, 0, 1).tobytes()
        # Byte by byte: of `encoded` Caffe writes that it is false.
        expected = Datum(channels=3, height=6, width=5, data=data, label=label, encoded=False)
        assert datum.SerializeToString() == expected.SerializeToString()
    assert 'A total of 4 images.\nProcessed 4 files.' in said(caplog)
    assert not leftovers(folder)


def test_grey_and_resized_images(folder):
    assert convert(folder, '--gray', '--resize_height=12', '-resize_width=10') == 0
    _, datum = records(folder)[0]
    assert (datum.channels, datum.height, datum.width) == (1, 12, 10)
    assert convert(folder, '--resize_height=12', name='one side alone is none') == 0
    assert records(folder, 'one side alone is none')[0][1].height == 6


def test_shuffle_changes_the_order_and_keys_count_on(folder):
    (folder / 'many.txt').write_text((folder / 'list.txt').read_text() * 10)
    caffe.set_random_seed(1)
    assert convert(folder, '--shuffle', listing='many.txt') == 0
    found = records(folder)
    assert [int(key[:8]) for key, _ in found] == list(range(40))
    labels = [datum.label for _, datum in found]
    assert sorted(labels) == sorted(4 * [10, 11, 12, 13] + 6 * [10, 11, 12, 13])
    assert labels != 10 * [10, 11, 12, 13]


def test_encoded_images_keep_their_bytes_unless_they_must_change(folder):
    assert convert(folder, '--encoded') == 0
    _, datum = records(folder)[1]
    expected = Datum(data=(folder / 'image 1.png').read_bytes(), label=11, encoded=True)
    assert datum.SerializeToString() == expected.SerializeToString()
    assert convert(folder, '--encoded', '--resize_height=3', '--resize_width=4', name='small') == 0
    _, datum = records(folder, 'small')[0]
    assert Image.open(io.BytesIO(datum.data)).size == (4, 3)
    assert convert(folder, '--encode_type=jpg', '--gray', name='grey') == 0
    _, datum = records(folder, 'grey')[0]
    image = Image.open(io.BytesIO(datum.data))
    assert (image.format, image.mode, image.size) == ('JPEG', 'L', (5, 6)) and datum.encoded


def test_what_was_converted_feeds_a_data_layer(folder):
    for i, flags in enumerate(([], ['--encoded'], ['--encode_type=png', '--backend=leveldb'])):
        assert convert(folder, *flags, name=f'db{i}') == 0
        net = net_of(
            f'layer {{ name: "d" type: "Data" top: "data" top: "label" data_param {{ batch_size: 4 '
            f'source: "{folder}/db{i}" backend: {"LEVELDB" if i == 2 else "LMDB"} }} }}'
        )
        out = net.forward()
        assert np.array_equal(out['data'], IMAGES[..., ::-1].transpose(0, 3, 1, 2))
        assert out['label'].tolist() == [10, 11, 12, 13]


def test_images_that_cannot_be_read_are_left_out_as_in_caffe(folder, caplog):
    (folder / 'image 1.png').write_text('none')
    (folder / 'image 2.png').unlink()
    assert convert(folder) == 0
    assert [datum.label for _, datum in records(folder)] == [10, 13]
    assert said(caplog).count('Could not open or find file') == 2
    assert said(caplog).endswith('Processed 2 files.')


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_database_that_is_there_is_refused_and_stays(folder, backend, caplog):
    assert convert(folder, f'--backend={backend}') == 0
    (folder / 'list.txt').write_text('image 0.png 1')
    assert convert(folder, f'--backend={backend}') == 1
    assert said(caplog).endswith(f'{folder}/db: exists; a new database needs a name of its own')
    assert len(records(folder, backend=backend)) == 4
    (folder / 'empty').mkdir()
    # As in Caffe: an LMDB makes its folder, a LevelDB takes an empty one.
    assert convert(folder, f'--backend={backend}', name='empty') == int(backend == 'lmdb')


@pytest.mark.parametrize(
    'flags, message',
    [
        (
            ['--check_size'],
            r'last.png: Incorrect data field size: expected .* 6 x 5 x 3, found 2 x',
        ),
        (['--encode_type=xyz'], 'image 0.png: no type "xyz" to encode an image as'),
        (['--backend=hdf5'], 'Unknown database backend "hdf5"; there are lmdb, leveldb'),
        (['--colour'], "unknown command line flag 'colour'"),
    ],
)
def test_what_caffe_refuses_leaves_nothing_behind(folder, caplog, flags, message):
    Image.new('RGB', (2, 2)).save(folder / 'last.png')
    (folder / 'list.txt').write_text((folder / 'list.txt').read_text() + 'last.png 3')
    assert convert(folder, *flags) == 1
    assert re.search(message, said(caplog)) and caplog.records[-1].levelno == logging.CRITICAL
    assert not (folder / 'db').exists() and not leftovers(folder)


def test_a_list_or_a_folder_that_is_missing_is_named(folder, caplog):
    assert convert(folder, listing='none.txt') == 1 and 'none.txt: not read' in said(caplog)
    assert convert(folder, name='none/db') == 1 and 'none/db: not written: No such' in said(caplog)


@pytest.mark.parametrize('package, backend', [('lmdb', 'lmdb'), ('plyvel', 'leveldb')])
def test_a_missing_package_is_named_and_nothing_is_left(
    folder, monkeypatch, caplog, package, backend
):
    monkeypatch.setitem(sys.modules, package, None)
    assert convert(folder, f'--backend={backend}') == 1
    assert f'needs {package}: pip install {package}' in said(caplog)
    assert not (folder / 'db').exists() and not leftovers(folder)


@pytest.mark.parametrize('backend', BACKENDS)
def test_records_are_committed_by_the_thousand_and_at_the_end(tmp_path, backend):
    path = str(tmp_path / 'db')
    with new_database.create_database(backend, path) as database:
        committed = [i for i in range(1001) if database.put(b'%04d' % i, b'')]
        assert not (tmp_path / 'db').exists()
    assert committed == [999]
    assert len(records(tmp_path, backend=backend)) == 1001
    with (
        pytest.raises(KeyboardInterrupt),
        new_database.create_database(backend, path + '2') as database,
    ):
        database.put(b'a', b'')
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ['db']


def test_a_key_that_the_database_does_not_take_is_named(tmp_path):
    with (
        pytest.raises(caffe.CaffeError, match=f'{tmp_path}/db: record x+ not written'),
        new_database.create_database('lmdb', str(tmp_path / 'db')) as database,
    ):
        database.put(b'x' * 1000, b'')
    assert not list(tmp_path.iterdir())


# compute_image_mean.


@pytest.mark.parametrize('flags', [[], ['--encoded'], ['--backend=leveldb']])
def test_the_mean_is_that_of_all_images_and_a_data_layer_takes_it(folder, caplog, flags):
    assert convert(folder, *flags) == 0
    backend = 'leveldb' if 'leveldb' in str(flags) else 'lmdb'
    arguments = ['compute_image_mean', '-backend', backend, f'{folder}/db', f'{folder}/mean']
    assert main(arguments) == 0
    expected = IMAGES[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32).mean(0)
    blob = BlobProto.FromString((folder / 'mean').read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 3, 6, 5)
    assert not blob.HasField('shape')
    np.testing.assert_allclose(caffe.io.blobproto_to_array(blob)[0], expected, rtol=1e-6)
    text = said(caplog)
    assert ('Decoding Datum' in text) == ('--encoded' in flags)
    found = [float(v) for v in re.findall(r'mean_value channel \[\d\]:([\d.]+)', text)]
    np.testing.assert_allclose(found, expected.mean((1, 2)), rtol=1e-5)
    net = net_of(
        f'layer {{ name: "d" type: "Data" top: "data" data_param {{ source: "{folder}/db" '
        f'backend: {backend.upper()} batch_size: 4 }} transform_param {{ mean_file: '
        f'"{folder}/mean" }} }}'
    )
    np.testing.assert_allclose(net.forward()['data'].mean(0), 0, atol=1e-4)


def test_what_has_no_mean_is_named_by_file_and_key(folder, caplog):
    Image.new('RGB', (5, 7)).save(folder / 'image 2.png')
    assert convert(folder) == 0
    assert main(['compute_image_mean', f'{folder}/db', f'{folder}/mean']) == 1
    assert f'{folder}/db: record 00000002_image 2.png: Incorrect data field size: ' in said(caplog)
    assert not (folder / 'mean').exists()
    with new_database.create_database('lmdb', str(folder / 'bad')) as database:
        database.put(b'a', Datum(data=b'no image', encoded=True).SerializeToString())
    assert main(['compute_image_mean', f'{folder}/bad']) == 1
    assert f'{folder}/bad: record a: expected an image, found 8 bytes' in said(caplog)
    assert convert(folder, name='cut') == 0
    with open(folder / 'cut/data.mdb', 'r+b') as file:
        file.truncate(5000)
    assert main(['compute_image_mean', f'{folder}/cut']) == 1
    assert f'{folder}/cut/data.mdb: truncated: expected' in said(caplog)
    assert main(['compute_image_mean', f'{folder}/none']) == 1
    assert f'{folder}/none: not opened as an LMDB' in said(caplog)
    assert main(['compute_image_mean', '--backend=x', f'{folder}/db']) == 1
    assert 'Unknown database backend "x"' in said(caplog)


# extract_features.


@pytest.fixture
def trained(folder):
    """A net on images of the folder, and its weights."""
    assert convert(folder) == 0
    (folder / 'net.prototxt').write_text(
        f'layer {{ name: "d" type: "Data" top: "data" data_param {{ source: "{folder}/db" '
        f'backend: LMDB batch_size: 3 }} transform_param {{ scale: 0.01 }} }}'
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { '
        'num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { '
        'num_output: 4 weight_filler { type: "xavier" } } }'
    )
    caffe.set_random_seed(2)
    net = caffe.Net(str(folder / 'net.prototxt'), caffe.TEST)
    net.save(str(folder / 'net.caffemodel'))
    return net


def extract(folder, blobs, names, *rest):
    return main(
        ['extract_features', f'{folder}/net.caffemodel', f'{folder}/net.prototxt', blobs]
        + [','.join(f'{folder}/{name}' for name in names.split(',')), *rest]
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_features_are_the_blobs_row_by_row(folder, trained, caplog, backend):
    assert extract(folder, 'fc,conv', 'one,two', '2', backend, 'CPU') == 0
    batches = [{n: trained.blobs[n].data.copy() for n in ('fc', 'conv')} for _ in (0, 1)
               if trained.forward()]  # fmt: skip
    for name, target, shape in (('fc', 'one', (4, 1, 1)), ('conv', 'two', (2, 4, 3))):
        found = records(folder, target, backend)
        assert [key for key, _ in found] == [f'{i:010d}' for i in range(6)]
        rows = np.concatenate([batch[name] for batch in batches])
        for (_, datum), row in zip(found, rows):
            assert (datum.channels, datum.height, datum.width) == shape and not datum.data
            assert np.array_equal(np.array(datum.float_data, np.float32), row.ravel())
    assert 'Extracted features of 6 query images for feature blob conv' in said(caplog)
    assert said(caplog).endswith('Successfully extracted the features!')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('fc,conv', 'one', '1', 'lmdb'), 'blob names and dataset names must be equal, found 2 an'),
        (('pool', 'one', '1', 'lmdb'), 'Unknown feature blob name pool in the network'),
        (('fc', 'one', 'many', 'lmdb'), 'num_mini_batches: expected a number, found "many"'),
        (('fc', 'one', '1', 'hdf5'), 'Unknown database backend "hdf5"'),
        (('fc', 'db', '1', 'lmdb'), 'db: exists'),
        (('fc,conv', 'one,one', '1', 'lmdb'), 'one: not written: File exists'),
        (('fc', 'one', '1', 'lmdb', 'GPU', 'x'), 'DEVICE_ID: expected a number'),
    ],
)
def test_features_that_cannot_be_written_leave_nothing(folder, trained, caplog, arguments, message):
    assert extract(folder, *arguments) == 1
    assert message in said(caplog) and not (folder / 'one').exists() and not leftovers(folder)


# upgrade_net_proto_text, upgrade_net_proto_binary, upgrade_solver_proto_text.


def test_a_caffemodel_is_upgraded_to_what_caffe_made_of_it(tmp_path, caplog):
    source, target = GOLDEN / 'formats/legacy_v1.caffemodel', tmp_path / 'new.caffemodel'
    assert main(['upgrade_net_proto_binary', str(source), str(target)]) == 0
    found, expected = (
        NetParameter.FromString(path.read_bytes())
        for path in (target, GOLDEN / 'formats/legacy_v1_upgraded.caffemodel')
    )
    for one, two in zip(found.layer, expected.layer, strict=True):
        for old, new in zip(one.blobs, two.blobs, strict=True):
            assert list(old.data) == list(new.data)
        two.ClearField('phase')  # Caffe saved the file from a net, which has one
        for layer in (one, two):
            layer.ClearField('blobs')
    assert found == expected
    written = target.read_bytes()
    assert main(['upgrade_net_proto_binary', str(target), str(target)]) == 0
    assert f'File already in latest proto format: {target}' in said(caplog)
    assert target.read_bytes() == written


def test_prototxts_are_upgraded_and_current_ones_written_as_they_are(tmp_path, caplog):
    source, target = GOLDEN / 'formats/legacy_v1.prototxt', tmp_path / 'new.prototxt'
    assert main(['upgrade_net_proto_text', str(source), str(target)]) == 0
    net = prototxt.read_unchanged(target, NetParameter())
    assert net.layer and not net.layers
    assert net == prototxt.read_net(source)
    assert main(['upgrade_net_proto_text', str(target), str(tmp_path / 'again')]) == 0
    assert 'already in latest' in said(caplog)
    assert (tmp_path / 'again').read_text() == target.read_text()
    (tmp_path / 'solver').write_text('net: "n" solver_type: ADADELTA')
    assert main(['upgrade_solver_proto_text', str(tmp_path / 'solver'), str(tmp_path / 's')]) == 0
    assert (tmp_path / 's').read_text() == 'net: "n"\ntype: "AdaDelta"\n'
    assert 'Wrote upgraded SolverParameter to' in said(caplog)


@pytest.mark.parametrize('tool', ['net_proto_text', 'net_proto_binary', 'solver_proto_text'])
def test_exit_statuses_of_upgrades(tmp_path, tool, caplog):
    command = f'upgrade_{tool}'
    assert main([command]) == main([command, 'a']) == main([command, 'a', 'b', 'c']) == 1
    assert f'Usage: {command} ' in said(caplog)
    (tmp_path / 'bad').write_text('name: "x" colour: 3')
    assert main([command, str(tmp_path / 'bad'), str(tmp_path / 'out')]) == 2
    assert 'Failed to parse input file' in said(caplog)
    assert main([command, str(tmp_path / 'none'), str(tmp_path / 'out')]) == 1
    assert f'File not found: {tmp_path}/none' in said(caplog)
    assert not (tmp_path / 'out').exists()


def test_an_upgrade_that_drops_something_is_written_with_status_1(tmp_path, caplog):
    (tmp_path / 'old').write_text(
        'layers { layer { name: "r" type: "relu" stride: 2 } bottom: "x" top: "x" } input: "x"'
    )
    assert main(['upgrade_net_proto_text', str(tmp_path / 'old'), str(tmp_path / 'new')]) == 1
    assert 'r: stride means nothing to a V0 layer of type "relu"' in said(caplog)
    assert 'Encountered error(s) while upgrading' in said(caplog)
    assert 'type: "ReLU"' in (tmp_path / 'new').read_text()


def test_a_weight_file_in_hdf5_is_no_net_parameter(tmp_path):
    path = tmp_path / 'x.caffemodel.h5'
    net_of('layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 } } }'
           ).save(str(path))  # fmt: skip
    assert main(['upgrade_net_proto_binary', str(path), str(tmp_path / 'out')]) == 2


# parse_log.

LOG = """Log file created at: 2017/12/31 23:59:58
I1231 23:59:58.000000  4711 solver.cpp:48] Iteration 9 is not counted before the start
I1231 23:59:59.500000  4711 solver.cpp:279] Solving tiny
I1231 23:59:59.600000  4711 solver.cpp:337] Iteration 0, Testing net (#0)
I1231 23:59:59.700000  4711 solver.cpp:404]     Test net output #0: accuracy = 0.25
I1231 23:59:59.800000  4711 solver.cpp:404]     Test net output #1: loss = 1.5 (* 1 = 1.5 loss)
I0101 00:00:00.500000  4711 solver.cpp:228] Iteration 0, loss = 1.25
I0101 00:00:00.500000  4711 solver.cpp:244]     Train net output #0: loss = 1.25 (* 1 = 1.25 loss)
I0101 00:00:00.500000  4711 sgd_solver.cpp:106] Iteration 0, lr = 0.01
a line that something else has printed
I0101 00:00:01.500000  4711 solver.cpp:228] Iteration 20 (20 iter/s, 1s/20 iters), loss = nan
I0101 00:00:01.500000  4711 solver.cpp:244]     Train net output #0: loss = nan (* 1 = nan loss)
I0101 00:00:01.500000  4711 sgd_solver.cpp:106] Iteration 20, lr = 1e-05
I0101 00:00:02.500000  4711 solver.cpp:337] Iteration 40, Testing net (#0)
I0101 00:00:02.500000  4711 solver.cpp:404]     Test net output #0: accuracy = 0.75
I0101 00:00:02.500000  4711 solver.cpp:404]     Test net output #1: loss = 1.5e-07 (* 1 = 0 loss)
"""


def test_a_log_of_caffes_becomes_two_tables(tmp_path, capsys):
    (tmp_path / 'caffe.INFO').write_text(LOG)
    arguments = ['parse_log', str(tmp_path / 'caffe.INFO'), str(tmp_path)]
    assert main([*arguments, '--verbose', '--delimiter', ';']) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'Wrote {tmp_path}/caffe.INFO.train',
        f'Wrote {tmp_path}/caffe.INFO.test',
    ]
    train = (tmp_path / 'caffe.INFO.train').read_bytes().decode().split('\r\n')
    assert train == [
        'NumIters;Seconds;LearningRate;loss',
        # The rate comes after the line of the loss, so that a row has the one before.
        '0.0;1.0;0.01;1.25',
        '20.0;2.0;0.01;nan',
        '',
    ]
    test = list(csv.DictReader((tmp_path / 'caffe.INFO.test').open(), delimiter=';'))
    assert [(row['NumIters'], row['accuracy'], row['loss']) for row in test] == [
        ('0.0', '0.25', '1.5'),
        ('40.0', '0.75', '1.5e-07'),
    ]
    assert test[0]['LearningRate'] == test[1]['LearningRate'] == '1e-05'
    assert [float(row['Seconds']) for row in test] == [0.2, 3.0]


def test_a_log_without_rows_or_lines_and_flags_that_are_wrong(tmp_path, capsys, caplog):
    (tmp_path / 'short').write_text(LOG[: LOG.index('I1231 23:59:59.7')])
    assert main(['parse_log', str(tmp_path / 'short'), str(tmp_path), '--verbose']) == 0
    assert 'no lines to write' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['short']
    (tmp_path / 'none').write_text('nothing of a log\n')
    assert main(['parse_log', str(tmp_path / 'none'), str(tmp_path)]) == 1
    assert "none: expected lines of a log in glog's form, found none" in said(caplog)
    assert main(['parse_log', str(tmp_path / 'missing'), str(tmp_path)]) == 1
    for wrong in ([], ['a', 'b', '--colour'], ['a', 'b', '--delimiter', 'ab']):
        with pytest.raises(SystemExit) as ended:
            main(['parse_log', *wrong])
        assert ended.value.code == 2


def test_a_log_that_train_writes_has_the_columns_of_its_nets(tmp_path):
    (tmp_path / 'net').write_text(
        'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } }'
        'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 } } }'
        'layer { name: "loss" type: "EuclideanLoss" bottom: "p" bottom: "x" top: "loss" }'
    )
    (tmp_path / 'solver').write_text(
        f'net: "{tmp_path}/net" base_lr: 0.5 lr_policy: "step" stepsize: 2 gamma: 0.1 display: 2 '
        f'max_iter: 5 snapshot_prefix: "{tmp_path}/s" test_iter: 1 test_interval: 5 '
        'snapshot_after_train: false'
    )
    log = logging.getLogger('caffe_port')
    handler = logging.FileHandler(tmp_path / 'log')
    log.addHandler(handler)
    try:
        assert main(['train', f'--solver={tmp_path}/solver']) == 0
    finally:
        log.removeHandler(handler)
        handler.close()
    train, test = parse_log.parse_log(tmp_path / 'log')
    assert [row['NumIters'] for row in train] == [0, 2, 4]
    assert [row['LearningRate'] for row in train] == [0.5, 0.5, 0.05]
    assert [row['NumIters'] for row in test] == [0, 5] and test[0]['loss'] == 0


# What all have in common.


@pytest.mark.parametrize('tool', ['convert_imageset', 'compute_image_mean', 'extract_features'])
def test_too_few_arguments_show_the_usage_with_status_1(tool, capsys):
    assert main([tool]) == 1
    assert f'usage: {tool} ' in capsys.readouterr().out


@pytest.mark.parametrize('tool', sorted(TOOLS))
def test_tools_are_modules_too(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [tool])
    monkeypatch.delitem(sys.modules, f'caffe_port.tools.{tool}')
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f'caffe_port.tools.{tool}', run_name='__main__')
    assert ended.value.code == (2 if tool == 'parse_log' else 1)
