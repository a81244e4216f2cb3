"""Net as pycaffe's: blobs, partial runs, weights, and errors that name what is wrong."""

import copy
import importlib
import pickle

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import layers as L
from caffe_port import prototxt, zoo
from caffe_port.files import caffemodel
from caffe_port.files.weights import read_layers
from caffe_port.net_spec import NetSpec
from tests.memory import at_most
from tests.vectors import net_of

INPUT = """
layer { name: "data" type: "Input" top: "data"
        input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
"""
TEXT = (
    f"""
name: "small"
force_backward: true
{INPUT}
"""
    + """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "one" type: "Power" bottom: "conv" top: "one" power_param { scale: 2 } }
layer { name: "two" type: "Power" bottom: "conv" top: "two" power_param { scale: 3 } }
layer { name: "sum" type: "Eltwise" bottom: "one" bottom: "two" top: "sum" }
"""
)


@pytest.fixture
def net():
    caffe.set_random_seed(1)
    net = net_of(TEXT)
    net.blobs['data'].data[...] = np.random.RandomState(2).randn(1, 3, 8, 8)
    return net


def test_the_face_names_layers_blobs_and_params_in_order(net):
    assert list(net.blobs) == ['data', 'conv', 'one', 'two', 'sum']
    assert net._layer_names == ['data', 'conv', 'relu', 'one', 'two', 'sum']
    assert net.inputs == ['data'] and net.outputs == ['sum']
    assert net.bottom_names['sum'] == ['one', 'two'] and net.top_names['relu'] == ['conv']
    assert [b.shape for b in net.params['conv']] == [(4, 3, 3, 3), (4,)]
    assert net.layer_dict['relu'].type == 'ReLU' and len(net.layers) == 6
    assert list(net.module.state_dict()) == ['conv.weight', 'conv.bias']


def test_outputs_on_the_cpu_are_the_blobs_own_memory(net):
    out = net.forward()
    assert np.shares_memory(out['sum'], net.blobs['sum'].data)
    assert np.shares_memory(net.params['conv'][0].data, net.module.state_dict()['conv.weight'])


def test_gradients_of_a_blob_read_twice_add_up(net):
    net.forward()
    net.blobs['sum'].diff[...] = 1
    net.backward()
    # d(2x + 3x)/dx = 5, and the in-place ReLU lets it pass where it was open.
    assert set(np.unique(net.blobs['conv'].diff)) == {0, 5}
    assert np.array_equal(net.blobs['conv'].diff == 5, net.blobs['conv'].data > 0)


def test_partial_forward_starts_from_what_the_blobs_hold(net):
    net.forward()
    net.blobs['conv'].data[...] = 7
    out = net.forward(start='one', end='two')
    assert list(out) == ['two'] and (out['two'] == 21).all()
    assert (net.blobs['one'].data == 14).all()


def test_partial_backward_starts_from_the_diff_that_was_set(net):
    net.forward()
    before = net.blobs['data'].diff.copy()
    net.blobs['one'].diff[...] = 4
    out = net.backward(start='one', end='one')
    assert (out['conv'] == 8).all()
    assert np.array_equal(net.blobs['data'].diff, before)


def test_backward_may_follow_one_forward_several_times_and_params_add_up(net):
    net.forward()
    net.blobs['sum'].diff[...] = 1
    net.backward()
    once = net.params['conv'][0].diff.copy()
    net.backward()
    assert np.allclose(net.params['conv'][0].diff, 2 * once)
    net.clear_param_diffs()
    assert not net.params['conv'][0].diff.any()


def test_without_loss_or_force_backward_nothing_flows_back():
    net = net_of(TEXT.replace('force_backward: true', ''))
    net.forward()
    net.blobs['sum'].diff[...] = 1
    net.backward()
    assert not net.blobs['data'].diff.any() and not net.params['conv'][0].diff.any()


def test_inputs_by_keyword_must_be_those_of_the_net(net):
    image = np.ones((1, 3, 8, 8), np.float32)
    assert net.forward(data=image)['sum'].shape == (1, 4, 6, 6)
    with pytest.raises(caffe.CaffeError, match='inputs are data, given are image'):
        net.forward(image=image)
    with pytest.raises(caffe.CaffeError, match=r'input data has shape \(1, 3, 9, 9\)'):
        net.forward(data=np.ones((1, 3, 9, 9)))


