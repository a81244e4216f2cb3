"""Scripts as they are written for pycaffe, with `import caffe_port as caffe`."""

import gc
import inspect
import logging
from configparser import ConfigParser
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import layers as L
from caffe_port import params as P
from caffe_port.ops import LAYER_TYPES
from surgery import upsample_filt
from tests.vectors import net_of

CLASSES = 4
ROOT = Path(__file__).resolve().parents[2]


def conv_relu(bottom, nout, ks=3, stride=1, pad=1):
    conv = L.Convolution(
        bottom,
        kernel_size=ks,
        stride=stride,
        num_output=nout,
        pad=pad,
        weight_filler=dict(type='msra'),
        param=[dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)],
    )
    return conv, L.ReLU(conv, in_place=True)


def fcn(size=(12, 12), loss=True):
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, *size]))
    if loss:
        n.label = L.Input(shape=dict(dim=[1, 1, *size]))
    n.conv1, n.relu1 = conv_relu(n.data, 8)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.MAX, kernel_size=2, stride=2)
    n.drop1 = L.Dropout(n.pool1, dropout_ratio=0.5, in_place=True)
    n.score_fr = L.Convolution(
        n.drop1, num_output=CLASSES, kernel_size=1, weight_filler=dict(type='xavier')
    )
    n.upscore = L.Deconvolution(
        n.score_fr,
        convolution_param=dict(num_output=CLASSES, kernel_size=4, stride=2, bias_term=False),
        param=[dict(lr_mult=0)],
    )
    n.score = L.Crop(n.upscore, n.data, crop_param=dict(axis=2, offset=1))
    if loss:
        n.loss = L.SoftmaxWithLoss(
            n.score, n.label, loss_param=dict(normalize=False, ignore_label=255)
        )
    return n.to_proto()


@pytest.fixture
def files(tmp_path):
    """Prototxts and a solver as the release lays them out, in a folder."""
    (tmp_path / 'train.prototxt').write_text(str(fcn()))
    (tmp_path / 'val.prototxt').write_text(str(fcn()))
    (tmp_path / 'deploy.prototxt').write_text(str(fcn(loss=False)))
    (tmp_path / 'solver.prototxt').write_text(
        f"""
        train_net: "train.prototxt"
        test_net: "val.prototxt"
        test_iter: 1
        test_interval: 999999999  # do not test in the solver
        display: 2
        average_loss: 2
        lr_policy: "fixed"
        base_lr: 0.001
        momentum: 0.9
        iter_size: 1
        max_iter: 100
        weight_decay: 0.0005
        random_seed: 1337
        snapshot: 4
        snapshot_prefix: "{tmp_path}/snap"
        test_initialization: false
    """
    )
    return tmp_path


def image(seed=0, size=(12, 12)):
    return np.random.RandomState(seed).randn(3, *size).astype(np.float32)


def feed(net, seed=0):
    """An image whose right half is brighter, and labelled 1."""
    right = np.arange(12) >= 6
    net.blobs['data'].data[0, ...] = image(seed) + 3 * right
    net.blobs['label'].data[0, 0] = right


def interp(net, layers):
    for name in layers:
        m, k, h, w = net.params[name][0].data.shape
        assert m == k and h == w
        net.params[name][0].data[range(m), range(k), :, :] = upsample_filt(h)


def fast_hist(a, b, n):
    k = (a >= 0) & (a < n)
    return np.bincount(n * a[k].astype(int) + b[k], minlength=n**2).reshape(n, n)


def compute_hist(net, count, layer='score', gt='label'):
    n_cl = net.blobs[layer].channels
    hist, loss = np.zeros((n_cl, n_cl)), 0
    for i in range(count):
        feed(net, i)
        net.forward()
        hist += fast_hist(
            net.blobs[gt].data[0, 0].flatten(), net.blobs[layer].data[0].argmax(0).flatten(), n_cl
        )
        loss += net.blobs['loss'].data.flat[0]
    return hist, loss / count


