"""Layers written in Python, by pycaffe's protocol."""

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


class Bare(caffe.Layer):
    pass


class NoLayer:
    pass


@pytest.fixture(autouse=True)
def toy_layers(monkeypatch):
    module = types.ModuleType('toy_layers')
    for item in (Gain, Distance, Growing, Phased, Counting, Fed, Bare, NoLayer):
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


def test_tops_hold_what_setup_and_others_wrote_before_the_first_forward():
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