def test_inputs_by_keyword_broadcast_from_one_batch_size(net):
    net.forward(data=np.full((1, 1, 8, 1), 5))
    assert (net.blobs['data'].data == 5).all()
    for shape in ((), (3, 8, 8), (2, 3, 8, 8)):
        with pytest.raises(caffe.CaffeError, match='reshape the blob first'):
            net.forward(data=np.ones(shape))


def test_reshape_carries_new_sizes_through_the_net(net):
    net.blobs['data'].reshape(2, 3, 11, 13)
    net.reshape()
    assert net.blobs['sum'].shape == (2, 4, 9, 11)
    assert net.forward()['sum'].shape == (2, 4, 9, 11)


def test_the_module_is_differentiable_and_agrees_with_the_face(net):
    x = torch.from_numpy(net.blobs['data'].data.copy()).requires_grad_()
    out = net.module(data=x)['sum']
    out.sum().backward()
    net.module.zero_grad()
    face = net.forward()
    assert np.array_equal(face['sum'], out.detach().numpy())
    net.blobs['sum'].diff[...] = 1
    assert np.allclose(net.backward()['data'], x.grad.numpy(), atol=1e-5)


def test_saved_weights_come_back_to_the_bit(net, tmp_path):
    net.save(tmp_path / 'a.caffemodel')
    again = net_of(TEXT)
    again.copy_from(tmp_path / 'a.caffemodel')
    for one, other in zip(net.params['conv'], again.params['conv']):
        assert np.array_equal(one.data, other.data)
    loaded = caffe.Net(_written(tmp_path), str(tmp_path / 'a.caffemodel'), caffe.TEST)
    assert np.array_equal(loaded.params['conv'][0].data, net.params['conv'][0].data)


def _written(folder) -> str:
    prototxt.write(prototxt.parse_net(TEXT), folder / 'net.prototxt')
    return str(folder / 'net.prototxt')


def test_copy_from_names_the_layers_it_ignores_and_refuses_missing_blobs(net, tmp_path, caplog):
    net.save(tmp_path / 'a.caffemodel')
    other = net_of(TEXT.replace('name: "conv"', 'name: "another"'))
    with caplog.at_level('INFO', 'caffe_port'):
        other.copy_from(tmp_path / 'a.caffemodel')
    assert [record.getMessage() for record in caplog.records] == ['Ignoring source layer conv']
    caffemodel.write(tmp_path / 'b.caffemodel', net.module.param, {})
    with pytest.raises(caffe.CaffeError, match='conv: expected 2 blobs, found 0'):
        net.copy_from(tmp_path / 'b.caffemodel')


def test_two_layers_of_one_name_are_not_saved_as_one(tmp_path):
    ip = (
        'layer { name: "ip" type: "InnerProduct" bottom: "%s" top: "%s" '
        'inner_product_param { num_output: 2 } }'
    )
    net = net_of(TEXT + ip % ('sum', 'a') + ip % ('a', 'b'))
    with pytest.raises(caffe.CaffeError, match='two layers with parameters are named "ip"'):
        net.save(tmp_path / 'a.caffemodel')
    assert not list(tmp_path.iterdir())


TWINS = """
layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3 } }
layer { name: "%s" type: "%s" bottom: "y" top: "z" %s }
"""
IP = 'InnerProduct', 'inner_product_param { num_output: 3 }'


def test_of_two_layers_of_one_name_the_first_gets_weights_as_in_caffe(tmp_path):
    one = net_of(TWINS % ('a', 'ReLU', ''))
    one.params['a'][0].data[...] = 1
    one.save(tmp_path / 'one.caffemodel')
    twins = net_of(TWINS % ('a', *IP))
    twins.copy_from(tmp_path / 'one.caffemodel')
    assert [layer.blobs[0].data.max() for layer in twins.layers[1:]] == [1, 0]


def test_every_weight_of_a_net_is_loaded_also_where_a_later_layer_has_the_name(tmp_path):
    one, again = (net_of(TWINS % ('a', 'ReLU', '')) for _ in range(2))
    one.params['a'][0].data[...] = 1
    one.save(tmp_path / 'one.caffemodel')
    layers = read_layers(tmp_path / 'one.caffemodel')
    zoo.load_all(again, 'one.caffemodel', layers)
    assert (again.params['a'][0].data == 1).all()
    with pytest.raises(caffe.CaffeError, match='one: two layers with parameters are named "a"'):
        zoo.load_all(net_of(TWINS % ('a', *IP)), 'one', layers)