def test_solve_as_the_release_does(files):
    caffe.set_mode_cpu()
    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    interp_layers = [k for k in solver.net.params.keys() if 'up' in k]  # noqa: SIM118
    assert interp_layers == ['upscore']
    interp(solver.net, interp_layers)
    feed(solver.net)
    losses = []
    for _ in range(15):
        solver.step(2)
        losses.append(float(solver.net.blobs['loss'].data))
    assert solver.iter == 30 and np.mean(losses[-3:]) < 0.7 * losses[0]
    assert (files / 'snap_iter_4.caffemodel').exists()
    solver.test_nets[0].share_with(solver.net)
    hist, loss = compute_hist(solver.test_nets[0], 2)
    assert hist.sum() == 2 * 144 and loss > 0
    assert np.diag(hist).sum() / hist.sum() > 0.8
    resumed = caffe.SGDSolver(str(files / 'solver.prototxt'))
    resumed.restore(str(files / 'snap_iter_28.solverstate'))
    assert resumed.iter == 28


def test_infer_as_the_release_does(files):
    train = caffe.Net(str(files / 'train.prototxt'), caffe.TRAIN)
    interp(train, ['upscore'])
    train.save(str(files / 'net.caffemodel'))
    net = caffe.Net(str(files / 'deploy.prototxt'), str(files / 'net.caffemodel'), caffe.TEST)
    in_ = image(3, (17, 23))
    net.blobs['data'].reshape(1, *in_.shape)
    net.blobs['data'].data[...] = in_
    net.forward()
    out = net.blobs['score'].data[0].argmax(axis=0)
    assert out.shape == (17, 23) and len(np.unique(out)) > 1
    for name, blobs in train.params.items():
        for one, other in zip(blobs, net.params[name]):
            assert np.array_equal(one.data, other.data)


def test_transplant_as_loops_over_params():
    net, new_net = (caffe.Net(fcn(), caffe.TEST) for _ in range(2))
    for p in net.params:
        for i in range(len(net.params[p])):
            new_net.params[p][i].data.flat = net.params[p][i].data.flat
    for each in (net, new_net):
        feed(each)
    assert np.array_equal(net.forward()['loss'], new_net.forward()['loss'])


def test_net_surgery_on_data_in_place():
    net = caffe.Net(fcn(), caffe.TEST)
    net.params['conv1'][0].data[0] *= 0
    net.params['conv1'][1].data[0] = 5
    net.forward()
    assert (net.blobs['conv1'].data[0, 0] == 5).all()


def test_forward_and_backward_take_starts_ends_kwargs_and_lists():
    net = caffe.Net(fcn(), caffe.TRAIN)
    out = net.forward(blobs=['conv1', 'pool1'], data=image()[None], label=np.zeros((1, 1, 12, 12)))
    assert set(out) == {'loss', 'conv1', 'pool1'}
    assert list(net.forward(end='pool1')) == ['pool1']
    assert list(net.forward(start='score_fr')) == ['loss']
    assert list(net.forward(['score'], 'score_fr', 'upscore')) == ['upscore', 'score']
    net.forward()
    diffs = net.backward(diffs=['score'])
    assert {'score'} <= set(diffs) and diffs['score'].shape == (1, CLASSES, 12, 12)
    top = np.ones_like(net.blobs['upscore'].data)
    assert list(net.backward(start='upscore', end='score_fr', upscore=top)) == ['pool1']


def test_argument_orders_are_pycaffes():
    def names(function):
        return [name for name in inspect.signature(function).parameters if name != 'self']

    assert names(caffe.Net.forward) == ['blobs', 'start', 'end', 'inputs']
    assert names(caffe.Net.backward) == ['diffs', 'start', 'end', 'tops']
    assert names(caffe.SGDSolver.add_callback) == ['before', 'after']
    assert names(caffe.Layer.backward) == ['top', 'propagate_down', 'bottom']
    assert names(caffe.io.blobproto_to_array) == ['blob', 'return_diff']
    assert names(caffe.io.Transformer.preprocess)[0] == 'in_'


def test_imports_as_pycaffe_code_writes_them():
    import caffe_port.io
    from caffe_port.io import Transformer  # noqa: F401

    from caffe_port import Layer, Net, SGDSolver, to_proto  # noqa: F401
    from caffe_port.coord_map import coord_map_from_to, crop  # noqa: F401
    from caffe_port.proto import caffe_pb2

    assert caffe_port.io is caffe.io and caffe_pb2.NetParameter is type(fcn())


