"""Data, ImageData and MemoryData on drawn files: order, streams, reading ahead, resuming."""

import copy
import gc
import io
import json
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import parallel, rng
from caffe_port.ops.image_data import shuffle
from caffe_port.ops.source import Ahead
from caffe_port.proto.caffe_pb2 import Datum
from tests.formulas import RANDOM
from tests.vectors import net_of

COUNT, BATCH = 7, 3
IMAGES = RANDOM(0).randint(0, 256, (COUNT, 3, 6, 5)).astype(np.uint8)  # BGR
BACKENDS = 'LMDB', 'LEVELDB'


def write(path, records: dict[bytes, bytes], backend='LMDB') -> str:
    if backend == 'LMDB':
        lmdb = pytest.importorskip('lmdb')
        with lmdb.open(str(path), map_size=1 << 24) as database, database.begin(write=True) as put:
            for key, value in records.items():
                put.put(key, value)
    else:
        plyvel = pytest.importorskip('plyvel')
        database = plyvel.DB(str(path), create_if_missing=True)
        for key, value in records.items():
            database.put(key, value)
        database.close()
    return str(path)


def datum(i: int, **fields) -> bytes:
    raw = caffe.io.array_to_datum(IMAGES[i], 10 + i)
    raw.MergeFrom(Datum(**fields))
    return raw.SerializeToString()


RECORDS = {b'%03d' % (COUNT - i): datum(COUNT - i - 1) for i in range(COUNT)}


@pytest.fixture(params=BACKENDS)
def database(request, tmp_path):
    path = write(tmp_path / 'db', RECORDS, request.param)
    return f'source: "{path}" backend: {request.param}'


@pytest.fixture
def lmdb_path(tmp_path):
    return write(tmp_path / 'db', RECORDS)


def data_net(settings, transform='', phase=caffe.TRAIN, tops='top: "data" top: "label"'):
    return net_of(
        f'layer {{ name: "d" type: "Data" {tops} data_param {{ {settings} }} '
        f'transform_param {{ {transform} }} }}',
        phase,
    )


def labels(net, count):
    return [net.forward()['label'].tolist() for _ in range(count)]


# Data.


def test_records_come_in_the_order_of_keys_and_then_anew(database):
    net = data_net(f'{database} batch_size: {BATCH}', 'scale: 2 mean_value: 1')
    assert net.blobs['data'].shape == (BATCH, 3, 6, 5) and net.blobs['label'].shape == (BATCH,)
    for batch in range(6):
        out = net.forward()
        at = [(batch * BATCH + i) % COUNT for i in range(BATCH)]
        assert out['label'].tolist() == [10 + i for i in at]
        assert np.array_equal(out['data'], (IMAGES[at].astype(np.float32) - 1) * 2)


def test_a_data_layer_may_have_no_label(lmdb_path):
    net = data_net(f'source: "{lmdb_path}" backend: LMDB batch_size: 2', tops='top: "data"')
    assert np.array_equal(net.forward()['data'], IMAGES[:2])


def test_rand_skip_does_nothing_as_in_caffe(lmdb_path):
    net = data_net(f'source: "{lmdb_path}" backend: LMDB batch_size: 2 rand_skip: 5')
    assert labels(net, 1) == [[10, 11]]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize(
    'force, channels', [('', 3), ('force_color: true', 3), ('force_gray: true', 1)]
)
def test_an_encoded_datum_is_decoded(tmp_path, force, channels):
    rgb = IMAGES[0].transpose(1, 2, 0)[:, :, ::-1]
    value = Datum(data=png(np.ascontiguousarray(rgb)), encoded=True, label=4).SerializeToString()
    path = write(tmp_path / 'encoded', {b'a': value})
    net = data_net(f'source: "{path}" backend: LMDB batch_size: 1', force)
    found = net.forward()['data']
    assert found.shape == (1, channels, 6, 5) and net.blobs['label'].data.tolist() == [4]
    if channels == 3:
        assert np.array_equal(found[0], IMAGES[0])
    else:
        assert np.abs(found[0, 0] - rgb @ [0.299, 0.587, 0.114]).max() <= 1