def test_a_bound_on_memory_sees_a_passing_peak_also_below_an_earlier_one():
    np.ones(80 << 17).sum()  # 80 MB of float64, freed
    with pytest.raises(AssertionError, match='MB, at most 20'), at_most(20):
        np.ones(40 << 17).sum()
    with at_most(20):
        np.ones(5 << 17).sum()


@pytest.mark.parametrize('name', ['outputs', 'training', 'nodes', 'forward', 'a.b', '#'])
def test_layers_may_have_any_name(name):
    net = net_of(TEXT.replace('name: "conv"', f'name: "{name}"'))
    net.module.train()
    net.module.eval()
    assert net.outputs == ['sum'] and len(net.params[name]) == 2
    assert len(net.module.state_dict()) == 2 and net.forward()['sum'].shape == (1, 4, 6, 6)


def test_too_many_bottoms_are_refused_at_once():
    many = 'bottom: "sum" ' * 100000
    with pytest.raises(caffe.CaffeError, match='all: 100000 bottoms, at most 1024'):
        net_of(TEXT + f'layer {{ name: "all" type: "Silence" {many} }}')


def test_copy_from_refuses_other_shapes_and_copies_nothing(net, tmp_path):
    other = net_of(TEXT.replace('kernel_size: 3', 'kernel_size: 1'))
    net.save(tmp_path / 'three.caffemodel')
    before = other.params['conv'][0].data.copy()
    with pytest.raises(
        caffe.CaffeError,
        match=r'three\.caffemodel: conv: blob 0: expected '
        r'\(4, 3, 1, 1\), found \(4, 3, 3, 3\); '
        'to learn the layer from scratch, rename it in the net$',
    ):
        other.copy_from(tmp_path / 'three.caffemodel')
    assert np.array_equal(other.params['conv'][0].data, before)


def test_copy_from_points_to_transplant_where_counts_agree(net, tmp_path):
    blobs = {'conv': [np.zeros((4, 27), np.float32), np.zeros(4, np.float32)]}
    caffemodel.write(tmp_path / 'flat.caffemodel', net.module.param, blobs)
    with pytest.raises(caffe.CaffeError, match='surgery.transplant'):
        net.copy_from(tmp_path / 'flat.caffemodel')


def test_shapes_padded_with_ones_as_in_old_files_fit(net, tmp_path):
    blobs = {'conv': [np.ones((4, 3, 3, 3), np.float32), np.full((1, 1, 1, 4), 2, np.float32)]}
    caffemodel.write(tmp_path / 'old.caffemodel', net.module.param, blobs)
    net.copy_from(tmp_path / 'old.caffemodel')
    assert (net.params['conv'][1].data == 2).all()


def test_share_with_uses_the_other_nets_memory(net):
    other = net_of(TEXT)
    other.share_with(net)
    net.params['conv'][0].data[...] = 3
    assert (other.params['conv'][0].data == 3).all()


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('type: "ReLU"', 'type: "Relu"', r'relu: no layer type "Relu"; there are AbsVal'),
        ('type: "ReLU"', 'type: "ImageData"', r'relu \(ImageData\): takes 0 bottoms, has 1'),
        ('bottom: "one"', 'bottom: "none"', 'sum: bottom "none" is not the top of a layer before'),
        ('top: "two"', 'top: "one"', 'two: top "one" is already made'),
        ('kernel_size: 3', 'kernel_size: 30', r'conv \(Convolution\): .*[Kk]ernel'),
        ('num_output: 4', 'num_output: 0', r'conv \(Convolution\): num_output must be positive'),
        ('dim: 3', 'dim: 1000000000000', r'^data \(Input\): input: shape .* at most 2147483647'),
        ('dim: 3', 'dim: -3', 'negative dimension'),
        (
            'bottom: "one" bottom: "two"',
            'bottom: "one"',
            r'sum \(Eltwise\): takes 2 or more bottoms',
        ),
        (
            'top: "conv"\n',
            'top: "conv" top: "more"\n',
            r'^conv \(Convolution\): computes 1 tops from 1 bottoms, has 2',
        ),
        ('type: "msra"', 'type: "mrsa"', r'conv \(Convolution\): filler type "mrsa" unknown'),
    ],
)
def test_errors_name_the_layer_and_what_is_wrong(old, new, message):
    with pytest.raises(caffe.CaffeError, match=message):
        net_of(TEXT.replace(old, new, 1))


