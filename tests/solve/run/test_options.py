"""What the commands share."""

import sys

import numpy as np
import pytest
from PIL import Image

from caffe_port import convert, mode
from caffe_port.errors import CaffeError
from solve import infer, launch, score
from solve.datasets import voc
from solve.run import options, precision
from tests.solve.scored import call

TEXT = """
layer { name: "data" type: "Input" top: "data"
        input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }
layer { name: "mine" type: "Python" bottom: "data" top: "score"
        python_param { module: "MODULE" layer: "Mine" } }
"""


@pytest.mark.parametrize('command', [infer, score])
def test_a_strangers_prototxt_imports_no_module_that_is_not_registered(
    command, tmp_path, monkeypatch, capsys
):
    (tmp_path / 'strange_layers.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'net.prototxt').write_text(TEXT.replace('MODULE', 'strange_layers'))
    np.savez(tmp_path / 'a.npz', **{'fc.weight': np.zeros((2, 2), np.float32)})
    more = [tmp_path / 'picture.png'] if command is infer else []
    status = call(monkeypatch, command.main, tmp_path / 'net.prototxt', tmp_path / 'a.npz', *more)
    assert status == 2
    assert not (tmp_path / 'ran').exists()
    error = capsys.readouterr().err
    assert 'net.prototxt: ' in error and 'strange_layers' in error


OUTPUT = """
layer { name: "data" type: "Input" top: "data"
        input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }
layer { name: "fc" type: "Convolution" bottom: "data" top: "score"
        convolution_param { num_output: 2 kernel_size: 1 bias_term: false } }
layer { name: "out" type: "HDF5Output" bottom: "score" bottom: "score"
        hdf5_output_param { file_name: "FILE" } }
layer { name: "last" type: "Power" bottom: "score" top: "last" }
"""


def test_a_strangers_prototxt_writes_no_file(tmp_path, monkeypatch, capsys):
    victim = tmp_path / 'victim.h5'
    victim.write_text('mine')
    (tmp_path / 'net.prototxt').write_text(OUTPUT.replace('FILE', str(victim)))
    np.savez(tmp_path / 'a.npz', **{'fc.weight': np.ones((2, 3, 1, 1), np.float32)})
    Image.new('RGB', (9, 9)).save(tmp_path / 'picture.png')
    net, weights = tmp_path / 'net.prototxt', tmp_path / 'a.npz'
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, infer.main, net, weights, 'picture.png') == 1
    assert 'victim.h5: not written' in capsys.readouterr().err
    arguments = [str(weights), 'a.caffemodel', '--prototxt', str(net), '--verify']
    monkeypatch.setattr('sys.argv', ['convert.py', *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(convert.main())
    assert ended.value.code == 2
    assert 'victim.h5: not written' in capsys.readouterr().err
    assert victim.read_text() == 'mine'


def test_the_scripts_train_in_bf16_and_say_so_but_not_in_fp16(monkeypatch, capsys):
    monkeypatch.setattr(options, 'choose_device', lambda gpu: None)
    parser = launch._make_parser('', 'voc_fcn32s', voc, ['vgg16.caffemodel'])
    for chosen, said in (('bf16', 'Precision: bf16 in convolutions'), ('fp32', '')):
        options.start_training(parser.parse_args(['--precision', chosen]))
        assert mode.precision() == chosen
        assert capsys.readouterr().out.startswith(said)
    with pytest.raises(SystemExit):
        parser.parse_args(['--precision', 'fp16'])
    assert "'fp16' (choose from" in capsys.readouterr().err
    with pytest.raises(CaffeError, match='tf32: needs a GPU'):
        options.start_training(parser.parse_args(['--precision', 'tf32']))


@pytest.mark.parametrize('slower, told', [(1.2, ''), (31.4, '31 times as slowly\n')])
def test_a_precision_that_is_slow_on_this_cpu_is_told(slower, told, monkeypatch, capsys):
    monkeypatch.setattr(precision, 'slowdown', lambda dtype: slower)
    precision.check('bf16')
    assert capsys.readouterr().err.endswith(told) and mode.precision() == 'fp32'
    precision.check('fp32')
    assert capsys.readouterr().err == ''
