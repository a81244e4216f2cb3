"""net.module as a torch.nn.Module: moved, cast, compiled, exported, saved."""

import copy
import pickle

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.outputs import Outputs
from nets import voc_fcn8s
from tests.vectors import net_of

SMALL = """
layer { name: "data" type: "Input" top: "data" input_param {
        shape { dim: 1 dim: 2 dim: 9 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {
        num_output: 4 kernel_size: 3 weight_filler { type: "msra" } bias_filler { value: 0.1 } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }
layer { name: "scale" type: "Scale" bottom: "norm" top: "norm" scale_param { bias_term: true } }
layer { name: "relu" type: "PReLU" bottom: "norm" top: "norm" }
layer { name: "lrn" type: "LRN" bottom: "norm" top: "lrn" }
layer { name: "pool" type: "Pooling" bottom: "lrn" top: "pool" pooling_param {
        kernel_size: 3 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param {
        num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


@pytest.fixture
def fcn() -> torch.nn.Module:
    module = caffe.Net(voc_fcn8s.fcn('deploy', width=2, fc=8), caffe.TEST).module
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.15, generator=generator)
    return module


def small(phase=caffe.TEST) -> caffe.Net:
    caffe.set_random_seed(2)
    return net_of(SMALL, phase)


def image(*size, seed=0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_an_input_that_is_no_tensor_is_named():
    with pytest.raises(caffe.CaffeError, match='input data: expected a tensor, found ndarray'):
        small().module(np.zeros((1, 2, 9, 9), np.float32))


def test_parameters_are_the_blobs_memory_both_ways():
    net = small()
    weight = net.module.get_parameter('conv.weight')
    net.params['conv'][0].data[...] = 3
    assert (weight == 3).all()
    with torch.no_grad():
        weight.fill_(4)
    assert (net.params['conv'][0].data == 4).all()


def test_a_torch_optimizer_moves_what_the_blobs_show():
    net = small(caffe.TRAIN)
    before = net.params['ip'][0].data.copy()
    optimizer = torch.optim.SGD(net.module.parameters(), lr=0.1)
    net.module(data=image(1, 2, 9, 9))['prob'][0, 0].backward()
    grad = net.params['ip'][0].diff.copy()
    optimizer.step()
    assert grad.any() and np.allclose(net.params['ip'][0].data, before - 0.1 * grad)


def test_state_dict_keys_are_layer_and_blob_and_come_back(tmp_path):
    net = small()
    assert list(net.module.state_dict()) == [
        'conv.weight',
        'conv.bias',
        'norm.mean',
        'norm.variance',
        'norm.scale_factor',
        'scale.weight',
        'scale.bias',
        'relu.weight',
        'ip.weight',
        'ip.bias',
    ]
    torch.save(net.module.state_dict(), tmp_path / 'net.pt')
    caffe.set_random_seed(9)
    other = net_of(SMALL)
    loaded = torch.load(tmp_path / 'net.pt', weights_only=True)
    other.module.load_state_dict(loaded)
    x = image(1, 2, 9, 9)
    assert torch.equal(other.module(data=x)['prob'], net.module(data=x)['prob'])
    assert np.array_equal(other.params['ip'][0].data, net.params['ip'][0].data)


def test_names_with_dots_load_strictly_and_unknown_keys_are_named():
    text = SMALL.replace('"conv"', '"a"').replace('"ip"', '"a.b"').replace('"relu"', '"a.b.c"')
    net = net_of(text)
    state = {key: value + 1 for key, value in net.module.state_dict().items()}
    assert {'a.weight', 'a.b.weight', 'a.b.c.weight'} <= set(state)
    net.module.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in net.module.state_dict().items())
    torch.nn.ModuleList([net.module]).load_state_dict({f'0.{key}': state[key] for key in state})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "a.b.bogus", "z"'):
        net.module.load_state_dict({**state, 'a.b.bogus': state['a.bias'], 'z': state['a.bias']})
    with pytest.raises(RuntimeError, match='Missing key.*"a.b.bias"'):
        net.module.load_state_dict({key: state[key] for key in state if key != 'a.b.bias'})


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle']
)
def test_copies_compute_the_same_and_are_apart(copied):
    module = small().module
    other, x = copied(module), image(1, 2, 9, 9)
    expected = module(data=x)['prob']
    assert torch.equal(other(data=x)['prob'], expected)
    with torch.no_grad():
        other.get_parameter('ip.weight').zero_()
    assert torch.equal(module(data=x)['prob'], expected)


def test_double_is_close_to_single():
    single, double = small().module, small().module.double()
    x = image(1, 2, 9, 9)
    expected = single(data=x)['prob']
    assert torch.allclose(double(data=x.double())['prob'].float(), expected, atol=1e-5)


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_runs_and_stays_near(fcn, dtype, tolerance):
    x = image(1, 3, 40, 52)
    with torch.no_grad():
        expected = fcn(data=x)['score']
        found = fcn.to(dtype)(data=x.to(dtype))['score']
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= tolerance * expected.abs().max()


def test_on_meta_only_shapes_are_computed(fcn):
    out = fcn.to('meta')(data=torch.empty(2, 3, 2000, 3000, device='meta'))
    assert out['score'].shape == (2, 21, 2000, 3000) and out['score'].is_meta


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_losses_and_measures_follow_the_dtype(dtype):
    shapes = ('x', 'dim: 2 dim: 3 dim: 4'), ('y', 'dim: 2 dim: 4')
    text = ''.join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ '
        f'shape {{ {dims} }} }} }}'
        for name, dims in shapes
    )
    for type_ in ('SoftmaxWithLoss', 'Accuracy'):
        module = net_of(
            text + f'layer {{ name: "l" type: "{type_}" bottom: "x" bottom: "y" top: "l" }}'
        ).module.to(dtype)
        out = module(x=image(2, 3, 4).to(dtype), y=torch.ones(2, 4, dtype=dtype))
        assert out['l'].dtype == dtype


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_the_module_compiles_into_one_graph(fcn, backend):
    x = image(1, 3, 40, 52)
    compiled = torch.compile(fcn, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(data=x)['score'], fcn(data=x)['score'])


def test_a_compiled_module_has_the_same_gradients(fcn):
    x = image(1, 3, 40, 52)
    grads = []
    for module in (fcn, torch.compile(fcn, backend='aot_eager', fullgraph=True)):
        fcn.zero_grad()
        module(data=x)['score'].square().sum().backward()
        grads.append(fcn.get_parameter('conv1_1.weight').grad.clone())
    assert grads[0].any() and torch.allclose(*grads, rtol=1e-4)


def test_small_layers_compile_too():
    module, x = small().module, image(1, 2, 9, 9)
    compiled = torch.compile(module, backend='eager', fullgraph=True)
    assert torch.allclose(compiled(data=x)['prob'], module(data=x)['prob'], atol=1e-6)


def test_an_exported_fcn_serves_images_of_any_size(fcn):
    height, width = (torch.export.Dim(name, min=32, max=2000) for name in ('height', 'width'))
    program = torch.export.export(
        fcn, (image(1, 3, 64, 80),), dynamic_shapes=(({2: height, 3: width},),)
    ).module()
    for size in ((64, 80), (75, 91), (33, 32), (120, 57)):
        x = image(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(program(x)['score'], fcn(data=x)['score']), size


@pytest.mark.parametrize(
    'settings',
    [
        'kernel_size: 3 stride: 2',
        'kernel_size: 3 stride: 2 pad: 1 pool: AVE',
        'kernel_size: 2 stride: 2 pool: AVE',
        'global_pooling: true pool: AVE',
    ],
)
def test_exported_pooling_rounds_up_as_the_module_does(settings):
    net = net_of(
        'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 '
        'dim: 9 dim: 9 } } } layer { name: "p" type: "Pooling" bottom: "data" '
        'top: "score" '
        f'pooling_param {{ {settings} }} }}'
    )
    size = torch.export.Dim('size', min=8, max=100)
    program = torch.export.export(
        net.module, (image(1, 2, 12, 9),), dynamic_shapes=(({2: size},),)
    ).module()
    for height in range(8, 16):
        x = image(1, 2, height, 9)
        assert torch.allclose(program(x)['score'], net.module(data=x)['score'], atol=1e-6)


def test_a_missing_input_is_named():
    module = small().module
    with pytest.raises(caffe.CaffeError, match='input data is not given'):
        module()
    with pytest.raises(caffe.CaffeError, match='no blob named image; inputs are data'):
        module(image=image(1, 2, 9, 9))


def test_a_wrong_tensor_names_the_layer_it_does_not_fit():
    with pytest.raises(caffe.CaffeError, match=r'^conv \(Convolution\): .*must have 2 channels'):
        small().module(data=image(1, 3, 9, 9))


# As PyTorch's own modules.


def test_inputs_come_by_position_as_by_name(fcn):
    x = image(1, 3, 40, 52)
    expected = fcn(data=x)['score']
    assert torch.equal(fcn(x).score, expected) and list(fcn(x)) == ['score']
    assert torch.equal(torch.nn.Sequential(torch.nn.Identity(), fcn)(x)['score'], expected)
    with pytest.raises(AttributeError, match='no output scores; there are score'):
        _ = fcn(x).scores
    with pytest.raises(caffe.CaffeError, match='2 inputs by position; inputs are data'):
        fcn(x, x)
    with pytest.raises(caffe.CaffeError, match='input data is given by position and by name'):
        fcn(x, data=x)


def test_positions_are_those_of_the_inputs():
    text = ''.join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ dim: 2 }} }}'
        ' }'
        for name in 'yx'
    )
    power = 'layer { name: "p" type: "Eltwise" bottom: "x" bottom: "y" top: "p" eltwise_param {'
    module = net_of(text + power + ' coeff: 1 coeff: -1 } }').module
    one, two = torch.ones(2), torch.full((2,), 5.0)
    assert module.inputs == ['y', 'x']
    assert module(one, two).p.tolist() == module(one, x=two).p.tolist() == [4, 4]


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_a_compiled_module_gives_outputs_by_attribute(backend):
    module, x = small().module, image(1, 2, 9, 9)
    with torch.no_grad():
        found = torch.compile(module, backend=backend, fullgraph=True)(x).prob
        assert torch.equal(found, module(x).prob)


@pytest.mark.parametrize('phase', [caffe.TRAIN, caffe.TEST])
def test_the_flag_starts_as_the_phase_says(phase):
    module = small(phase).module
    assert {each.training for each in module.modules()} == {phase == caffe.TRAIN}


def test_train_and_eval_switch_dropout_and_batch_norm():
    module, other = small(caffe.TEST).module, small(caffe.TRAIN).module
    with torch.no_grad():
        # The batches' statistics, so that those kept are of use.
        for key in ('norm.mean', 'norm.variance'):
            module.get_parameter(key).fill_(0.5)
        module.get_parameter('norm.scale_factor').fill_(1)
    other.load_state_dict(module.state_dict())
    x = image(1, 2, 9, 9)
    fixed = module(x).prob
    assert torch.equal(module(x).prob, fixed)
    assert torch.equal(module.get_parameter('norm.scale_factor'), torch.ones(1))
    assert torch.equal(other.eval()(x).prob, fixed)
    for each in (module, other):
        caffe.set_random_seed(4)
        found = each.train()(x).prob
        assert not torch.equal(found, fixed)
        assert each.get_parameter('norm.scale_factor') > 1
    assert torch.equal(module.get_parameter('norm.mean'), other.get_parameter('norm.mean'))
    caffe.set_random_seed(4)
    first = module(x).prob
    caffe.set_random_seed(5)
    assert not torch.equal(module(x).prob, first)  # another mask


def test_global_statistics_asked_for_stay_in_train():
    text = SMALL.replace(
        'type: "BatchNorm"', 'type: "BatchNorm" batch_norm_param { use_global_stats: true }'
    )
    module = net_of(text).module.train()
    module(image(1, 2, 9, 9))
    assert module.get_parameter('norm.scale_factor') == 0


def test_repr_shows_sizes(fcn):
    lines = {line.strip() for line in repr(fcn).splitlines()}
    assert {
        'inputs: data; outputs: score',
        '(conv1_1): Convolution(3, 2, kernel_size=3, pad=100)',
        '(pool1): Pooling(MAX, kernel_size=2, stride=2)',
        '(drop6): Dropout(ratio=0.5)',
        '(upscore8): Deconvolution(21, 21, kernel_size=16, stride=8, bias_term=False)',
        '(score): Crop(axis=2, offset=31)',
    } <= lines
    assert '(ip): InnerProduct(36, 5)' in repr(small().module)
    assert '(norm): BatchNorm(4, eps=1e-05)' in repr(small().module)


def test_a_net_of_one_output_stands_in_a_sequence_of_modules(fcn):
    x = image(1, 3, 40, 52)
    with torch.no_grad():
        found = torch.nn.Sequential(fcn, torch.nn.Softmax(1), torch.nn.AvgPool2d(2))(x)
        expected = torch.nn.functional.avg_pool2d(fcn(x).score.softmax(1), 2)
    assert torch.equal(found, expected)
    two = Outputs(a=x, b=x)
    with pytest.raises(caffe.CaffeError, match='outputs a, b: name the one'):
        torch.softmax(two, 1)