def test_float_data_comes_as_it_is(tmp_path):
    values = RANDOM(1).randn(2, 3, 4).astype(np.float32)
    value = caffe.io.array_to_datum(values, 1).SerializeToString()
    path = write(tmp_path / 'floats', {b'a': value})
    net = data_net(f'source: "{path}" backend: LMDB batch_size: 2', 'scale: 3')
    assert np.array_equal(net.forward()['data'], np.stack([values * np.float32(3)] * 2))


def test_batches_of_one_follow_the_size_of_each_image(tmp_path):
    sizes = {b'a': (2, 3), b'b': (5, 4)}
    path = write(
        tmp_path / 'sizes',
        {
            key: caffe.io.array_to_datum(np.zeros((1, *size), np.uint8)).SerializeToString()
            for key, size in sizes.items()
        },
    )
    net = data_net(f'source: "{path}" backend: LMDB batch_size: 1')
    assert [net.forward()['data'].shape[2:] for _ in range(3)] == [(2, 3), (5, 4), (2, 3)]
    two = data_net(f'source: "{path}" backend: LMDB batch_size: 2')
    with pytest.raises(
        caffe.CaffeError,
        match=rf'^d \(Data\): {path}: record b: expected 1 x 2 x 3 as the first .*, found 1 x 5 x',
    ):
        two.forward()


def test_the_host_stream_gives_two_seeds_of_the_transform_and_one_of_the_thread(lmdb_path):
    caffe.set_random_seed(3)
    settings = f'source: "{lmdb_path}" backend: LMDB batch_size: 2'
    net = data_net(settings, 'crop_size: 4 mirror: true')
    words = [int(word) for word in RANDOM(3).randint(0, 2**32, 4, np.uint32)]
    assert rng.draw_words(1) == words[3]
    drawn = [int(word) for word in RANDOM(words[1]).randint(0, 2**32, 6, np.uint32)]
    for image, found, (mirror, y, x) in zip(IMAGES, net.forward()['data'], (drawn[:3], drawn[3:])):
        part = image[:, y % 3 : y % 3 + 4, x % 2 : x % 2 + 4]
        assert np.array_equal(found, part[:, :, ::-1] if mirror % 2 else part)
    caffe.set_random_seed(3)
    data_net(settings)
    assert rng.draw_words(1) == words[1]


def test_of_many_ranks_each_takes_every_nth_record(lmdb_path, monkeypatch):
    monkeypatch.setattr(parallel, '_count', 2)
    settings = f'source: "{lmdb_path}" backend: LMDB batch_size: 4'
    for rank in (0, 1):
        monkeypatch.setattr(parallel, '_rank', rank)
        net = data_net(settings)
        everything = [10 + i % COUNT for i in range(16)]
        assert labels(net, 2) == [everything[rank:8:2], everything[8 + rank : 16 : 2]]
        assert labels(data_net(settings, phase=caffe.TEST), 1) == [[10, 11, 12, 13]]


# Errors.


@pytest.mark.parametrize(
    'value, message',
    [
        (b'\xff\xff', 'expected a Datum, found 2 bytes'),
        (datum(0, channels=4), 'expected 4 x 6 x 5 values, found 90'),
        (
            Datum(data=b'no image', encoded=True).SerializeToString(),
            'expected an image, found 8 by',
        ),
        (Datum(channels=1, height=1, width=1).SerializeToString(), 'expected 1 x 1 x 1 values, fo'),
        (b'', 'expected 0 x 0 x 0 values, found 0'),
    ],
)
def test_a_broken_record_is_named_by_file_and_key(tmp_path, value, message):
    records = {b'000': datum(0), b'bad': value}
    path = write(tmp_path / 'broken', records)
    net = data_net(f'source: "{path}" backend: LMDB batch_size: 1')
    assert labels(net, 1) == [[10]]
    for _ in range(2):
        with pytest.raises(caffe.CaffeError, match=rf'^d \(Data\): {path}: record bad: {message}'):
            net.forward()