def test_the_nets_parts_have_their_types_and_orders():
    net = caffe.Net(fcn(), caffe.TEST)
    assert net.layer_dict['conv1'].type == 'Convolution'
    assert net.layers == [net.layer_dict[name] for name in net._layer_names]
    assert net.inputs == ['data', 'label'] and net.outputs == ['loss']
    assert net.top_names['pool1'] == ['pool1'] and net.bottom_names['score'] == ['upscore', 'data']
    blob = net.blobs['score']
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, CLASSES, 12, 12)
    assert blob.count == CLASSES * 144 and blob.data.dtype == blob.diff.dtype == np.float32


def test_blobs_and_params_outlive_their_net():
    net = caffe.Net(fcn(), caffe.TEST)
    feed(net)
    net.forward()
    score, blob, weight = net.blobs['score'].data, net.blobs['conv1'], net.params['conv1'][0]
    kept = [array.copy() for array in (score, blob.data, weight.data)]
    del net
    gc.collect()
    for array, copy in zip((score, blob.data, weight.data), kept):
        assert np.array_equal(array, copy)


HELD = """
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {
        num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "elu" type: "ELU" bottom: "ip" top: "ip" }
layer { name: "twice" type: "Power" bottom: "ip" top: "twice" power_param { scale: 2 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "twice" bottom: "data" top: "loss" }
"""


def test_arrays_that_are_held_show_what_is_computed_next():
    net, fresh = net_of(HELD), net_of(HELD)
    fresh.share_with(net)
    data, ip, loss = (net.blobs[name].data for name in ('data', 'ip', 'loss'))
    row, diffs = ip[0], {name: net.blobs[name].diff for name in ('data', 'ip')}
    weight_diff = net.params['ip'][0].diff
    for value in (1, 2, 3):
        fresh.blobs['data'].data[...] = data[...] = value * image(value)[0, :2, :3]
        net.clear_param_diffs()
        fresh.clear_param_diffs()
        for each in (net, fresh):
            each.forward()
            each.forward(start='elu')  # begins where it also writes
            each.backward()
        assert ip is net.blobs['ip'].data and np.shares_memory(row, ip)
        assert np.array_equal(ip, fresh.blobs['ip'].data) and loss == fresh.blobs['loss'].data
        for name, diff in diffs.items():
            assert diff.any() and np.array_equal(diff, fresh.blobs[name].diff)
        assert np.array_equal(weight_diff, fresh.params['ip'][0].diff)


MANY = """
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 } } }
layer { name: "conv" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {
        num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "split" type: "Split" bottom: "ip" top: "a" top: "b" }
layer { name: "tanh" type: "TanH" bottom: "a" top: "a" }
layer { name: "flat" type: "Flatten" bottom: "b" top: "flat" }
layer { name: "slice" type: "Slice" bottom: "b" top: "left" top: "right" slice_param { axis: 0 } }
layer { name: "bias" type: "Parameter" top: "bias" param { name: "p" }
        parameter_param { shape { dim: 3 dim: 4 } } }
layer { name: "half" type: "Power" bottom: "flat" top: "flat" power_param { scale: 0.5 } }
layer { name: "elu" type: "ELU" bottom: "left" top: "left" }
layer { name: "join" type: "Concat" bottom: "left" bottom: "right" top: "join"
        concat_param { axis: 0 } }
layer { name: "crop" type: "Crop" bottom: "join" bottom: "a" top: "crop" crop_param { axis: 1 } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "crop" top: "crop" }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "flat" bottom: "join" bottom: "crop"
        bottom: "b" top: "sum" }
layer { name: "same" type: "Reshape" bottom: "sum" top: "same" reshape_param {
        shape { dim: 3 dim: -1 } } }
layer { name: "shift" type: "Power" bottom: "bias" top: "bias" power_param { shift: 1 } }
layer { name: "out" type: "Eltwise" bottom: "same" bottom: "bias" top: "out" }
"""


