"""Layers written in Python, by pycaffe's protocol."""

import copy
import pickle
import sys
import types

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.proto.caffe_pb2 import SolverParameter
from tests.vectors import net_of

SEEN: list = []


class Gain(caffe.Layer):
    """x * gain with a learned gain per column, written out by hand."""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].shape[1])
        self.blobs[0].data[...] = float(self.param_str or 1)

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        SEEN.append(list(propagate_down))
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data


class Distance(caffe.Layer):
    """EuclideanLoss in Python, as pycaffe's example has it."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception('need two bottoms')

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise Exception('the bottoms differ')
        self.difference = np.zeros_like(bottom[0].data)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.difference**2) / bottom[0].num / 2

    def backward(self, top, propagate_down, bottom):
        for i, sign in enumerate((1, -1)):
            if propagate_down[i]:
                bottom[i].diff[...] = sign * self.difference / bottom[i].num


class Growing(caffe.Layer):
    """A data layer whose image is one row higher each time."""

    def setup(self, bottom, top):
        self.rows = 0

    def reshape(self, bottom, top):
        top[0].reshape(1, 1, self.rows + 1, 4)

    def forward(self, bottom, top):
        self.rows += 1
        top[0].data[...] = self.rows


class Phased(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        top[0].data[...] = self.phase


class Counting(Phased):
    def setup(self, bottom, top):
        self.count = 0

    def reshape(self, bottom, top):
        top[0].reshape(1, 1)

    def forward(self, bottom, top):
        self.count += 1
        top[0].data[...] = self.count


class Fed(Phased):
    """Leaves its top to whoever writes there."""

    def setup(self, bottom, top):
        top[0].reshape(2)
        top[0].data[...] = 5

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        pass


class Parameter(Phased):
    """Has a learned blob that it fills, and a backward that sets its diff."""

    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs[0].data[...] = 1

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] = 2


class Tenfold(caffe.Layer):
    def setup(self, bottom, top):
        self.runs = 0

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        self.runs += 1
        self.held = bottom[0].data
        top[0].data[...] = 10 * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        self.held_diff = bottom[0].diff
        bottom[0].diff[...] = 10 * top[0].diff + bottom[0].data + top[0].data


class Bare(caffe.Layer):
    pass


class NoLayer:
    pass


@pytest.fixture(autouse=True)
def toy_layers(monkeypatch):
    module = types.ModuleType('toy_layers')
    for item in (Gain, Distance, Growing, Phased, Counting, Fed, Parameter, Tenfold, Bare, NoLayer):
        setattr(module, item.__name__, item)
    monkeypatch.setitem(sys.modules, 'toy_layers', module)
    SEEN.clear()


def python(name, layer, bottoms='', tops='', extra='', param_str='', module='toy_layers'):
    ends = [f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in tops.split()]
    return (
        f'layer {{ name: "{name}" type: "Python" {" ".join(ends)} {extra} python_param {{ '
        f'module: "{module}" layer: "{layer}" param_str: "{param_str}" }} }}\n'
    )


DATA = ''.join(
    f'layer {{ name: "{n}" type: "Input" top: "{n}" input_param {{ shape {{ dim: 2 '
    'dim: 3 } } }\n'
    for n in 'xy'
)
TEXT = (
    DATA
    + python('gain', 'Gain', 'x', 'z', param_str='2')
    + python('loss', 'Distance', 'z y', 'loss', 'loss_weight: 1')
)
X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)


def test_a_layers_own_blobs_are_params_of_the_net(tmp_path):
    net = net_of(TEXT, caffe.TRAIN)
    assert [blob.shape for blob in net.params['gain']] == [(3,)]
    assert (net.params['gain'][0].data == 2).all()
    net.params['gain'][0].data[...] = 5
    net.save(tmp_path / 'gain.caffemodel')
    again = net_of(TEXT, caffe.TRAIN)
    again.copy_from(tmp_path / 'gain.caffemodel')
    assert (again.forward(x=X, y=Y)['loss'] == np.sum((5 * X - Y) ** 2) / 4).all()


def test_what_setup_fills_into_a_blob_is_there_and_stays(tmp_path):
    text = 'force_backward: true\n' + DATA + python('layer', 'Parameter', 'x', 'top')
    net = net_of(text, caffe.TRAIN)
    (blob,) = net.params['layer']
    assert blob is net.layers[-1].blobs[0] and blob.data.tolist() == [1, 1, 1]
    assert net.module.state_dict()['layer.blob0'].tolist() == [1, 1, 1]
    net.forward()
    net.backward()  # all diffs above are zero, and the layer is called all the same
    assert blob.data.tolist() == [1, 1, 1] and blob.diff.tolist() == [2, 2, 2]
    blob.data[...] += blob.diff
    net.save(tmp_path / 'net.caffemodel')
    blob.data[...] = -1
    net.copy_from(tmp_path / 'net.caffemodel')
    assert blob.data.tolist() == [3, 3, 3]
    other = net_of(text, caffe.TRAIN)
    other.share_with(net)
    assert other.params['layer'][0].data.tolist() == [3, 3, 3]
    blob.data[0] = 4
    assert other.params['layer'][0].data.tolist() == [4, 3, 3]


def test_python_layers_may_share_a_blob():
    extra = 'param { name: "shared" }'
    net = net_of(
        DATA
        + python('one', 'Gain', 'x', 'a', extra, '2')
        + python('two', 'Gain', 'a', 'b', extra, '5'),
        caffe.TRAIN,
    )
    one, two = (net.params[name][0] for name in ('one', 'two'))
    assert one is two and (net.forward(x=X, y=Y)['b'] == 4 * X).all()
    one.data[...] = 3
    assert (net.forward()['b'] == 9 * X).all()


def test_backward_without_a_forward_runs_no_forward():
    net = net_of('force_backward: true\n' + DATA + python('ten', 'Tenfold', 'x', 'top'))
    net.blobs['x'].data[...], net.blobs['top'].data[...] = X, 7 * Y
    net.blobs['top'].diff[...] = Y
    assert np.array_equal(net.backward()['x'], 10 * Y + X + 7 * Y)
    assert net.module.nodes[-1].op.layer.runs == 0
    assert np.array_equal(net.blobs['top'].data, 7 * Y)


def test_the_module_does_not_overwrite_the_tensors_it_is_given():
    module = net_of('force_backward: true\n' + DATA + python('ten', 'Tenfold', 'x', 'top')).module
    y, first = torch.zeros(2, 3), torch.ones(2, 3)
    out = module(x=first, y=y)['top']
    second = torch.full((2, 3), 2.0, requires_grad=True)
    again = module(x=second, y=y)['top']
    grads = [
        torch.autograd.grad(again, second, torch.full((2, 3), n), retain_graph=True)[0]
        for n in (1.0, 2.0)
    ]
    assert (first == 1).all() and (out == 10).all() and (second == 2).all() and (again == 20).all()
    assert (grads[0] == 10 + 2 + 20).all() and (grads[1] == 20 + 2 + 20).all()


def test_a_net_with_python_layers_can_be_copied():
    net = net_of(TEXT, caffe.TRAIN)
    net.forward(x=X, y=Y)
    net.backward()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.params['gain'][0] is twin.module.nodes[2].op.layer.blobs[0]
        twin.params['gain'][0].data[...] = 5
        assert twin.forward()['loss'] == np.sum((5 * X - Y) ** 2) / 4
    assert (net.params['gain'][0].data == 2).all()


def test_backward_of_loss_and_layer_is_their_own():
    net = net_of(TEXT, caffe.TRAIN)
    net.forward(x=X, y=Y)
    assert float(net.loss()) == np.sum((2 * X - Y) ** 2) / 4
    net.backward()
    above = (2 * X - Y) / 2
    assert np.array_equal(net.params['gain'][0].diff, (above * X).sum(0))
    net.backward()
    assert np.array_equal(net.params['gain'][0].diff, 2 * (above * X).sum(0)), 'they add up'


def test_propagate_down_says_which_bottoms_need_a_gradient():
    net = net_of(TEXT, caffe.TRAIN)
    net.forward(x=X, y=Y)
    net.backward()
    assert SEEN == [[False]] and not net.blobs['y'].diff.any()
    forced = net_of('force_backward: true\n' + TEXT, caffe.TRAIN)
    forced.forward(x=X, y=Y)
    forced.backward()
    assert SEEN[1:] == [[True]]
    assert np.array_equal(forced.blobs['x'].diff, (2 * X - Y) / 2 * 2)
    assert np.array_equal(forced.blobs['y'].diff, -(2 * X - Y) / 2)


def test_a_python_loss_weighs_what_it_is_told():
    net = net_of(TEXT.replace('loss_weight: 1', 'loss_weight: 3'), caffe.TRAIN)
    assert (net.blobs['loss'].diff == 3).all()
    net.forward(x=X, y=Y)
    assert float(net.loss()) == 3 * np.sum((2 * X - Y) ** 2) / 4
    unweighted = net_of(TEXT.replace('loss_weight: 1', ''), caffe.TRAIN)
    unweighted.forward(x=X, y=Y)
    unweighted.backward()
    assert float(unweighted.loss()) == 0 and not SEEN


def test_a_python_layer_learns_under_the_solver():
    param = SolverParameter(net_param=prototxt.parse_net(TEXT), base_lr=0.1, lr_policy='fixed')
    solver = caffe.SGDSolver(param)
    solver.net.blobs['x'].data[...] = X
    solver.net.blobs['y'].data[...] = 7 * X
    gain = np.full(3, 2.0)
    for _ in range(20):
        solver.step(1)
        gain -= 0.1 * ((gain - 7) * (X * X).sum(0)) / 2
        assert np.allclose(solver.net.params['gain'][0].data, gain, atol=1e-4)


def test_the_module_differentiates_through_python():
    module = net_of('force_backward: true\n' + TEXT, caffe.TRAIN).module
    x = torch.from_numpy(X.copy()).requires_grad_()
    module(x=x, y=torch.from_numpy(Y))['loss'].sum().backward()
    assert np.array_equal(x.grad.numpy(), 2 * X - Y)
    assert np.array_equal(module.gain.blob0.grad.numpy(), ((2 * X - Y) / 2 * X).sum(0))


def test_reshape_runs_before_each_forward():
    net = net_of(
        python('grow', 'Growing', '', 'g') + 'layer { name: "r" type: "Reduction" '
        'bottom: "g" top: "r" }'
    )
    for rows in range(1, 4):
        assert net.forward()['r'] == 4 * rows * rows
        assert net.blobs['g'].shape == (1, 1, rows, 4)


def test_each_forward_of_the_module_keeps_its_own_values():
    module = net_of(
        python('p', 'Counting', '', 'p') + 'layer { name: "ip" type: "InnerProduct" '
        'bottom: "p" top: "ip" inner_product_param { num_output: 1 } }'
    ).module
    one, two = module()['ip'], module()['ip']
    (one + two).sum().backward()
    assert module.get_parameter('ip.weight').grad.tolist() == [[1 + 2]]


def test_tops_hold_what_was_written_before_the_first_forward():
    net = net_of(python('fed', 'Fed', '', 'x'))
    assert net.blobs['x'].data.tolist() == [5, 5]
    net.blobs['x'].data[1] = 6
    assert net.forward()['x'].tolist() == [5, 6]
    net.blobs['x'].reshape(3)
    net.blobs['x'].data[...] = 7
    assert net.forward()['x'].tolist() == [7, 7, 7]


def test_a_layer_knows_its_phase():
    for phase in (caffe.TRAIN, caffe.TEST):
        assert net_of(python('p', 'Phased', '', 'p'), phase).forward()['p'] == phase


def test_param_str_is_data_and_runs_nothing(tmp_path):
    harmful = f'__import__(chr(111)+chr(115)).mkdir({str(tmp_path / "made")!r})'
    with pytest.raises(ValueError, match='could not convert'):
        net_of(TEXT.replace('param_str: "2"', f'param_str: "{harmful}"'))
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    'module, layer, message',
    [
        ('no_such_layers', 'Gain', 'no module no_such_layers on the path'),
        ('toy_layers', 'Missing', 'module toy_layers has no class Missing that derives'),
        ('toy_layers', 'NoLayer', 'no class NoLayer that derives from caffe_port.Layer'),
        ('toy_layers', '__doc__', 'no class __doc__'),
        ('', 'Gain', '"" is not the name'),
        ('toy layers', 'Gain', '"toy layers" is not the name'),
        ('os.system(1)', 'Gain', 'is not the name'),
        ('..toy_layers', 'Gain', 'is not the name'),
        ('toy_layers', 'Bare', 'Bare defines no reshape'),
    ],
)
def test_what_is_no_layer_is_refused_by_name(module, layer, message):
    with pytest.raises(caffe.CaffeError, match=rf'^p \(Python\): .*{message}'):
        net_of(DATA + python('p', layer, 'x', 'p', module=module))


def test_a_module_that_needs_another_says_which(tmp_path, monkeypatch):
    (tmp_path / 'needy_layers.py').write_text('import no_such_thing\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(caffe.CaffeError, match='module needy_layers needs no_such_thing'):
        net_of(python('p', 'Any', '', 'p', module='needy_layers'))


def test_the_layers_own_exceptions_come_through_whole():
    with pytest.raises(Exception, match='^need two bottoms$'):
        net_of(DATA + python('p', 'Distance', 'x', 'p'))
