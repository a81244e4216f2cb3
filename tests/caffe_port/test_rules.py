"""What a net is made of: rules of inclusion, shared params, losses, what learns."""

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.proto.caffe_pb2 import NetState, SolverParameter
from tests.vectors import net_of

DATA = 'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 2 dim: 3 } } }\n'


def ip(name, bottom='d', extra='', outputs=3):
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f'{extra} inner_product_param {{ num_output: {outputs} bias_term: false '
        'weight_filler { type: "gaussian" } } }\n'
    )


def loss(name, one, other, extra=''):
    return (
        f'layer {{ name: "{name}" type: "EuclideanLoss" bottom: "{one}" bottom: "{other}" '
        f'top: "{name}" {extra} }}\n'
    )


def layers_of(rules: str, phase=caffe.TEST, **where) -> bool:
    """Whether a layer with `rules` is in the net."""
    net = caffe.Net(prototxt.parse_net(DATA + ip('ip', extra=rules)), phase, **where)
    return 'ip' in net.layer_dict


# Inclusion.


@pytest.mark.parametrize(
    'rules, train, test',
    [
        ('', True, True),
        ('include { phase: TRAIN }', True, False),
        ('include { phase: TEST }', False, True),
        ('exclude { phase: TRAIN }', False, True),
        ('include { phase: TRAIN } include { phase: TEST }', True, True),
        ('exclude { phase: TRAIN } exclude { phase: TEST }', False, False),
        ('include { }', True, True),
        ('exclude { }', False, False),
    ],
)
def test_phase_rules(rules, train, test):
    assert layers_of(rules, caffe.TRAIN) == train and layers_of(rules, caffe.TEST) == test


@pytest.mark.parametrize('level', range(4))
def test_level_rules_have_both_ends_within(level):
    assert layers_of('include { min_level: 1 max_level: 2 }', level=level) == (1 <= level <= 2)
    assert layers_of('exclude { min_level: 2 }', level=level) == (level < 2)


@pytest.mark.parametrize('stages', [[], ['a'], ['b'], ['a', 'b'], ['a', 'b', 'c']])
def test_a_rule_needs_all_its_stages_and_none_of_its_not_stages(stages):
    both = {'a', 'b'} <= set(stages)
    assert layers_of('include { stage: "a" stage: "b" }', stages=stages) == both
    assert layers_of('include { stage: "a" not_stage: "b" }', stages=stages) == (
        'a' in stages and 'b' not in stages
    )


def test_a_layer_with_both_kinds_of_rules_is_refused():
    with pytest.raises(caffe.CaffeError, match='^ip: has both include and exclude'):
        layers_of('include { phase: TEST } exclude { phase: TRAIN }')


def test_solver_states_reach_their_nets():
    text = DATA + ip('always') + ip('ip', extra='include { stage: "more" min_level: 2 }')
    param = SolverParameter(
        net_param=prototxt.parse_net(text),
        base_lr=1,
        lr_policy='fixed',
        test_iter=[1, 1],
        test_interval=1,
        train_state=NetState(stage=['more'], level=2),
        test_state=[NetState(), NetState(stage=['more'], level=3)],
    )
    solver = caffe.SGDSolver(param)
    nets = solver.net, *solver.test_nets
    assert ['ip' in net.layer_dict for net in nets] == [True, False, True]


# Shared params.


def shared(first='', second='', outputs=3):
    return (
        DATA
        + ip('one', extra=f'param {{ name: "w" {first} }}')
        + ip('two', 'one', f'param {{ name: "w" {second} }}', outputs)
        + loss('loss', 'two', 'd')
    )


def test_params_of_one_name_are_one_and_their_gradients_add_up():
    net = net_of(shared(), caffe.TRAIN)
    (one,), (two,) = net.params['one'], net.params['two']
    assert np.shares_memory(one.data, two.data) and len(net.module.learnable) == 1
    assert len(list(net.module.parameters())) == 1
    w = one.data.copy()
    x = np.random.RandomState(1).randn(2, 3).astype(np.float32)
    net.forward(d=x)
    net.backward()
    above = (x @ w.T @ w.T - x) / 2  # the loss's gradient at the top of two
    expected = above.T @ (x @ w.T) + (above @ w).T @ x
    assert np.allclose(one.diff, expected, atol=1e-4) and np.array_equal(one.diff, two.diff)


def test_shared_params_are_saved_with_every_layer(tmp_path):
    net = net_of(shared())
    net.save(tmp_path / 'w.caffemodel')
    apart = net_of(DATA + ip('one') + ip('two', 'one'))
    apart.copy_from(tmp_path / 'w.caffemodel')
    for name in ('one', 'two'):
        assert np.array_equal(apart.params[name][0].data, net.params['one'][0].data)