def test_a_blob_never_touched_costs_no_memory():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 10000, 10000]))
    n.same = L.ReLU(n.data)
    with at_most(50):
        net = caffe.Net(n.to_proto(), caffe.TEST)
        assert net.blobs['same'].shape == (1, 3, 10000, 10000)


# Backward on the blobs as they stand.


def test_backward_without_a_forward_is_that_of_the_blobs_as_they_stand(net):
    net.forward()
    ran = copies(net)
    net.blobs['sum'].diff[...] = 2
    net.backward()
    fresh = net_of(TEXT)
    fresh.share_with(net)
    for name, values in ran.items():
        fresh.blobs[name].data[...] = values
    fresh.blobs['sum'].diff[...] = 2
    fresh.clear_param_diffs()
    out = fresh.backward()
    assert out['data'].any() and np.allclose(out['data'], net.blobs['data'].diff, atol=1e-6)
    for one, other in zip(fresh.params['conv'], net.params['conv']):
        assert np.allclose(one.diff, other.diff, rtol=1e-5)
    for name, values in ran.items():
        assert np.array_equal(fresh.blobs[name].data, values), 'backward changes no values'


def copies(net) -> dict[str, np.ndarray]:
    return {name: blob.data.copy() for name, blob in net.blobs.items()}


def test_backward_without_a_forward_takes_any_start_and_end(net):
    net.blobs['one'].diff[...] = 4
    assert (net.backward(start='one', end='one')['conv'] == 8).all()
    net.blobs['conv'].diff[...] = np.arange(4 * 36).reshape(1, 4, 6, 6)
    out = net.backward(start='conv', end='conv')
    weight, diff = net.params['conv'][0], net.blobs['conv'].diff
    window = net.blobs['data'].data[0, :, 1:7, 2:8]
    assert np.allclose(weight.diff[3, :, 1, 2], (diff[0, 3] * window).sum((1, 2)), rtol=1e-4)
    corner = weight.data[:, :, 0, 0].T @ diff[0, :, 0, 0]
    assert np.allclose(out['data'][0, :, 0, 0], corner, rtol=1e-4)


def test_backward_of_zeros_gives_zeros():
    net = net_of(TEXT)
    assert not net.backward()['data'].any()


def test_backward_follows_a_forward_without_gradients(net):
    with torch.no_grad():
        net.forward()
    net.blobs['sum'].diff[...] = 1
    net.backward()
    assert np.array_equal(net.blobs['conv'].diff == 5, net.blobs['conv'].data > 0)


def test_backward_without_a_forward_keeps_statistics():
    text = INPUT + (
        'layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" }'
        'layer { name: "sum" type: "Reduction" bottom: "norm" top: "sum" loss_weight: 1 }'
    )
    net = net_of('force_backward: true\n' + text, caffe.TRAIN)
    net.blobs['data'].data[...] = np.random.RandomState(1).randn(1, 3, 8, 8)
    before = [blob.data.copy() for blob in net.params['norm']]
    net.backward()
    for blob, copy_ in zip(net.params['norm'], before):
        assert np.array_equal(blob.data, copy_)
    net.forward()
    assert not np.array_equal(net.params['norm'][0].data, before[0]), 'forward moves them'


def test_backward_after_an_input_is_reshaped_says_what_to_do(net):
    net.forward()
    net.blobs['data'].reshape(2, 3, 9, 8)
    message = r'^conv \(Convolution\): backward: top conv is 1 x 4 x 6 x 6, .* 2 x 4 x 7 x 6: call'
    with pytest.raises(caffe.CaffeError, match=message):
        net.backward()
    net.reshape()
    net.blobs['sum'].diff[...] = 1
    net.blobs['conv'].data[...] = 1
    assert net.backward()['data'].shape == (2, 3, 9, 8)
    assert (net.blobs['conv'].diff == 5).all()
    net.blobs['conv'].reshape(2, 3)
    with pytest.raises(caffe.CaffeError, match=r'^relu \(ReLU\)|^one|^two|^conv'):
        net.backward()


