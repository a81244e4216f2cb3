"""What the commands share."""

import numpy as np
import pytest

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