@pytest.mark.parametrize('after', ['nothing', 'part', 'all'])
def test_to_hold_arrays_changes_no_value(after):
    net, fresh = net_of(MANY, caffe.TRAIN), net_of(MANY, caffe.TRAIN)
    for name, blobs in net.params.items():
        for one, other in zip(blobs, fresh.params[name]):
            other.data[...] = one.data
    held = {}
    for value in (1, 2, 3):
        for each in (net, fresh):
            each.blobs['data'].data[...] = value * image(value)[:2, :3, :4]
            each.clear_param_diffs()
        if not held:
            if after == 'part':
                net.forward(end='bias')
            if after == 'all':
                net.forward()
                net.blobs['out'].diff[...] = 1
                net.backward()
                net.clear_param_diffs()
            held = {name: (blob.data, blob.diff) for name, blob in net.blobs.items()}
            params = [(blob.data, blob.diff) for blob in sum(net.params.values(), [])]
        for each in (net, fresh):
            each.forward()
            each.forward(start='sum')
            each.blobs['out'].diff[...] = each.blobs['out'].data
            each.backward()
            each.backward(start='sum', end='slice')
        for name, (data, diff) in held.items():
            assert data is net.blobs[name].data and diff is net.blobs[name].diff
            assert np.array_equal(data, fresh.blobs[name].data), name
            assert np.array_equal(diff, fresh.blobs[name].diff), name
        for (data, diff), blob in zip(params, sum(fresh.params.values(), [])):
            assert np.array_equal(data, blob.data)
            assert diff.any() and np.array_equal(diff, blob.diff)


def test_an_array_that_nobody_holds_costs_no_copy():
    net = net_of(HELD)
    where = net.blobs['twice'].data.ctypes.data
    held = net.blobs['loss'].data
    net.forward()
    assert net.blobs['twice'].data.ctypes.data != where and net.blobs['loss'].data is held


def test_a_solver_by_hand_holds_its_arrays():
    net = net_of(HELD)
    net.blobs['data'].data[...] = image()[0, :2, :3]
    held = [(blob.data, blob.diff) for blob in net.params['ip']]
    losses = []
    for _ in range(30):
        net.clear_param_diffs()
        losses.append(float(net.forward()['loss']))
        net.backward()
        for data, diff in held:
            data -= 0.02 * diff
    assert losses[-1] < 0.5 * losses[0]


def test_nets_outlive_their_solver(files):
    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    net, test_net = solver.net, solver.test_nets[0]
    del solver
    gc.collect()
    for each in (net, test_net):
        feed(each)
        assert each.forward()['loss'] > 0


def test_callbacks_stand_before_forward_and_after_backward(files):
    solver = caffe.get_solver(str(files / 'solver.prototxt'))
    interp(solver.net, ['upscore'])
    feed(solver.net)
    seen = []
    solver.add_callback(
        lambda: seen.append(('before', solver.iter)),
        lambda: seen.append(('after', solver.iter, solver.net.params['conv1'][0].diff.any())),
    )
    solver.step(2)
    assert seen == [('before', 0), ('after', 0, True), ('before', 1), ('after', 1, True)]


def test_an_update_by_hand_is_one_of_the_solvers(files):
    by_hand, stepped = (caffe.SGDSolver(str(files / 'solver.prototxt')) for _ in range(2))
    for solver in (by_hand, stepped):
        interp(solver.net, ['upscore'])
        feed(solver.net)
    caffe.set_random_seed(5)
    by_hand.net.clear_param_diffs()
    by_hand.net.forward()
    by_hand.net.backward()
    by_hand.apply_update()
    caffe.set_random_seed(5)
    stepped.step(1)
    for name, blobs in by_hand.net.params.items():
        for one, other in zip(blobs, stepped.net.params[name]):
            assert np.array_equal(one.data, other.data)


def test_layer_types_are_listed():
    types = caffe.layer_type_list()
    assert types == sorted(LAYER_TYPES)
    assert {'Convolution', 'Deconvolution', 'Crop', 'SoftmaxWithLoss', 'Python'} <= set(types)


def test_set_device_refuses_a_gpu_that_is_not_there():
    with pytest.raises(caffe.CaffeError, match=r'^set_device: no GPU 4096'):
        caffe.set_device(4096)


def test_the_version_is_read_without_importing_the_package():
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['metadata']['version'] == 'attr: caffe_port.version.__version__'
    code = (ROOT / 'caffe_port/version.py').read_text()
    assert 'import' not in code.split('"""')[2]
    assert f"__version__ = '{caffe.__version__}'" in code