def test_strict_sharing_needs_equal_shapes():
    with pytest.raises(
        caffe.CaffeError,
        match=r'^two: param "w" has shape \(2, 3\), but one, '
        r'which owns it, has \(3, 3\)',
    ):
        net_of(shared(outputs=2))


def test_permissive_sharing_needs_equal_counts():
    text = (
        DATA
        + ip('one', extra='param { name: "w" }', outputs=2)
        + 'layer { name: "as" type: "Parameter" top: "as" param { name: "w" share_mode: '
        'PERMISSIVE } parameter_param { shape { dim: 6 } } }'
    )
    net = net_of(text)
    net.params['one'][0].data[...] = np.arange(6).reshape(2, 3)
    assert net.forward()['as'].tolist() == list(range(6))
    assert net.params['as'][0].shape == (6,)
    with pytest.raises(caffe.CaffeError, match='^as: param "w" has shape'):
        net_of(text.replace('dim: 6', 'dim: 7'))


@pytest.mark.parametrize(
    'first, second, rate',
    [
        ('lr_mult: 2', '', 2),
        ('', 'lr_mult: 3', 3),
        ('lr_mult: 2', 'lr_mult: 2', 2),
        ('', '', 1),
        ('', 'lr_mult: 0', 0),
    ],
)
def test_the_layer_that_sets_a_multiplier_decides_it(first, second, rate):
    (learnable,) = net_of(shared(first, second), caffe.TRAIN).module.learnable
    assert learnable.lr_mult == rate and learnable.decay_mult == 1


@pytest.mark.parametrize('name', ['lr_mult', 'decay_mult'])
def test_multipliers_that_contradict_each_other_are_refused(name):
    with pytest.raises(caffe.CaffeError, match=f'two: param "w" has {name} 3, but .* 2'):
        net_of(shared(f'{name}: 2', f'{name}: 3'))
    third = DATA + ''.join(
        ip(n, extra=f'param {{ name: "w" {m} }}')
        for n, m in (('one', ''), ('two', f'{name}: 2'), ('three', f'{name}: 3'))
    )
    with pytest.raises(caffe.CaffeError, match=f'three: param "w" has {name} 3, but .* 2'):
        net_of(third)


def test_more_params_than_blobs_are_refused():
    with pytest.raises(caffe.CaffeError, match='^ip: 2 param for 1 blobs'):
        layers_of('param { } param { }')


# Losses.


def test_several_losses_add_up_by_weight():
    text = (
        DATA
        + ip('ip')
        + loss('near', 'ip', 'd', 'loss_weight: 0.5')
        + loss('far', 'ip', 'd', 'loss_weight: 2')
        + 'layer { name: "sum" type: "Reduction" bottom: "ip" top: "sum" loss_weight: 3 }'
    )
    net = net_of(text, caffe.TRAIN)
    x = np.random.RandomState(1).randn(2, 3).astype(np.float32)
    out = net.forward(d=x)
    assert float(net.loss()) == pytest.approx(2.5 * out['near'] + 3 * out['sum'], rel=1e-5)
    w = net.params['ip'][0].data
    net.backward()
    above = 2.5 * (x @ w.T - x) / 2 + 3
    assert np.allclose(net.params['ip'][0].diff, above.T @ x, atol=1e-4)


def test_a_loss_of_weight_0_teaches_nothing():
    net = net_of(DATA + ip('ip') + loss('l', 'ip', 'd', 'loss_weight: 0'), caffe.TRAIN)
    net.forward()
    net.backward()
    assert float(net.loss()) == 0 and not net.params['ip'][0].diff.any()


def test_a_loss_may_leave_its_top_unnamed():
    net = net_of(DATA + ip('ip') + loss('l', 'ip', 'd').replace('top: "l"', ''), caffe.TRAIN)
    assert float(net.loss()) >= 0 and len(net.outputs) == 1


@pytest.mark.parametrize(
    'extra, message',
    [
        ('loss_weight: 1 loss_weight: 2', '2 loss_weight for 1 tops'),
        ('propagate_down: true', '1 propagate_down for 2 bottoms'),
    ],
)
def test_wrong_numbers_of_weights_are_refused(extra, message):
    with pytest.raises(caffe.CaffeError, match=f'^l: {message}'):
        net_of(DATA + loss('l', 'd', 'd', extra))


# What takes part in backward.