# Copies.


@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=['deepcopy', 'pickle'],
)
def test_a_copy_of_a_net_goes_on_by_itself(copied, net):
    held = net.blobs['sum'].data
    net.forward()
    net.blobs['sum'].diff[...] = 1
    net.backward()
    other = copied(net)
    for name, blob in net.blobs.items():
        assert np.array_equal(other.blobs[name].data, blob.data)
        assert np.array_equal(other.blobs[name].diff, blob.diff)
    for one, two in zip(other.params['conv'], net.params['conv']):
        assert np.array_equal(one.data, two.data) and np.array_equal(one.diff, two.diff)
    before = {**copies(net), 'weight': net.params['conv'][0].data.copy()}
    other.params['conv'][0].data[...] *= 2
    other.params['conv'][0].diff[...] = 0
    other.blobs['data'].data[...] = 1
    result = other.forward()['sum'].copy()
    other.backward()
    assert other.params['conv'][0].diff.any() and not np.array_equal(result, before['sum'])
    assert {**copies(net), 'weight': net.params['conv'][0].data}.keys() == before.keys()
    assert all(np.array_equal(blob.data, before[name]) for name, blob in net.blobs.items())
    assert np.array_equal(net.params['conv'][0].data, before['weight'])
    assert other.module.get_parameter('conv.weight') is other.params['conv'][0].parameter
    net.blobs['data'].data[...] += 1
    assert net.forward()['sum'] is held, 'the first net still shows its arrays'


# Values that do not fit.


@pytest.mark.parametrize('dims', [(1, 3, 8.7, 8), (1, 3, '8', 8), ((1, 3, 8, 8),), (1, None)])
def test_a_shape_is_of_whole_numbers(net, dims):
    for blob in (net.blobs['data'], net.params['conv'][0]):
        shape = blob.shape
        with pytest.raises(caffe.CaffeError, match='^reshape: .* must be a whole number'):
            blob.reshape(*dims)
        assert blob.shape == shape
    net.blobs['data'].reshape(*np.array([1, 3, 9, 9]))
    assert net.blobs['data'].shape == (1, 3, 9, 9)


@pytest.mark.parametrize(
    'values', [np.full((1, 3, 8, 8), 'white'), np.full((1, 3, 8, 8), {}), [[1], [2, 3]]]
)
def test_inputs_by_keyword_must_be_numbers(net, values):
    with pytest.raises(caffe.CaffeError, match='^forward: input data is not an array of numbers: '):
        net.forward(data=values)


# HDF5.


def test_hdf5_is_written_and_read_whatever_the_suffix(net, tmp_path):
    pytest.importorskip('h5py')
    for name in ('net.caffemodel', 'net.h5', 'net'):
        net.save_hdf5(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b'\x89HDF')
        again = net_of(TEXT)
        again.load_hdf5(tmp_path / name)
        for one, other in zip(net.params['conv'], again.params['conv']):
            assert np.array_equal(one.data, other.data)
    net.save(tmp_path / 'net.caffemodel')
    with pytest.raises(caffe.CaffeError, match='net.caffemodel'):
        net.load_hdf5(tmp_path / 'net.caffemodel')


def test_making_a_net_runs_no_layer_without_memory(monkeypatch):
    """With the first such layer PyTorch imports its compiler, which takes seconds."""
    monkeypatch.setattr(torch.func, 'functional_call', None)
    for name in ('voc_fcn8s', 'voc_fcn_alexnet', 'nyud_fcn32s_color_hha', 'siftflow_fcn16s'):
        fcn = importlib.import_module(f'nets.{name}').fcn
        caffe.Net(fcn('deploy', width=2, fc=1), caffe.TEST)
        param = fcn('train', width=2, fc=1)
        layer = param.layer[0]
        layer.type = 'Input'
        layer.ClearField('python_param')
        for top in layer.top:
            labels = top not in ('data', 'color', 'hha')
            layer.input_param.shape.add().dim.extend((1, 1 if labels else 3, 40, 30))
        caffe.Net(param, caffe.TRAIN)
