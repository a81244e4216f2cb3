"""set_precision: what computes in 16 bits, how far that is from float32, and what stays float32."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import caffe_port as caffe
from caffe_port import mode
from caffe_port.errors import CaffeError
from caffe_port.plan import planner
from caffe_port.proto.caffe_pb2 import SolverParameter
from nets import voc_fcn8s
from tests.solve.scored import NARROW, save_random
from tests.vectors import net_of

# The largest rounding of a value, relative to it.
ROUNDING = {'bf16': 2.0**-8, 'fp16': 2.0**-11}
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


@pytest.fixture(autouse=True)
def in_fp32_afterwards():
    yield
    caffe.set_precision('fp32')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('precision') / 'w.caffemodel'
    return str(save_random(voc_fcn8s.fcn('deploy', **NARROW), path, seed=8))


def make(weights, force_backward=False):
    """Return a narrow FCN-8s with a picture in it."""
    param = voc_fcn8s.fcn('deploy', **NARROW)
    param.force_backward = force_backward
    net = caffe.Net(param, weights, caffe.TEST)
    net.blobs['data'].reshape(1, 3, 41, 50)
    net.reshape()
    net.blobs['data'].data[...] = np.random.RandomState(0).uniform(-120, 130, (1, 3, 41, 50))
    return net


@pytest.mark.parametrize('precision', DTYPES)
def test_a_convolution_in_16_bits_rounds_what_it_reads_and_writes_and_sums_exactly(precision):
    net = net_of(
        'input: "x" input_shape { dim: 2 dim: 3 dim: 9 dim: 8 } layer { name: "c" type: '
        '"Convolution" bottom: "x" top: "y" convolution_param { num_output: 5 kernel_size: 3 '
        'weight_filler { type: "xavier" } bias_filler { type: "uniform" } } }'
    )
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    caffe.set_precision(precision)
    found = net.forward(x=x.numpy())['y']
    x, weight, bias = (
        tensor.detach().to(DTYPES[precision]).double()
        for tensor in (x, *(blob.parameter for blob in net.params['c']))
    )
    expected = F.conv2d(x, weight, bias).numpy()
    assert found.dtype == np.float32
    rounding = ROUNDING[precision] * np.abs(expected) + 1e-5
    assert (np.abs(found - expected) <= rounding).all()
    assert np.abs(found - expected).max() > 1e-5  # float32 would be that close


@pytest.mark.parametrize('precision', DTYPES)
def test_scores_in_16_bits_are_near_those_in_fp32(precision, weights):
    net = make(weights)
    before = net.forward()['score'].copy()
    caffe.set_precision(precision)
    scores = net.forward()['score'].copy()
    # Eighteen layers in a row round; their errors partly cancel.
    apart = np.abs(scores - before).max() / np.abs(before).max()
    assert ROUNDING[precision] / 8 < apart < 8 * ROUNDING[precision]
    assert (scores.argmax(1) == before.argmax(1)).mean() > 0.95
    assert torch.equal(net.module(data=net.blobs['data'].tensor).score, torch.from_numpy(scores))
    caffe.set_precision('fp32')
    assert np.array_equal(net.forward()['score'], before)


def test_products_are_in_16_bits_and_what_follows_from_scores_is_not(weights):
    net = make(weights)
    caffe.set_precision('bf16')
    net.forward()
    dtypes = {name: blob.tensor.dtype for name, blob in net.blobs.items()}
    low = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert {'conv1_1', 'pool3', 'fc7', 'score_fr', 'score_pool3'} <= low
    assert not {'data', 'upscore2', 'fuse_pool4', 'upscore8', 'score'} & low
    assert all(blob.data.dtype == np.float32 for blob in net.blobs.values())


def test_what_is_written_to_a_blob_of_16_bits_is_what_the_next_layer_reads(weights):
    net = make(weights)
    caffe.set_precision('bf16')
    net.forward()
    net.blobs['pool4'].data[...] = 0.5
    assert (net.blobs['pool4'].data == 0.5).all()
    net.forward(start='score_pool4', end='score_pool4')
    weight, bias = (blob.data for blob in net.params['score_pool4'])
    expected = 0.5 * weight.sum((1, 2, 3)) + bias
    found = net.blobs['score_pool4'].data
    assert np.allclose(found, expected[None, :, None, None], atol=0.02 * np.abs(expected).max())


def test_an_array_taken_before_shows_what_is_computed_in_16_bits(weights):
    net = make(weights)
    net.forward(blobs=['fc7'])
    held = net.blobs['fc7'].data
    before = held.copy()
    caffe.set_precision('bf16')
    net.blobs['data'].data[...] *= 2
    net.forward()
    assert not np.array_equal(held, before)
    assert np.array_equal(held, net.blobs['fc7'].data)


def test_a_blob_asked_for_late_is_that_of_the_forward_in_fp32(weights, monkeypatch):
    monkeypatch.setattr(planner, 'LEAST', 0)
    net = make(weights)
    net.forward(blobs=['fc7'])
    expected = net.blobs['fc7'].data.copy()
    net = make(weights)
    net.forward()
    assert net.blobs['fc7'].is_postponed
    caffe.set_precision('bf16')
    found = net.blobs['fc7'].data
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert mode.precision() == 'bf16'


@pytest.mark.parametrize('precision', DTYPES)
def test_weights_cast_once_compute_the_same_in_half_the_memory(precision, weights):
    net = make(weights)
    caffe.set_precision(precision)
    cast_each_time = net.forward()['score'].copy()
    before = {name: blobs[0].data.copy() for name, blobs in net.params.items()}
    net.cast_weights()
    assert np.array_equal(net.forward()['score'], cast_each_time)
    for name, (weight, *_) in net.params.items():
        upsamples = net.layer_dict[name].type == 'Deconvolution'
        assert weight.parameter.dtype == (torch.float32 if upsamples else DTYPES[precision])
        assert weight.data.dtype == np.float32 and weight.data.flags.c_contiguous
        assert np.allclose(weight.data, before[name], rtol=ROUNDING[precision], atol=1e-7)
    net.params['score_fr'][0].data[...] = 0  # still pycaffe's face
    net.params['score_fr'][1].data[...] = 3
    net.forward()
    assert (net.blobs['score_fr'].data == 3).all()
    net.reshape()  # shapes follow from weights of 16 bits too


@pytest.mark.parametrize('precision', DTYPES)
def test_weights_cast_once_take_gradients_after_a_forward_without(precision, weights):
    def diffs(cast):
        net = make(weights, force_backward=True)
        for blobs in net.params.values():
            for blob in blobs:  # what casting makes of them
                blob.data[...] = blob.parameter.detach().to(DTYPES[precision]).float()
        if cast:
            net.cast_weights()
        with torch.no_grad():
            net.forward()
        net.blobs['score'].diff[...] = 2.0**-10  # fp16 has none above 65504
        net.backward()
        return {name: blobs[0].diff.copy() for name, blobs in net.params.items()}

    caffe.set_precision(precision)
    found, expected = diffs(True), diffs(False)
    for name, diff in expected.items():
        rounding = ROUNDING[precision] * np.abs(diff) + 1e-5 * np.abs(diff).max()
        assert (np.abs(found[name] - diff) <= rounding).all(), name


def test_a_weight_that_other_layers_share_is_not_cast():
    net = net_of(
        'input: "x" input_shape { dim: 1 dim: 2 dim: 6 dim: 6 } layer { name: "c" type: '
        '"Convolution" bottom: "x" top: "y" param { name: "w" } convolution_param { num_output: 2 '
        'kernel_size: 3 bias_term: false weight_filler { type: "xavier" } } } layer { name: "d" '
        'type: "Deconvolution" bottom: "y" top: "z" param { name: "w" } convolution_param { '
        'num_output: 2 kernel_size: 3 bias_term: false } }'
    )
    caffe.set_precision('bf16')
    net.cast_weights()
    assert net.params['c'][0].parameter.dtype == torch.float32
    net.forward()
    caffe.set_precision('fp32')
    net.cast_weights()
    assert net.params['c'][0].parameter.dtype == torch.float32


def train(folder, precision):
    """Return the losses of six steps in a precision, the gradients of the first, and the net."""
    wider = dict(width=4, fc=16)
    weights = save_random(voc_fcn8s.fcn('deploy', **wider), folder / 'w.caffemodel', seed=8)
    caffe.set_precision(precision)
    param = voc_fcn8s.fcn('train', **wider)
    data = param.layer[0]
    data.type = 'Input'
    data.ClearField('python_param')
    for channels in (3, 1):
        data.input_param.shape.add().dim.extend((1, channels, 31, 40))
    rule = SolverParameter(base_lr=2e-8, momentum=0.5, weight_decay=0.0005, lr_policy='fixed')
    rule.net_param.CopyFrom(param)
    rule.random_seed = 5
    solver = caffe.SGDSolver(rule)
    solver.net.copy_from(weights)
    random = np.random.RandomState(0)
    solver.net.blobs['data'].data[...] = random.uniform(-120, 130, (1, 3, 31, 40))
    solver.net.blobs['label'].data[...] = random.randint(0, 4, (1, 1, 31, 40))
    losses, gradients = [], {}
    for _ in range(6):
        solver.step(1)
        losses.append(float(solver.net.blobs['loss'].data))
        gradients = gradients or {
            name: blobs[0].diff.ravel().copy()
            for name, blobs in solver.net.params.items()
            if blobs[0].parameter.requires_grad
        }
    return np.array(losses), gradients, solver.net


def test_training_in_bf16_learns_as_in_fp32_by_nearly_the_same_gradients(tmp_path):
    exact, gradients, _ = train(tmp_path, 'fp32')
    rounded, others, net = train(tmp_path, 'bf16')
    assert exact[-1] < 0.95 * exact[0]
    assert np.abs(rounded - exact).max() < 0.05 * exact[0]
    for name, one in gradients.items():
        # Roundings add up from the scores down; with labels at random little else is left below.
        least = 0.99 if name > 'conv5' else 0.9
        other = others[name]
        assert not np.array_equal(one, other)
        assert one @ other >= least * np.linalg.norm(one) * np.linalg.norm(other), name
    for blob in net.module.param_blobs():
        assert blob.parameter.dtype == torch.float32
        assert blob.parameter.grad is None or blob.parameter.grad.dtype == torch.float32
        assert blob.diff.flags.c_contiguous
    assert net.blobs['loss'].tensor.dtype == torch.float32


def test_backward_of_a_part_takes_and_gives_float32_diffs(weights):
    param = voc_fcn8s.fcn('deploy', **NARROW)
    param.force_backward = True
    param.layer[0].input_param.shape[0].dim[2:] = 1, 1
    net = caffe.Net(param, weights, caffe.TEST)
    caffe.set_precision('bf16')
    for recorded in (True, False):  # from the last forward, and from the blobs' current values
        if recorded:
            net.forward()
        else:
            net._tape.clear()
        net.blobs['fc7'].diff[...] = 1
        diff = net.backward(start='fc7', end='fc7')['fc6']
        assert diff.dtype == np.float32
        weight = net.params['fc7'][0].data[:, :, 0, 0]
        assert np.allclose(diff[0, :, 0, 0], weight.sum(0), atol=0.03 * np.abs(weight).sum(0).max())


def test_precisions_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(CaffeError, match="'fp64': must be one of fp32, tf32, bf16, fp16"):
        caffe.set_precision('fp64')
    with pytest.raises(CaffeError, match='tf32: needs a GPU'):
        caffe.set_precision('tf32')
    monkeypatch.setattr(mode, '_gpu', True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda gpu: (7, 5))
    for precision in ('tf32', 'bf16'):
        with pytest.raises(CaffeError, match=f'{precision}: GPU 0 has compute capability 7.5'):
            caffe.set_precision(precision)
    assert mode.precision() == 'fp32'


def test_tf32_is_allowed_only_while_it_is_the_precision(monkeypatch):
    monkeypatch.setattr(mode, '_gpu', True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda gpu: (9, 0))

    def allowed():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    caffe.set_precision('tf32')
    assert allowed() == (True, True) and mode.low_dtype() is None
    for other in ('bf16', 'fp32'):
        caffe.set_precision(other)
        assert allowed() == (False, False)