def test_a_timer_measures_from_start_to_stop(monkeypatch):
    clock = iter([1.0, 1.25, 2.0, 2.5])
    monkeypatch.setattr('time.perf_counter', lambda: next(clock))
    timer = caffe.Timer()
    assert timer.ms == 0
    timer.start()
    timer.start()
    timer.stop()
    timer.stop()
    assert timer.ms == timer.ms == 250
    timer.start()
    assert timer.ms == 500  # as in Caffe, to read it is to stop it


def test_nccl_makes_uids_and_starts_from_rank_0(files):
    assert caffe.has_nccl() in (True, False)
    uid = caffe.NCCL.new_uid()
    assert isinstance(uid, bytes) and len(uid) == 128 and uid != caffe.NCCL.new_uid()
    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    before = [blob.data.copy() for blob in solver.net.params['conv1']]
    caffe.NCCL(solver, uid).bcast()
    for blob, copy in zip(solver.net.params['conv1'], before):
        assert np.array_equal(blob.data, copy), 'one process has only rank 0'
    with pytest.raises(caffe.CaffeError, match='uid must be 128 bytes'):
        caffe.NCCL(solver, 'uid')


def test_deep_dream_sets_a_diff_and_goes_back():
    proto = fcn(loss=False)
    proto.force_backward = True
    net = caffe.Net(proto, caffe.TEST)
    src, dst = net.blobs['data'], net.blobs['conv1']
    src.data[0] = image()
    net.forward(end='conv1')
    dst.diff[:] = dst.data
    net.backward(start='conv1')
    g = src.diff[0]
    assert g.any()
    before = (dst.data**2).sum()
    src.data[:] += 0.1 / np.abs(g).mean() * g
    net.forward(end='conv1')
    assert (dst.data**2).sum() > before


# What pycaffe's own tests ask of a net, a solver and caffe.io, and is not asked elsewhere here.

SIMPLE = """
name: "testnet"
force_backward: true
layer { type: "DummyData" name: "data" top: "data" top: "label" dummy_data_param {
        num: 5 channels: 2 height: 3 width: 4 num: 5 channels: 1 height: 1 width: 1
        data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" } } }
layer { type: "Convolution" name: "conv" bottom: "data" top: "conv" convolution_param {
        num_output: 11 kernel_size: 2 pad: 3 weight_filler { type: "gaussian" std: 1 }
        bias_filler { type: "constant" value: 2 } }
        param { decay_mult: 1 } param { decay_mult: 0 } }
layer { type: "InnerProduct" name: "ip" bottom: "conv" top: "ip_blob" inner_product_param {
        num_output: 13 weight_filler { type: "gaussian" std: 2.5 }
        bias_filler { type: "constant" value: -3 } } }
layer { type: "SoftmaxWithLoss" name: "loss" bottom: "ip_blob" bottom: "label" top: "loss" }
"""


@pytest.fixture
def simple():
    net = net_of(SIMPLE, caffe.TRAIN)
    net.blobs['label'].data[...] = np.random.RandomState(1).randint(13, size=(5, 1, 1, 1))
    return net


def test_a_middle_layer_runs_forward_on_what_its_bottom_holds(simple):
    conv, (weight, bias) = simple.blobs['conv'], simple.params['ip']
    conv.data[:] = np.random.RandomState(2).uniform(size=conv.data.shape)
    out = simple.forward(start='ip', end='ip')
    expected = conv.data.reshape(5, -1) @ weight.data.T + bias.data
    assert list(out) == ['ip_blob'] and np.allclose(out['ip_blob'], expected, rtol=1e-3, atol=1e-5)


def test_a_middle_layer_runs_backward_from_what_its_top_holds(simple):
    top, weight = simple.blobs['ip_blob'], simple.params['ip'][0]
    top.diff[:] = np.random.RandomState(2).uniform(-100, 100, top.data.shape)
    out = simple.backward(start='ip', end='ip')
    expected = (top.diff @ weight.data).reshape(simple.blobs['conv'].data.shape)
    assert list(out) == ['conv'] and np.allclose(out['conv'], expected, rtol=1e-3, atol=1e-3)


