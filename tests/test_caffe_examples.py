"""The examples that Caffe is learnt from, narrow, on drawn data in the formats they are in."""

import logging
import re

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.__main__ import main
from caffe_port.net_spec import NetSpec
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from caffe_port.proto.caffe_pb2 import Datum
from caffe_port.tools.new_database import create_database
from nets import caffenet, googlenet
from nets.atoms import LEARNT, lrn, max_pool
from tests.formulas import RANDOM
from tests.vectors import assert_close, net_of

CLASSES = 3
BOTH = dict(weight_filler=dict(type='xavier'), param=[dict(lr_mult=1), dict(lr_mult=2)])


def draw(label, size, random):
    """A grey picture: a bar across, a bar down, or a disc, somewhere and not quite clean."""
    y, x = np.mgrid[:size, :size] / size
    a, b = random.uniform(0.35, 0.65, 2)
    shown = (abs(y - a) < 0.1, abs(x - b) < 0.1, (y - a) ** 2 + (x - b) ** 2 < 0.06)[label]
    return (200 * shown + random.uniform(0, 55, (size, size))).astype(np.uint8)


def write_images(folder, name, count, size, channels=1):
    """Write pictures, the list of them and an LMDB of the same name."""
    random, lines = RANDOM(count), []
    for i in range(count):
        pixels = np.dstack([draw(i % CLASSES, size, random) for _ in range(channels)])
        Image.fromarray(pixels.squeeze()).save(folder / f'{name}{i}.png')
        lines.append(f'{name}{i}.png {i % CLASSES}\n')
    (folder / f'{name}.txt').write_text(''.join(lines))
    arguments = [f'--gray={channels == 1}'.lower(), f'{folder}/', f'{folder}/{name}.txt']
    assert main(['convert_imageset', *arguments, f'{folder}/{name}_lmdb']) == 0


def data(folder, batch, transform):
    """The data layers of a train_val.prototxt: of train_lmdb and of test_lmdb."""
    return ''.join(
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: {phase} }} '
        f'data_param {{ source: "{folder}/{name}_lmdb" backend: LMDB batch_size: {batch} }} '
        f'transform_param {{ {transform} }} }}\n'
        for phase, name in (('TRAIN', 'train'), ('TEST', 'test'))
    )


