"""convert.py to .onnx and .pt2: the net for other engines, at any size."""

import functools
import io
from contextlib import redirect_stdout
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import export
from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from nets import data, vgg16, voc_fcn8s
from nets.atoms import conv_relu, max_pool, score, upsample
from solve.datasets import voc
from solve.datasets.images import bgr_blob, read_rgb
from solve.samples import trees
from tests.conversion import refused, run
from tests.vectors import net_of

KINDS = '.onnx', '.pt2'
NARROW = dict(width=2, fc=4)


def need(kind: str) -> None:
    if kind == '.onnx':
        pytest.importorskip('onnxscript', reason='onnxscript writes .onnx')
        pytest.importorskip('onnxruntime', reason='onnxruntime runs .onnx')


def filled(param) -> caffe.Net:
    net, random = caffe.Net(param, caffe.TEST), np.random.RandomState(3)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = random.randn(*blob.shape) * 0.1
    return net


@pytest.fixture(scope='module', autouse=True)
def loaded_once():
    """Load each .pt2 once, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, 'load', functools.cache(torch.export.load))
        yield


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """Return a function that converts an FCN-8s, once for each kind.

    It returns the net, the file and what the command says.
    """
    folder, net = tmp_path_factory.mktemp('exported'), filled(voc_fcn8s.fcn('deploy', **NARROW))
    net.save(folder / 'a.caffemodel')

    @functools.cache
    def convert(kind: str):
        need(kind)
        target, said = folder / f'b{kind}', io.StringIO()
        with redirect_stdout(said):
            assert run(folder / 'a.caffemodel', target, '--net', 'voc_fcn8s', '--verify') == 0
        return net, target, said.getvalue()

    return convert


@pytest.mark.parametrize('kind', KINDS)
def test_an_fcn_computes_the_same_at_every_size(converted, kind):
    net, target, out = converted(kind)
    assert 'images from 32 x 32 on' in out
    for size in ('32 x 32', '41 x 73', '500 x 500'):
        assert f'verify: {size}: largest difference of score ' in out
    pixels = 500 * 500
    assert f'argmax of score: {pixels} of {pixels} pixels agree' in out
    x = torch.randn(1, 3, 57, 120, generator=torch.Generator().manual_seed(1))
    if kind == '.pt2':
        found = torch.export.load(str(target)).module()(x)['score'].detach().numpy()
    else:
        session = pytest.importorskip('onnxruntime').InferenceSession(str(target))
        assert session.get_inputs()[0].shape == [1, 3, 'height', 'width']
        (found,) = session.run(['score'], {'data': x.numpy()})
    expected = net.module(x).score.detach().numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def run_in_opencv(path, x):
    cv2 = pytest.importorskip('cv2', reason='needs OpenCV, whose dnn module opens .onnx')
    if int(cv2.__version__.partition('.')[0]) < 5:
        pytest.skip('OpenCV takes sizes that are left open from version 5 on')
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(x)
    return net.forward()


def run_in_openvino(path, x):
    openvino = pytest.importorskip('openvino', reason='needs OpenVINO, which opens .onnx')
    # Of itself it computes in bfloat16 where the CPU can.
    exact = {'INFERENCE_PRECISION_HINT': 'f32'}
    return openvino.Core().compile_model(str(path), 'CPU', exact)(x)[0]


@pytest.fixture(scope='module')
def exported(converted, tmp_path_factory):
    """A narrow FCN-8s as .onnx, a picture of the sample as it sees it, and its scores."""
    need('.onnx')
    if not (find_spec('cv2') or find_spec('openvino')):
        pytest.skip('needs OpenCV or OpenVINO, which open .onnx')
    net, path, _ = converted('.onnx')
    folder = tmp_path_factory.mktemp('sample')
    trees.draw_dataset('voc', folder / 'data', train=1, val=1)
    picture = next(folder.rglob('*.jpg'))
    x = bgr_blob(read_rgb(picture), voc.MEAN)
    with torch.no_grad():
        return path, x, net.module(torch.from_numpy(x)).score.numpy()


@pytest.mark.parametrize('run_it', [run_in_opencv, run_in_openvino])
def test_other_engines_label_the_sample_s_picture_alike(exported, run_it):
    path, x, expected = exported
    found = run_it(path, x)
    bound = 1e-4 * np.abs(expected).max()
    assert found.shape == expected.shape and np.abs(found - expected).max() <= bound
    assert len(np.unique(expected.argmax(1))) > 1
    second, best = np.sort(expected, 1)[:, -2:].swapaxes(0, 1)
    assert (found.argmax(1) == expected.argmax(1))[best - second > 2 * bound].all()


def two_by_two():
    """Return a small FCN of two images and two tasks, each task's scores cropped to an image."""
    n = NetSpec()
    n.color, n.hha = data.image(), data.image()
    n.conv_color, n.relu_color = conv_relu(n.color, 3, pad=20)
    n.conv_hha, n.relu_hha = conv_relu(n.hha, 3, pad=20)
    n.fused = L.Eltwise(n.relu_color, n.relu_hha, operation=P.Eltwise.SUM, coeff=[0.5, 0.25])
    n.pool = max_pool(n.fused)
    for task, image, classes in ('sem', n.color, 4), ('geo', n.hha, 3):
        n[f'score_{task}'] = score(n.pool, classes)
        n[f'upscore_{task}'] = upsample(n[f'score_{task}'], classes, ks=4, stride=2)
        n[task] = crop(n[f'upscore_{task}'], image)
    return n.to_proto()


@pytest.mark.parametrize('kind', KINDS)
def test_many_inputs_and_outputs_keep_their_names(tmp_path, kind):
    need(kind)
    net = filled(two_by_two())
    assert (net.inputs, net.outputs) == (['color', 'hha'], ['sem', 'geo'])
    least = export.export(net, tmp_path / f'a{kind}')
    lines = list(export.verify_export(net, tmp_path / f'a{kind}', least))
    assert least == 32 and len(lines) == 6 * len(net.outputs)


@pytest.mark.parametrize('kind', KINDS)
def test_a_classifier_keeps_its_size(tmp_path, kind):
    need(kind)
    net = filled(vgg16.classifier(num_classes=5, width=2, fc=4, batch=2))
    least = export.export(net, tmp_path / f'a{kind}')
    lines = list(export.verify_export(net, tmp_path / f'a{kind}', least))
    assert (
        least is None and len(lines) == 1 and 'as exported: largest difference of prob' in lines[0]
    )


def test_another_net_s_outputs_are_told_apart(converted):
    net = filled(voc_fcn8s.fcn('deploy', **NARROW))
    net.params['score_fr'][1].data[3] += 1
    with pytest.raises(caffe.CaffeError, match='score: 32 x 32: .* apart, expected at most'):
        list(export.verify_export(net, converted('.pt2')[1], 32))


def test_what_cannot_be_exported_leaves_no_file(tmp_path, capsys):
    net = filled(voc_fcn8s.fcn('deploy', **NARROW))
    net.save(tmp_path / 'a.caffemodel')
    line = refused(capsys, tmp_path / 'a.caffemodel', tmp_path / 'b.pt2')
    assert 'b.pt2 needs the net: --prototxt FILE or --net NAME' in line
    with pytest.raises(caffe.CaffeError, match='has no inputs to export'):
        export.export(
            net_of(
                'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1'
                ' } } }'
            ),
            tmp_path / 'c.pt2',
        )
    assert [path.name for path in tmp_path.iterdir()] == ['a.caffemodel']