@pytest.mark.parametrize('cut', [1, 5000])
def test_a_truncated_lmdb_is_refused(lmdb_path, cut):
    with open(f'{lmdb_path}/data.mdb', 'r+b') as file:
        size = file.seek(0, 2)
        file.truncate(size - cut)
    with pytest.raises(
        caffe.CaffeError,
        match=rf'{lmdb_path}/data.mdb: truncated: expected {size} bytes, found {size - cut}',
    ):
        data_net(f'source: "{lmdb_path}" backend: LMDB batch_size: 1')


def test_an_lmdb_cut_to_its_head_and_one_overwritten_are_refused(lmdb_path):
    path = f'{lmdb_path}/data.mdb'
    with open(path, 'r+b') as file:
        file.truncate(100)
    with pytest.raises(caffe.CaffeError, match=f'{lmdb_path}: not opened as an LMDB'):
        data_net(f'source: "{lmdb_path}" backend: LMDB batch_size: 1')


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_missing_or_empty_database_is_named(tmp_path, backend):
    missing = tmp_path / 'none'
    with pytest.raises(caffe.CaffeError, match=f'{missing}: not opened as a'):
        data_net(f'source: "{missing}" backend: {backend} batch_size: 1')
    assert not missing.exists()
    empty = write(tmp_path / 'empty', {}, backend)
    with pytest.raises(caffe.CaffeError, match=f'{empty}: expected records, found none'):
        data_net(f'source: "{empty}" backend: {backend} batch_size: 1')


def test_a_level_db_without_its_tables_is_refused(tmp_path):
    path = write(tmp_path / 'db', RECORDS, 'LEVELDB')
    for file in (tmp_path / 'db').glob('*'):
        if file.suffix in ('.log', '.ldb'):
            file.write_bytes(b'x' * 40)
    with pytest.raises(caffe.CaffeError, match=f'{path}: '):
        data_net(f'source: "{path}" backend: LEVELDB batch_size: 1')


@pytest.mark.parametrize('package, backend', [('lmdb', 'LMDB'), ('plyvel', 'LEVELDB')])
def test_a_missing_package_is_named(monkeypatch, tmp_path, package, backend):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(caffe.CaffeError, match=f'needs {package}: pip install {package}'):
        data_net(f'source: "{tmp_path}" backend: {backend} batch_size: 1')


@pytest.mark.parametrize(
    'settings, message',
    [
        ('source: "x" backend: LMDB', 'batch_size must be positive'),
        ('batch_size: 1 backend: LMDB', 'source is not given'),
    ],
)
def test_settings_that_are_missing_are_named(settings, message):
    with pytest.raises(caffe.CaffeError, match=message):
        data_net(settings)


# Reading ahead and resuming.


def source_nets(tmp_path, kind):
    """Nets of one layer, all drawn from the same seed."""

    def build():
        caffe.set_random_seed(9)
        transform = 'crop_size: 4 mirror: true'
        if kind == 'ImageData':
            return image_net(listing, 'shuffle: true', transform)
        return data_net(f'source: "{path}" backend: {kind} batch_size: {BATCH}', transform)

    if kind == 'ImageData':
        listing = image_list(tmp_path)
    else:
        path = write(tmp_path / 'db', RECORDS, kind)
    return build