TAIL = """
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
        include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""


def write_solver(folder, net, text):
    (folder / 'train_val.prototxt').write_text(net)
    (folder / 'solver.prototxt').write_text(
        f'net: "{folder}/train_val.prototxt" snapshot_prefix: "{folder}/s" random_seed: 1 '
        f'solver_mode: CPU {text}'
    )
    return str(folder / 'solver.prototxt')


def scores(caplog, folder, iteration):
    """What `caffe test` says of a snapshot."""
    caplog.clear()
    weights = f'--weights={folder}/s_iter_{iteration}.caffemodel'
    assert main(['test', f'--model={folder}/train_val.prototxt', weights, '-iterations', '2']) == 0
    text = '\n'.join(record.getMessage() for record in caplog.records)
    return {name: float(value) for name, value in re.findall(r'^(\w+) = (\S+)', text, re.M)}


@pytest.fixture(autouse=True)
def log(caplog):
    pytest.importorskip('lmdb')
    caplog.set_level(logging.INFO, 'caffe_port')


def test_lenet_on_an_lmdb_trains_snapshots_resumes_and_is_tested(tmp_path, caplog):
    write_images(tmp_path, 'train', 60, 28)
    write_images(tmp_path, 'test', 30, 28)
    n = NetSpec()
    n.data = L.Input()
    n.conv1 = L.Convolution(n.data, num_output=6, kernel_size=5, **BOTH)
    n.pool1 = max_pool(n.conv1)
    n.conv2 = L.Convolution(n.pool1, num_output=10, kernel_size=5, **BOTH)
    n.pool2 = max_pool(n.conv2)
    n.ip1 = L.InnerProduct(n.pool2, num_output=20, **BOTH)
    n.relu1 = L.ReLU(n.ip1, in_place=True)
    n.ip2 = L.InnerProduct(n.ip1, num_output=CLASSES, **BOTH)
    body = prototxt.to_text(n.to_proto()).partition('}\n')[2]
    solver = write_solver(
        tmp_path,
        'name: "LeNet"\n' + data(tmp_path, 20, 'scale: 0.00390625') + body + TAIL,
        'base_lr: 0.02 momentum: 0.9 weight_decay: 0.0005 lr_policy: "inv" gamma: 0.0001 '
        'power: 0.75 max_iter: 40 snapshot: 20 test_iter: 1 test_interval: 40',
    )
    assert main(['train', '-solver', solver]) == 0
    assert scores(caplog, tmp_path, 40)['accuracy'] > 0.9
    whole = (tmp_path / 's_iter_40.caffemodel').read_bytes()
    assert (
        main(['train', f'--solver={solver}', f'--snapshot={tmp_path}/s_iter_20.solverstate']) == 0
    )
    assert (tmp_path / 's_iter_40.caffemodel').read_bytes() == whole


def test_cifar_quick_with_the_mean_that_compute_image_mean_makes(tmp_path, caplog):
    write_images(tmp_path, 'train', 60, 32, 3)
    write_images(tmp_path, 'test', 30, 32, 3)
    assert main(['compute_image_mean', f'{tmp_path}/train_lmdb', f'{tmp_path}/mean']) == 0
    n = NetSpec()
    n.data = top = L.Input()
    for i, (width, pool) in enumerate(
        zip((4, 4, 8), (P.Pooling.MAX, P.Pooling.AVE, P.Pooling.AVE))
    ):
        top = n[f'conv{i}'] = L.Convolution(top, num_output=width, kernel_size=5, pad=2, **BOTH)
        if i:
            top = n[f'relu{i}'] = L.ReLU(top, in_place=True)
        top = n[f'pool{i}'] = L.Pooling(top, pool=pool, kernel_size=3, stride=2)
        if not i:
            top = n[f'relu{i}'] = L.ReLU(top, in_place=True)
    n.ip1 = L.InnerProduct(top, num_output=16, **BOTH)
    n.ip2 = L.InnerProduct(n.ip1, num_output=CLASSES, **BOTH)
    body = prototxt.to_text(n.to_proto()).partition('}\n')[2]
    solver = write_solver(
        tmp_path,
        data(tmp_path, 20, f'mean_file: "{tmp_path}/mean"') + body + TAIL,
        'base_lr: 0.0003 momentum: 0.9 weight_decay: 0.004 lr_policy: "fixed" max_iter: 60 '
        'snapshot_format: HDF5',
    )
    net = caffe.Net(f'{tmp_path}/train_val.prototxt', caffe.TRAIN)
    assert abs(sum(net.forward(end='data')['data'].sum(0) for _ in range(3))).max() < 0.1
    assert main(['train', f'--solver={solver}']) == 0
    (tmp_path / 's_iter_60.caffemodel.h5').rename(tmp_path / 's_iter_60.caffemodel')
    assert scores(caplog, tmp_path, 60)['accuracy'] > 0.9


def test_siamese_towers_share_their_weights_and_learn_what_is_alike(tmp_path):
    random = RANDOM(1)
    with create_database('leveldb', str(tmp_path / 'pairs')) as database:
        for i in range(64):
            pair = [int(label) for label in random.randint(0, CLASSES, 2)]
            images = np.stack([draw(label, 16, random) for label in pair])
            record = Datum(channels=2, height=16, width=16, data=images.tobytes())
            record.label = int(pair[0] == pair[1])
            database.put(b'%04d' % i, record.SerializeToString())
    n = NetSpec()
    n.pair_data, n.sim = L.Data(
        source=str(tmp_path / 'pairs'), backend=P.Data.LEVELDB, batch_size=16, ntop=2,
        transform_param=dict(scale=1 / 256),
    )  # fmt: skip
    n.data, n.data_p = L.Slice(n.pair_data, slice_dim=1, slice_point=1, ntop=2)
    for end in ('', '_p'):
        top, settings = n[f'data{end}'], dict(weight_filler=dict(type='xavier'))
        for name, make in (
            ('conv', lambda *a, **k: L.Convolution(*a, num_output=6, kernel_size=5, stride=2, **k)),
            ('ip', lambda *a, **k: L.InnerProduct(*a, num_output=16, **k)),
            ('feat', lambda *a, **k: L.InnerProduct(*a, num_output=2, **k)),
        ):
            shared = [dict(name=f'{name}_w', lr_mult=1), dict(name=f'{name}_b', lr_mult=2)]
            top = n[name + end] = make(top, param=shared, **settings)
            if name != 'feat':
                top = n[f'relu_{name}{end}'] = L.ReLU(top, in_place=True)
    n.loss = L.ContrastiveLoss(n.feat, n.feat_p, n.sim, margin=1)
    solver = caffe.get_solver(
        write_solver(
            tmp_path,
            prototxt.to_text(n.to_proto()),
            'base_lr: 0.02 momentum: 0.9 lr_policy: "fixed" max_iter: 60',
        )
    )
    net = solver.net
    solver.step(1)
    first = float(net.blobs['loss'].data)
    solver.step(59)
    for name in ('conv', 'ip', 'feat'):
        for one, two in zip(net.params[name], net.params[name + '_p']):
            assert np.shares_memory(one.data, two.data)
    net.forward()
    assert float(net.blobs['loss'].data) < first / 2
    apart = np.linalg.norm(net.blobs['feat'].data - net.blobs['feat_p'].data, axis=1)
    alike = net.blobs['sim'].data == 1
    assert apart[alike].mean() < apart[~alike].mean() / 2


def test_hdf5_classification_needs_a_layer_between(tmp_path):
    h5py = pytest.importorskip('h5py')
    random = RANDOM(2)
    x = random.randn(300, 4).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.float32)  # no plane divides these
    for name, rows in (('train', slice(200)), ('test', slice(200, 300))):
        with h5py.File(tmp_path / f'{name}.h5', 'w') as file:
            file.create_dataset('data', data=x[rows], compression='gzip')
            file['label'] = y[rows]
        (tmp_path / f'{name}.txt').write_text(f'{tmp_path}/{name}.h5\n')
    found = {}
    for hidden in (0, 16):
        layers = ''.join(
            f'layer {{ name: "data" type: "HDF5Data" top: "data" top: "label" include {{ phase: '
            f'{name.upper()} }} hdf5_data_param {{ source: "{tmp_path}/{name}.txt" batch_size: 20 '
            '} }'
            for name in ('train', 'test')
        )
        n = NetSpec()
        n.data = top = L.Input()
        if hidden:
            n.ip1 = L.InnerProduct(n.data, num_output=hidden, **BOTH)
            top = n.relu1 = L.ReLU(n.ip1, in_place=True)
        n.ip2 = L.InnerProduct(top, num_output=2, **BOTH)
        body = prototxt.to_text(n.to_proto()).partition('}\n')[2]
        solver = caffe.get_solver(
            write_solver(
                tmp_path,
                layers + body + TAIL,
                'base_lr: 0.1 momentum: 0.9 lr_policy: "step" gamma: 0.1 stepsize: 100 '
                'test_iter: 5 test_interval: 1000',
            )
        )
        solver.step(150)
        net = solver.test_nets[0]
        net.share_with(solver.net)
        found[hidden] = np.mean([net.forward()['accuracy'] for _ in range(5)])
    assert found[16] > 0.9 and found[0] < 0.7


def test_net_surgery_makes_a_classifier_fully_convolutional(tmp_path):
    def net(size, last):
        return net_of(
            f'input: "data" input_shape {{ dim: 1 dim: 2 dim: {size} dim: {size} }}'
            'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
            'convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }'
            'layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { '
            f'pool: MAX kernel_size: 2 stride: 2 }} }} {last}'
            'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
        )

    classifier = net(
        10,
        'layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { '
        'num_output: 4 weight_filler { type: "gaussian" } bias_filler { value: 0.1 } } }',
    )
    classifier.save(str(tmp_path / 'classifier.caffemodel'))
    conv = net(
        14,
        'layer { name: "fc-conv" type: "Convolution" bottom: "pool" top: "fc" convolution_param { '
        'num_output: 4 kernel_size: 4 } }',
    )
    conv.copy_from(str(tmp_path / 'classifier.caffemodel'))
    for new, old in zip(conv.params['fc-conv'], classifier.params['fc']):
        new.data.flat = old.data.flat
    conv.save(str(tmp_path / 'conv.caffemodel'))
    image = RANDOM(3).randn(1, 2, 14, 14).astype(np.float32)
    whole = conv.forward(data=image)['prob'].copy()
    assert whole.shape == (1, 4, 3, 3)
    for row, column in np.ndindex(3, 3):
        y, x = 2 * row, 2 * column
        part = classifier.forward(data=image[:, :, y : y + 10, x : x + 10])['prob']
        assert_close(whole[:, :, row, column], part, 1e-5)


def test_a_captioner_reads_words_and_an_image_from_hdf5_and_takes_a_step(tmp_path):
    h5py = pytest.importorskip('h5py')
    steps, streams, words = 6, 4, 11
    random = RANDOM(4)
    sentences = random.randint(1, words, (2 * steps, streams))
    with h5py.File(tmp_path / 'captions.h5', 'w') as file:
        cont = np.ones((2 * steps, streams))
        cont[::steps] = 0
        file['cont_sentence'], file['input_sentence'] = cont, sentences
        target = np.roll(sentences, -1, 0)
        target[-1] = -1  # padding, which no loss counts
        file['target_sentence'] = target
    (tmp_path / 'captions.txt').write_text(str(tmp_path / 'captions.h5'))
    small = dict(type='uniform', min=-0.08, max=0.08)
    n = NetSpec()
    n.cont_sentence, n.input_sentence, n.target_sentence = L.HDF5Data(
        source=str(tmp_path / 'captions.txt'), batch_size=steps, ntop=3
    )
    n.image_features = L.DummyData(shape=dict(dim=[streams, 5]), data_filler=dict(type='gaussian'))
    n.embedded_input_sentence = L.Embed(
        n.input_sentence, input_dim=words, num_output=8, bias_term=False, weight_filler=small
    )
    n.lstm1 = L.LSTM(
        n.embedded_input_sentence, n.cont_sentence, n.image_features,
        recurrent_param=dict(num_output=7, weight_filler=small, bias_filler=dict(value=0)),
    )  # fmt: skip
    n.predict = L.InnerProduct(n.lstm1, num_output=words, axis=2, weight_filler=small)
    n.cross_entropy_loss = L.SoftmaxWithLoss(
        n.predict, n.target_sentence, loss_weight=20, softmax_param=dict(axis=2),
        loss_param=dict(ignore_label=-1),
    )  # fmt: skip
    n.accuracy = L.Accuracy(n.predict, n.target_sentence, axis=2, ignore_label=-1)
    solver = caffe.get_solver(
        write_solver(
            tmp_path,
            prototxt.to_text(n.to_proto()),
            'base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" clip_gradients: 10 max_iter: 2',
        )
    )
    net = solver.net
    shapes = {name: net.blobs[name].shape for name in ('input_sentence', 'lstm1', 'predict')}
    assert shapes == {
        'input_sentence': (steps, streams),
        'lstm1': (steps, streams, 7),
        'predict': (steps, streams, words),
    }
    assert [blob.shape for blob in net.params['lstm1']] == [(28, 8), (28,), (28, 5), (28, 7)]
    before = [blob.data.copy() for blob in net.params['lstm1']]
    solver.step(1)
    assert abs(float(net.blobs['cross_entropy_loss'].data) - np.log(words)) < 0.05
    assert all((old != new.data).any() for old, new in zip(before, net.params['lstm1']))
    solver.step(1)
    assert net.blobs['cont_sentence'].data[0].tolist() == [0] * streams


def with_crops(folder, crop):
    """Data with the transform of both ImageNet nets: a drawn crop and mirror, less the mean."""
    return L.Data(
        source=str(folder / 'train_lmdb'), backend=P.Data.LMDB, batch_size=2, ntop=2,
        transform_param=dict(mirror=True, crop_size=crop, mean_value=[104, 117, 123]),
    )  # fmt: skip


def step(folder, n, text):
    """The solver of a net after one step, and the crops that it has seen."""
    solver = caffe.get_solver(write_solver(folder, prototxt.to_text(n.to_proto()), text))
    before = {name: blobs[0].data.copy() for name, blobs in solver.net.params.items()}
    solver.step(1)
    assert all((solver.net.params[name][0].data != old).any() for name, old in before.items())
    return solver.net


def is_crop_of(image, crop):
    """Whether an array is a part of an image, mirrored or not."""
    height, width = (whole - part + 1 for whole, part in zip(image.shape[1:], crop.shape[1:]))
    for y, x in np.ndindex(height, width):
        part = image[:, y : y + crop.shape[1], x : x + crop.shape[2]]
        if np.array_equal(part, crop) or np.array_equal(part, crop[..., ::-1]):
            return True
    return False


def test_caffenets_train_val_crops_and_mirrors(tmp_path):
    write_images(tmp_path, 'train', 3, 230, 3)
    n = NetSpec()
    n.data, n.label = with_crops(tmp_path, 227)
    n.conv1, n.relu1 = caffenet.conv_relu(
        n.data, 6, ks=11, stride=4, param=LEARNT, weight_filler=dict(type='gaussian', std=0.01)
    )

    def learnt(*bottom, **settings):
        fillers = dict(weight_filler=dict(type='xavier'), bias_filler=dict(value=1))
        return caffenet.conv_relu(*bottom, param=LEARNT, **fillers, **settings)

    top = caffenet.trunk(n, n.relu1, 6, learnt)
    for i, width in ((6, 12), (7, 12)):
        top = n[f'fc{i}'] = L.InnerProduct(top, num_output=width, **BOTH)
        top = n[f'relu{i}'] = L.ReLU(top, in_place=True)
        top = n[f'drop{i}'] = L.Dropout(top, dropout_ratio=0.5, in_place=True)
    n.fc8 = L.InnerProduct(top, num_output=10, **BOTH)
    n.loss = L.SoftmaxWithLoss(n.fc8, n.label)
    net = step(
        tmp_path,
        n,
        'base_lr: 0.01 lr_policy: "step" gamma: 0.1 stepsize: 100000 momentum: 0.9 '
        'weight_decay: 0.0005',
    )
    assert net.blobs['data'].shape == (2, 3, 227, 227) and net.blobs['pool5'].shape[2:] == (6, 6)
    for i, found in enumerate(net.blobs['data'].data):
        image = np.asarray(Image.open(tmp_path / f'train{i}.png'))[..., ::-1].transpose(2, 0, 1)
        assert is_crop_of(image, found + np.float32([[[104]], [[117]], [[123]]]))
    assert net.blobs['label'].data.tolist() == [0, 1]


def test_googlenets_train_val_has_three_losses(tmp_path):
    write_images(tmp_path, 'train', 3, 230, 3)
    n = NetSpec()
    n.data, n.label = with_crops(tmp_path, 224)
    top = googlenet.conv_relu(n, 'conv1', '7x7_s2', n.data, 8, ks=7, std=0.1, pad=3, stride=2)
    top = n['pool1/norm1'] = lrn(max_pool(top, ks=3))
    top = googlenet.conv_relu(n, 'conv2', '3x3', top, 8, ks=3, std=0.03, pad=1)
    top = n['pool2/3x3_s2'] = max_pool(lrn(top), ks=3)
    top = googlenet.inception(n, '3a', top, 4, 4, 6, 2, 4, 2, 64)
    top = n['pool3/3x3_s2'] = max_pool(top, ks=3)

    def classify(name, top, weight):
        scores = n[f'{name}/classifier'] = L.InnerProduct(top, num_output=CLASSES, **googlenet.LAST)
        n[f'{name}/loss'] = L.SoftmaxWithLoss(scores, n.label, loss_weight=weight)

    for i, name in ((1, '4a'), (2, '4d'), (3, '5b')):
        top = googlenet.inception(n, name, top, 4, 4, 6, 2, 4, 2, 64)
        if i < 3:
            side = n[f'loss{i}/ave_pool'] = L.Pooling(
                top, pool=P.Pooling.AVE, kernel_size=5, stride=3
            )
            side = googlenet.conv_relu(n, f'loss{i}', 'conv', side, 4, ks=1, std=0.08)
            side = n[f'loss{i}/fc'] = L.InnerProduct(side, num_output=8, **googlenet.LAST)
            side = n[f'loss{i}/relu_fc'] = L.ReLU(side, in_place=True)
            side = n[f'loss{i}/drop_fc'] = L.Dropout(side, dropout_ratio=0.7, in_place=True)
            classify(f'loss{i}', side, 0.3)
    top = n['pool5'] = L.Pooling(top, pool=P.Pooling.AVE, global_pooling=True)
    classify('loss3', L.Dropout(top, dropout_ratio=0.4, in_place=True), 1)
    net = step(
        tmp_path,
        n,
        'base_lr: 0.01 lr_policy: "poly" power: 0.5 max_iter: 100 momentum: 0.9 '
        'weight_decay: 0.0002',
    )
    parts = [float(net.blobs[f'loss{i}/loss'].data) for i in (1, 2, 3)]
    assert float(net.loss()) == pytest.approx(0.3 * parts[0] + 0.3 * parts[1] + parts[2], rel=1e-6)
    assert net.blobs['data'].shape == (2, 3, 224, 224)


@pytest.mark.parametrize(
    'layer',
    [
        'layers { layer { name: "d" type: "data" source: "%s" batchsize: 4 cropsize: 9 scale: 0.5 '
        'meanfile: "%s" mirror: true } top: "data" top: "label" }',
        'layers { name: "d" type: DATA top: "data" top: "label" data_param { source: "%s" '
        'backend: LMDB batch_size: 4 crop_size: 9 scale: 0.5 mean_file: "%s" mirror: true } }',
    ],
    ids=['V0', 'V1'],
)
def test_older_prototxts_with_data_layers_feed_what_the_current_one_feeds(tmp_path, layer):
    write_images(tmp_path, 'train', 5, 12)
    assert main(['compute_image_mean', f'{tmp_path}/train_lmdb', f'{tmp_path}/mean']) == 0
    if 'type: "data"' in layer:  # V0 knew LevelDB alone, and says no backend
        pytest.importorskip('plyvel')
        arguments = [f'{tmp_path}/', f'{tmp_path}/train.txt', f'{tmp_path}/level']
        assert main(['convert_imageset', '--gray', '--backend=leveldb', *arguments]) == 0
    source = f'{tmp_path}/level' if 'type: "data"' in layer else f'{tmp_path}/train_lmdb'
    current = (
        'layer { name: "d" type: "Data" top: "data" top: "label" data_param { source: "%s" '
        'backend: LMDB batch_size: 4 } transform_param { crop_size: 9 scale: 0.5 mean_file: "%s" '
        'mirror: true } }'
    )
    found = []
    for text in (layer % (source, f'{tmp_path}/mean'),
                 current % (f'{tmp_path}/train_lmdb', f'{tmp_path}/mean')):  # fmt: skip
        caffe.set_random_seed(5)
        net = net_of(text, caffe.TRAIN)
        found.append([net.forward()['data'].copy() for _ in range(2)])
    assert found[0][0].shape == (4, 1, 9, 9) and np.array_equal(*found)
