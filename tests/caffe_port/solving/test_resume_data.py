"""A solver that reads files goes on from a snapshot to the bit, whichever layer reads them."""

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.tools.new_database import create_database
from tests.formulas import RANDOM

COUNT, SIZE = 7, 6
IMAGES = RANDOM(0).randint(0, 256, (COUNT, 3, SIZE, SIZE)).astype(np.uint8)
TRANSFORM = 'transform_param { crop_size: 4 mirror: true scale: 0.01 }'


def data(folder, backend='lmdb'):
    pytest.importorskip('lmdb')
    with create_database(backend, str(folder / 'db')) as database:
        for i, image in enumerate(IMAGES):
            database.put(b'%d' % i, caffe.io.array_to_datum(image, i).SerializeToString())
    return (
        f'type: "Data" {TRANSFORM} data_param {{ source: "{folder}/db" backend: '
        f'{backend.upper()} batch_size: 3 }}'
    )


def level_db(folder):
    pytest.importorskip('plyvel')
    return data(folder, 'leveldb')


def write_images(folder):
    for i, image in enumerate(IMAGES):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f'{i}.png')


def image_data(folder):
    write_images(folder)
    (folder / 'list.txt').write_text(''.join(f'{i}.png {i}\n' for i in range(COUNT)))
    return (
        f'type: "ImageData" {TRANSFORM} image_data_param {{ source: "{folder}/list.txt" '
        f'root_folder: "{folder}/" batch_size: 3 shuffle: true rand_skip: 3 }}'
    )


def hdf5_data(folder):
    h5py = pytest.importorskip('h5py')
    for i, rows in enumerate((slice(0, 4), slice(4, COUNT))):
        with h5py.File(folder / f'{i}.h5', 'w') as file:
            file['data'], file['label'] = IMAGES[rows] / 256, np.arange(COUNT)[rows]
    (folder / 'list.txt').write_text(f'{folder}/0.h5\n{folder}/1.h5')
    return (
        f'type: "HDF5Data" hdf5_data_param {{ source: "{folder}/list.txt" batch_size: 3 '
        'shuffle: true }'
    )


def window_data(folder):
    write_images(folder)
    (folder / 'windows.txt').write_text(
        ''.join(
            f'# {i}\n{folder}/{i}.png\n3 {SIZE} {SIZE}\n2\n{i + 1} 0.9 0 0 3 4\n0 0.1 1 1 5 5\n'
            for i in range(COUNT)
        )
    )
    return (
        f'type: "WindowData" {TRANSFORM} window_data_param {{ source: "{folder}/windows.txt" '
        'batch_size: 4 fg_fraction: 0.5 scale: 0.01 }'
    )


@pytest.mark.parametrize('make', [data, level_db, image_data, hdf5_data, window_data])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path, make):
    (tmp_path / 'net').write_text(
        f'layer {{ name: "d" top: "data" top: "label" {make(tmp_path)} }}'
        'layer { name: "drop" type: "Dropout" bottom: "data" top: "drop" }'
        'layer { name: "ip" type: "InnerProduct" bottom: "drop" top: "ip" inner_product_param { '
        'num_output: 1 weight_filler { type: "xavier" } } }'
        'layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "label" }'
    )
    (tmp_path / 'solver').write_text(
        f'net: "{tmp_path}/net" base_lr: 0.001 lr_policy: "fixed" momentum: 0.9 random_seed: 2 '
        f'snapshot_prefix: "{tmp_path}/s" type: "Adam" momentum2: 0.99 iter_size: 2'
    )
    solver = caffe.get_solver(str(tmp_path / 'solver'))
    solver.step(4)
    state = solver.snapshot()
    seen = []
    solver.add_callback(lambda: None, lambda: seen.append(solver.net.blobs['label'].data.copy()))
    solver.step(5)
    other = caffe.get_solver(str(tmp_path / 'solver'))
    other.step(1)
    other.restore(state)
    again = []
    other.add_callback(lambda: None, lambda: again.append(other.net.blobs['label'].data.copy()))
    other.step(5)
    assert np.array_equal(seen, again) and len({tuple(labels) for labels in seen}) > 1
    for one, two in zip(solver.net.params['ip'], other.net.params['ip']):
        assert np.array_equal(one.data, two.data)