@pytest.mark.parametrize('kind', ['LMDB', 'LEVELDB', 'ImageData'])
@pytest.mark.parametrize('before', [0, 1, 4])
def test_a_state_is_that_of_the_next_batch_however_much_is_read_ahead(tmp_path, kind, before):
    build = source_nets(tmp_path, kind)
    net = build()
    for _ in range(before):
        net.forward()
    state = json.loads(json.dumps(net.module.d.state()))
    expected = [{k: v.copy() for k, v in net.forward().items()} for _ in range(6)]
    other = build()
    other.forward()
    for _ in range(2):  # forward, and back again
        other.module.d.set_state(state)
        for batch in expected:
            found = other.forward()
            assert all(np.array_equal(found[name], batch[name]) for name in batch)


@pytest.mark.parametrize('kind', ['LMDB', 'LEVELDB', 'ImageData'])
def test_copies_and_pickles_go_on_from_the_same_batch(tmp_path, kind):
    net = source_nets(tmp_path, kind)()
    net.forward()
    nets = [copy.deepcopy(net), net, pickle.loads(pickle.dumps(net))]
    for _ in range(4):
        outs = [one.forward() for one in nets]
        for out in outs[1:]:
            assert all(np.array_equal(out[name], outs[0][name]) for name in out)


@pytest.mark.parametrize('kind', ['LMDB', 'ImageData'])
def test_a_state_of_other_data_is_refused_and_changes_nothing(tmp_path, kind):
    net = source_nets(tmp_path, kind)()
    net.forward()
    good = net.module.d.state()
    bad = [{}, {**good, 'random': None}, {**good, 'random': [[1], 2]}, None]
    bad += [{**good, 'key': b'nobody'.hex()}, {**good, 'key': 'xx'}] if kind == 'LMDB' else []
    bad += [{**good, 'line': 99}, {**good, 'count': 3}] if kind == 'ImageData' else []
    for state in bad:
        with pytest.raises(caffe.CaffeError, match='^state of d: '):
            net.module.d.set_state(state)
        assert net.module.d.state() == good


def test_ahead_makes_as_many_as_its_depth_and_its_thread_ends():
    made, ready = [], threading.Event()

    def produce():
        made.append(len(made))
        if len(made) >= 3:
            ready.set()
        return made[-1]

    ahead = Ahead(produce, 2)
    assert ahead.next() == 0 and ready.wait(10)
    assert ahead.first() == 1 and len(made) == 3
    assert [ahead.next() for _ in range(5)] == [1, 2, 3, 4, 5]
    ahead.stop()
    assert ahead.first() is None and not ahead._running


def test_ahead_raises_an_error_in_its_turn_and_tries_again():
    calls = iter([1, ValueError('no'), 3, 4, 5, 6])

    def produce():
        value = next(calls)
        if isinstance(value, Exception):
            raise value
        return value

    ahead = Ahead(produce, 1)
    assert ahead.next() == 1
    with pytest.raises(ValueError, match='no'):
        ahead.next()
    assert ahead.next() == 3


def test_a_net_that_has_read_ahead_is_freed(lmdb_path):
    before = threading.active_count()
    net = data_net(f'source: "{lmdb_path}" backend: LMDB batch_size: 1')
    net.forward()
    layer = weakref.ref(net.module.d)
    net.module.d._ahead.stop()
    del net
    gc.collect()
    assert layer() is None and threading.active_count() <= before


# ImageData.


def image_list(folder, count=COUNT):
    lines = []
    for i in range(count):
        pixels = np.ascontiguousarray(IMAGES[i].transpose(1, 2, 0)[:, :, ::-1])
        (folder / f'an image {i}.png').write_bytes(png(pixels))
        lines.append(f'an image {i}.png {10 + i}\n')
    (folder / 'list.txt').write_text(''.join(lines))
    return folder / 'list.txt'


def image_net(listing, settings='', transform='', phase=caffe.TRAIN):
    return net_of(
        f'layer {{ name: "d" type: "ImageData" top: "data" top: "label" image_data_param {{ '
        f'source: "{listing}" root_folder: "{listing.parent}/" batch_size: {BATCH} {settings} }} '
        f'transform_param {{ {transform} }} }}',
        phase,
    )


