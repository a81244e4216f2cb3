"""The habits that all commands share."""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from tests import starting

ROOT = Path(__file__).resolve().parents[1]
# Those of caffe_port/tools keep the forms of Caffe's own.
COMMANDS = [
    path.relative_to(ROOT)
    for package in ('caffe_port', 'nets', 'solve')
    for path in sorted((ROOT / package).rglob('*.py'))
    if path.parent.name != 'tools'
    and re.search(r"^if __name__ == '__main__':\n    (?!import _checkout)", path.read_text(), re.M)
]


def ask_for_help(path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [str(ROOT / path), '--help'])
    monkeypatch.setattr(sys, 'path', [str((ROOT / path).parent), *sys.path])
    monkeypatch.delitem(sys.modules, '_checkout', raising=False)
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / path), run_name='__main__')
    asked = 1 if path == Path('caffe_port/__main__.py') else 0  # Caffe's own, by gflags
    assert (ended.value.code or 0) == asked
    return said.getvalue()


def test_all_commands_are_found():
    assert len(COMMANDS) == 51, list(map(str, COMMANDS))


@pytest.mark.parametrize('path', COMMANDS, ids=str)
def test_help_begins_with_an_example_fits_a_screen_and_names_the_statuses(path, monkeypatch):
    text = ask_for_help(path, monkeypatch)
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert 'exit status' in text
    called = f'python -m {path.parent.as_posix().replace("/", ".")}'
    called = called if path.stem == '__main__' else f'python -m caffe_port.{path.stem}'
    examples = [line for line in lines[1:9] if re.match(r'  \S', line)]
    assert any(path.name in line or called in line for line in examples), text


@pytest.mark.parametrize(
    'command',
    [
        'caffe_port/convert.py {}/a.npz --info',
        '-m caffe_port.prototxt {}/train.prototxt',
        'solve/doctor.py',
        'solve/plot.py {}/log.jsonl --output {}/a.png',
    ],
)
def test_a_reader_that_leaves_is_no_error(command, tmp_path):
    layers = ''.join(
        f'layer {{ name: "a{n}" type: "Power" bottom: "b" top: "b" }}\n' for n in range(9999)
    )
    (tmp_path / 'train.prototxt').write_text(layers)
    (tmp_path / 'log.jsonl').write_text(
        '{"iteration": 1, "loss": 2}\n{"iteration": 2, "loss": 1}\n'
    )
    values = {f'fc{n}.weight': np.zeros((1, 1), np.float32) for n in range(999)}
    np.savez(tmp_path / 'a.npz', **values)
    first, errors = starting.read_first_line(*command.replace('{}', str(tmp_path)).split())
    assert first.endswith('\n') and not errors
