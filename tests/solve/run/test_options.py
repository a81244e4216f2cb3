"""What the commands share."""

import sys

import numpy as np
import pytest
from PIL import Image

from caffe_port import convert
from solve import infer, score
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