def test_images_of_a_list_come_in_order_and_then_anew(tmp_path):
    net = image_net(image_list(tmp_path))
    for batch in range(5):
        at = [(batch * BATCH + i) % COUNT for i in range(BATCH)]
        out = net.forward()
        assert out['label'].tolist() == [10 + i for i in at]
        assert np.array_equal(out['data'], IMAGES[at])


def test_images_are_read_in_grey_and_resized(tmp_path):
    net = image_net(image_list(tmp_path), 'is_color: false new_height: 12 new_width: 10')
    out = net.forward()['data']
    assert out.shape == (BATCH, 1, 12, 10)
    grey = IMAGES[:BATCH, ::-1].transpose(0, 2, 3, 1) @ [0.299, 0.587, 0.114]
    assert np.abs(out[:, 0, ::11, ::9] - grey[:, ::5, ::4]).max() <= 1  # the corners


def boosts_shuffle(items, stream):
    """caffe::shuffle by the letter of boost's uniform_int_distribution over mt19937."""
    items = list(items)
    for i in range(len(items) - 1, 0, -1):
        bucket, rest = divmod(2**32 - 1, i + 1)
        bucket += rest == i
        while (pick := int(stream.randint(0, 2**32, dtype=np.uint32)) // bucket) > i:
            pass
        items[i], items[pick] = items[pick], items[i]
    return items


@pytest.mark.parametrize('count', [1, 2, 10, 3000])
def test_shuffle_is_caffes(count):
    caffe.set_random_seed(4)
    stream, items = rng.Stream(), list(range(count))
    shuffle(items, stream)
    reference = RANDOM(int(RANDOM(4).randint(0, 2**32, dtype=np.uint32)))
    assert items == boosts_shuffle(range(count), reference)
    shuffle(items, stream)  # has drawn no word too many
    assert items == boosts_shuffle(
        boosts_shuffle(range(count), RANDOM(int(RANDOM(4).randint(0, 2**32, dtype=np.uint32)))),
        reference,
    )


def test_a_shuffled_list_is_shuffled_again_for_each_pass(tmp_path):
    caffe.set_random_seed(6)
    net = image_net(image_list(tmp_path), 'shuffle: true')
    stream = RANDOM(int(RANDOM(6).randint(0, 2**32, dtype=np.uint32)))
    order, expected = list(range(COUNT)), []
    for _ in range(BATCH):
        order = boosts_shuffle(order, stream)
        expected += [10 + i for i in order]
    assert sum(labels(net, COUNT), []) == expected


def test_rand_skip_begins_later_once(tmp_path):
    listing = image_list(tmp_path)
    for seed in range(4):
        caffe.set_random_seed(seed)
        skip = int(RANDOM(seed).randint(0, 2**32, dtype=np.uint32)) % 5
        found = sum(labels(image_net(listing, 'rand_skip: 5'), 3), [])
        assert found == [10 + (skip + i) % COUNT for i in range(9)]


def test_more_skipped_than_there_are_is_refused(tmp_path):
    caffe.set_random_seed(0)
    with pytest.raises(caffe.CaffeError, match=r'list.txt: cannot skip \d+ of 1 images'):
        image_net(image_list(tmp_path, 1), 'rand_skip: 4294967295')


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'expected images, found none'),
        ('a.png 1\nb.png\n', r':2: expected a file name and a label, found .b.png'),
        ('a.png one\n', ':1: expected a file name and a label'),
        ('3\n', ':1: expected a file name and a label'),
        ('missing.png 3\n', 'missing.png: not read: No such file'),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / 'list.txt').write_text(text)
    with pytest.raises(caffe.CaffeError, match=rf'^d \(ImageData\): {tmp_path}/.*{message}'):
        image_net(tmp_path / 'list.txt')


def test_new_height_without_new_width_is_refused(tmp_path):
    with pytest.raises(caffe.CaffeError, match='new_height and new_width go together'):
        image_net(image_list(tmp_path), 'new_height: 3')