def test_cleared_diffs_are_seen_in_the_array_that_is_held(simple):
    simple.forward()
    simple.backward()
    diff = simple.params['conv'][0].diff
    assert diff.max() > 0
    simple.clear_param_diffs()
    assert (diff == 0).all()


def test_the_names_of_tops_and_bottoms_are_ordered_by_layer(simple):
    assert simple.inputs == [] and simple.outputs == ['loss']
    assert list(simple.top_names.items()) == [
        ('data', ['data', 'label']),
        ('conv', ['conv']),
        ('ip', ['ip_blob']),
        ('loss', ['loss']),
    ]
    assert list(simple.bottom_names.items()) == [
        ('data', []),
        ('conv', ['data']),
        ('ip', ['conv']),
        ('loss', ['ip_blob', 'label']),
    ]
    assert list(simple.layer_dict) == list(simple._layer_names)
    for i, name in enumerate(simple._layer_names):
        assert simple.layer_dict[name].type == simple.layers[i].type


def test_saved_nets_load_by_both_constructors(simple, tmp_path):
    (tmp_path / 'net.prototxt').write_text(SIMPLE)
    simple.save(str(tmp_path / 'net.caffemodel'))
    net, weights = str(tmp_path / 'net.prototxt'), str(tmp_path / 'net.caffemodel')
    for again in (
        caffe.Net(net, weights, caffe.TRAIN),
        caffe.Net(net, caffe.TRAIN, weights=weights),
        caffe.Net(net, phase=caffe.TRAIN, weights=weights),
        caffe.Net(net, caffe.TRAIN, 0, None, weights),
    ):
        for name, blobs in simple.params.items():
            for one, other in zip(blobs, again.params[name]):
                assert np.array_equal(one.data, other.data)
    with pytest.raises(caffe.CaffeError, match='phase is None'):
        caffe.Net(net)


def test_the_constructor_takes_pycaffes_keywords(simple, tmp_path):
    (tmp_path / 'net.prototxt').write_text(SIMPLE)
    simple.save(str(tmp_path / 'net.caffemodel'))
    again = caffe.Net(
        network_file=str(tmp_path / 'net.prototxt'),
        phase=caffe.TEST,
        level=0,
        stages=None,
        weights=str(tmp_path / 'net.caffemodel'),
    )
    assert np.array_equal(again.params['ip'][0].data, simple.params['ip'][0].data)


def test_a_net_has_the_names_and_numbers_that_pycaffe_is_made_of():
    net = caffe.Net(fcn(), caffe.TRAIN)
    feed(net)
    names = net._blob_names
    assert names == list(net.blobs) and net._blobs == list(net.blobs.values())
    assert [names[i] for i in net._inputs] == ['data', 'label']
    assert [names[i] for i in net._outputs] == ['loss']
    for number, layer in enumerate(net._layer_names):
        assert [names[i] for i in net._bottom_ids(number)] == net.bottom_names[layer]
        assert [names[i] for i in net._top_ids(number)] == net.top_names[layer]
    assert net._blob_loss_weights == [0] * (len(names) - 1) + [1]
    assert net.blob_loss_weights['loss'] == 1 and net.blob_loss_weights['score'] == 0
    end = len(net.layers) - 1
    assert net._forward(0, end) == float(net.blobs['loss'].data) > 0
    assert net._forward(0, end - 1) == 0
    net._backward(end, end)
    assert net.blobs['score'].diff.any() and not net.params['conv1'][0].diff.any()
    with pytest.raises(caffe.CaffeError, match='first layer must be MemoryData'):
        net._set_input_arrays(np.zeros((1, 3, 12, 12), np.float32), np.zeros(1, np.float32))