def chain(a=1, b=1, c=1, down='', force=''):
    return net_of(
        force
        + DATA
        + ip('a', extra=f'param {{ lr_mult: {a} }}')
        + ip('b', 'a', f'param {{ lr_mult: {b} }}')
        + ip('c', 'b', f'param {{ lr_mult: {c} }} {down}')
        + loss('l', 'c', 'd'),
        caffe.TRAIN,
    )


def taught(net) -> set[str]:
    """The layers whose params get a gradient."""
    net.forward(d=np.random.RandomState(1).randn(2, 3).astype(np.float32))
    net.backward()
    return {name for name, (blob,) in net.params.items() if blob.diff.any()}


@pytest.mark.parametrize(
    'mults, learning',
    [((1, 1, 1), 'abc'), ((0, 1, 1), 'bc'), ((1, 0, 0), 'a'), ((0, 0, 0), ''), ((0, 1, 0), 'b')],
)
def test_params_without_rate_get_no_gradient_but_pass_it_on(mults, learning):
    assert taught(chain(*mults)) == set(learning)


def test_backward_stops_below_the_lowest_layer_that_learns():
    net = chain(0, 1, 1)
    assert {n.name: n.need_backward for n in net.module.nodes} == {
        'd': False,
        'a': False,
        'b': True,
        'c': True,
        'l': True,
    }
    net.forward()
    net.blobs['a'].diff[...] = 5
    net.backward()
    assert (net.blobs['a'].diff == 5).all(), 'nothing is computed for a bottom nobody needs'


def test_propagate_down_false_cuts_the_chain():
    assert taught(chain(down='propagate_down: false')) == {'c'}


def test_propagate_down_true_makes_a_gradient_that_nobody_needs():
    net = net_of(DATA + ip('a', extra='propagate_down: true') + loss('l', 'a', 'd'), caffe.TRAIN)
    taught(net)
    assert net.blobs['d'].diff.any()


def test_force_backward_reaches_inputs_and_params_without_rate():
    net = chain(0, 1, 1, force='force_backward: true\n')
    assert taught(net) == {'a', 'b', 'c'} and net.blobs['d'].diff.any()


def test_force_backward_leaves_labels_alone():
    text = (
        'force_backward: true\n'
        + DATA
        + 'layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 } } }\n'
        + 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "d" bottom: "y" top: "l" }'
    )
    net = net_of(text)
    net.forward()
    net.backward()
    assert net.blobs['d'].diff.any() and not net.blobs['y'].diff.any()


def test_a_branch_without_loss_is_passed_over():
    text = DATA + ip('a') + ip('side', 'a') + ip('main', 'a') + loss('l', 'main', 'd')
    net = net_of(text, caffe.TRAIN)
    assert taught(net) == {'a', 'main'}
    side = next(node for node in net.module.nodes if node.name == 'side')
    assert not side.need_backward


def test_a_blob_in_place_and_read_before_gets_both_gradients():
    text = (
        DATA
        + ip('a')
        + loss('before', 'a', 'd')
        + 'layer { name: "r" type: "Power" bottom: "a" top: "a" power_param { scale: 3 } }\n'
        + loss('after', 'a', 'd')
    )
    net = net_of(text, caffe.TRAIN)
    x = np.random.RandomState(1).randn(2, 3).astype(np.float32)
    net.forward(d=x)
    net.backward()
    a = x @ net.params['a'][0].data.T
    above = (a - x) / 2 + 3 * (3 * a - x) / 2
    assert np.allclose(net.params['a'][0].diff, above.T @ x, atol=1e-3)


def test_the_same_seed_trains_to_the_bit_the_same():
    text = (
        'layer { name: "d" type: "DummyData" top: "d" top: "y" dummy_data_param { '
        'shape { dim: 4 dim: 6 } shape { dim: 4 dim: 2 } data_filler { type: "gaussian" } '
        'data_filler { type: "uniform" } } }\n'
        + ip('a', outputs=8)
        + 'layer { name: "drop" type: "Dropout" bottom: "a" top: "a" }\n'
        + ip('b', 'a', outputs=2)
        + loss('l', 'b', 'y')
    )
    seen = []
    for seed in (7, 7, 8):
        param = SolverParameter(
            net_param=prototxt.parse_net(text),
            base_lr=0.1,
            momentum=0.9,
            lr_policy='fixed',
            random_seed=seed,
            weight_decay=0.01,
        )
        solver = caffe.SGDSolver(param)
        solver.step(5)
        seen.append([solver.net.params[name][0].data.copy() for name in 'ab'])
    assert all(np.array_equal(one, other) for one, other in zip(seen[0], seen[1]))
    assert not np.array_equal(seen[0][0], seen[2][0])