def test_ranks_that_feed_the_same_images_are_warned(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parallel, '_rank', 1)
    listing = image_list(tmp_path)
    with caplog.at_level('WARNING', 'caffe_port'):
        image_net(listing)
        assert 'every rank feeds the same images' in caplog.text
        caplog.clear()
        image_net(listing, 'shuffle: true')
        assert not caplog.text


# MemoryData.

MEMORY = (
    'layer { name: "m" type: "MemoryData" top: "data" top: "label" memory_data_param { '
    'batch_size: 2 channels: 3 height: 6 width: 5 } }'
)
ARRAYS = IMAGES[:6].astype(np.float32), np.arange(6, dtype=np.float32)


def test_memory_data_feeds_arrays_a_batch_at_a_time_and_sees_what_is_written_to_them():
    net = net_of(MEMORY)
    assert net.blobs['data'].shape == (2, 3, 6, 5)
    data, given = (array.copy() for array in ARRAYS)
    net.set_input_arrays(data, given)
    for i in (0, 2, 4, 0):
        out = net.forward()
        assert np.array_equal(out['data'], data[i : i + 2])
        assert out['label'].shape == (2, 1, 1, 1) and out['label'].flatten().tolist() == [i, i + 1]
    data[2] = 7
    assert (net.forward()['data'][0] == 7).all()
    net.set_input_arrays(*ARRAYS)
    assert net.forward()['label'][0] == 0


def test_memory_data_goes_on_from_a_state():
    net, other = net_of(MEMORY), net_of(MEMORY)
    for one in (net, other):
        one.set_input_arrays(*ARRAYS)
    net.forward()
    other.module.m.set_state(json.loads(json.dumps(net.module.m.state())))
    assert np.array_equal(net.forward()['label'], other.forward()['label'])
    for bad in ({}, None, {'position': 1}, {'position': 6}, {'position': '2'}):
        with pytest.raises(caffe.CaffeError, match='^state of m: place'):
            other.module.m.set_state(bad)


@pytest.mark.parametrize(
    'data, given, message',
    [
        (ARRAYS[0].astype(np.float64), ARRAYS[1], 'data: expected a C-contiguous float32 array'),
        (ARRAYS[0][:, :, :, ::-1], ARRAYS[1], 'data: expected a C-contiguous .* not contiguous'),
        (ARRAYS[0][:, :2].copy(), ARRAYS[1], 'data: expected N x 3 x 6 x 5, found 6 x 2 x 6 x 5'),
        (ARRAYS[0], ARRAYS[1].reshape(2, 3), 'labels: expected N x 1 x 1 x 1, found 2 x 3'),
        (ARRAYS[0][:4], ARRAYS[1], '4 images and 6 labels'),
        (ARRAYS[0][:3], ARRAYS[1][:3], '3 images: expected a multiple of batch_size 2'),
        (ARRAYS[0][:0], ARRAYS[1][:0], '0 images: expected a multiple'),
    ],
)
def test_arrays_that_do_not_fit_are_refused(data, given, message):
    with pytest.raises(caffe.CaffeError, match=rf'^m \(MemoryData\): {message}'):
        net_of(MEMORY).set_input_arrays(data, given)


def test_memory_data_without_arrays_or_dims_and_other_nets_say_so(lmdb_path):
    with pytest.raises(caffe.CaffeError, match='no arrays to feed: call set_input_arrays'):
        net_of(MEMORY).forward()
    with pytest.raises(caffe.CaffeError, match='must be positive, found 2 x 3 x 0 x 5'):
        net_of(MEMORY.replace('height: 6', ''))
    net = data_net(f'source: "{lmdb_path}" backend: LMDB batch_size: 1')
    with pytest.raises(caffe.CaffeError, match='first layer must be MemoryData, d is Data'):
        net.set_input_arrays(*ARRAYS)