def test_callbacks_of_a_net_stand_around_each_layer():
    net, seen = net_of(HELD), []
    for when in ('before_forward', 'after_forward', 'before_backward', 'after_backward'):
        getattr(net, when)(lambda i, when=when: seen.append((when, i, net.blobs['ip'].data.any())))
    net.blobs['data'].data[...] = 1
    net.forward(end='ip')
    assert seen == [
        ('before_forward', 0, False),
        ('after_forward', 0, False),
        ('before_forward', 1, False),
        ('after_forward', 1, True),
    ]
    seen.clear()
    net.forward(start='elu')
    net.backward(end='loss')
    net.backward(start='ip')
    numbers = [4, 4, 1, 1, 0, 0]
    assert [i for when, i, _ in seen if 'forward' in when] == [2, 2, 3, 3, 4, 4]
    assert [i for when, i, _ in seen if 'backward' in when] == numbers
    seen.clear()
    deepcopy(net).forward()
    assert not seen, 'callbacks belong to the original'


def test_nets_that_share_must_agree_and_else_share_nothing():
    net, other = net_of(HELD), net_of(HELD.replace('num_output: 3', 'num_output: 3 bias_term: 0'))
    before = net.params['ip'][0].data.copy()
    with pytest.raises(caffe.CaffeError, match='share_with: ip: expected 2 blobs, found 1'):
        net.share_with(other)
    net.share_with(net_of(HELD.replace('"ip" type', '"other" type')))
    assert np.array_equal(net.params['ip'][0].data, before)
    same = net_of(HELD)
    net.share_with(same)
    same.params['ip'][0].data[...] = 7
    assert (net.params['ip'][0].data == 7).all()


def test_the_log_has_levels_and_takes_messages(caplog):
    log = logging.getLogger('caffe_port')
    level = log.level
    try:
        caffe.init_log(1)
        caffe.log('not heard')
        caffe.init_log(0, False)
        caffe.log('100%')
    finally:
        log.setLevel(level)
    assert [record.getMessage() for record in caplog.records] == ['100%']
    with pytest.raises(caffe.CaffeError, match='init_log: level 4, expected 0 to 3'):
        caffe.init_log(4)


def test_a_multi_gpu_script_of_pycaffe_runs_on_one_process(files):
    caffe.set_solver_count(1)
    caffe.set_solver_rank(0)
    caffe.set_multiprocess(True)
    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    interp(solver.net, ['upscore'])
    feed(solver.net)
    nccl = caffe.NCCL(solver, caffe.NCCL.new_uid())
    nccl.bcast()
    solver.add_callback(nccl)
    solver.step(1)
    assert solver.iter == 1
    with pytest.raises(caffe.CaffeError, match='expected 1, as many processes .* found 2'):
        caffe.set_solver_count(2)
    with pytest.raises(caffe.CaffeError, match="expected 0, this process's number, found 1"):
        caffe.set_solver_rank(1)
    with pytest.raises(caffe.CaffeError, match='one object with on_start .* found one function'):
        solver.add_callback(lambda: None)


def test_one_object_is_both_callbacks(files):
    class Watch:
        seen = []

        def on_start(self):
            self.seen.append('start')

        def on_gradients_ready(self):
            self.seen.append('ready')

    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    solver.add_callback(Watch())
    solver.step(2)
    assert Watch.seen == ['start', 'ready'] * 2


def test_classifier_and_detector_are_modules_too():
    from caffe_port.classifier import Classifier
    from caffe_port.detector import Detector

    assert caffe.Classifier is Classifier and caffe.Detector is Detector
    assert caffe.detector.Detector is Detector


def test_an_update_is_of_the_diffs_that_are_there(files):
    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    blob = next(layer for layer in solver.net.layers if layer.type == 'Convolution').blobs[0]
    data = blob.data[...]
    data[...], blob.diff[...] = 0, 1
    solver.apply_update()
    assert np.allclose(data, -0.001, rtol=1e-6)


def test_a_snapshot_is_two_files_named_by_iteration(files):
    solver = caffe.SGDSolver(str(files / 'solver.prototxt'))
    solver.snapshot()
    for suffix in ('caffemodel', 'solverstate'):
        assert (files / f'snap_iter_0.{suffix}').stat().st_size > 0


def test_a_net_without_tops_runs_and_returns_nothing():
    n = caffe.NetSpec()
    n.data, n.label = L.DummyData(
        shape=[dict(dim=[8, 1, 4, 4]), dict(dim=[8])], ntop=2, transform_param=dict(scale=0.5)
    )
    n.quiet = L.Silence(n.data, n.label, ntop=0)
    assert caffe.Net(n.to_proto(), caffe.TEST).forward() == {}
