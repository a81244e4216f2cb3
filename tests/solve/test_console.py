"""The commands that pip installs: what they are called, where they look, what they run."""

import importlib
import runpy
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from caffe_port import version
from solve import console, launch
from solve.run import command_names
from solve.samples import recipes

ROOT = Path(__file__).resolve().parents[2]


def read_setup():
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    return config


def list_installed():
    lines = read_setup()['options.entry_points']['console_scripts'].strip().splitlines()
    return {name.strip(): target.strip() for name, target in (line.split('=') for line in lines)}


@pytest.fixture(autouse=True)
def called_by_nothing():
    yield
    command_names.start_as()


def call(monkeypatch, capsys, *words):
    """Call an installed command; return its status and what it prints."""
    module, function = list_installed()[words[0]].split(':')
    monkeypatch.setattr(sys, 'argv', [f'/anywhere/bin/{words[0]}', *words[1:]])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.delitem(sys.modules, '_checkout', raising=False)
    try:
        status = getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        status = end.code
    return status or 0, ''.join(capsys.readouterr())


@pytest.mark.parametrize('name', list_installed())
def test_help_names_commands_as_they_are_called(name, monkeypatch, capsys):
    status, out = call(monkeypatch, capsys, name, '--help')
    assert status == 0 and out.startswith(f'usage: {name} ')
    assert '.py' not in out and 'exit status' in out
    assert len(out.splitlines()) <= 40


def test_an_experiment_is_named_with_its_command(monkeypatch, capsys):
    status, out = call(monkeypatch, capsys, 'fcn-solve', 'nyud_fcn32s_color_hha', '--help')
    assert status == 0 and out.startswith('usage: fcn-solve nyud_fcn32s_color_hha ')
    assert '.py' not in out
    words = ['fcn-solve', 'voc_fcn32s', '--keep', '3']
    command_names.start_as(*words[:2])
    monkeypatch.setattr(sys, 'argv', ['/site/solve/voc_fcn32s.py', *words[2:]])
    resume = launch._name_command(Path('out'), resume=True)
    assert resume == 'fcn-solve voc_fcn32s --keep 3 --resume latest --output out'


def test_all_experiments_are_there_and_no_other(monkeypatch, capsys):
    scripts = {path.stem for path in (ROOT / 'solve').glob('*_*.py')}
    scripts -= {'__init__', '_checkout', 'base_nets'}
    scripts |= {*recipes.STUDIES}
    assert set(console.list_scripts()) == scripts
    assert call(monkeypatch, capsys, 'fcn-solve', 'voc_fcn') == (
        2,
        'error: voc_fcn: no such experiment; see fcn-solve --help\n',
    )


def test_without_a_checkout_default_places_follow_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / 'site' / 'solve' / 'run'
    folder.mkdir(parents=True)
    shutil.copy(ROOT / 'solve/run/options.py', folder)
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    installed = runpy.run_path(str(folder / 'options.py'))
    assert installed['ROOT'] == tmp_path / 'work'
    assert installed['ROOT_NAME'] == 'the working directory'
    checkout = runpy.run_path(str(ROOT / 'solve/run/options.py'))
    assert (checkout['ROOT'], checkout['ROOT_NAME']) == (ROOT, 'the project')


def test_the_description_shows_its_picture_without_other_files(monkeypatch):
    said = {}
    setuptools = pytest.importorskip('setuptools')
    monkeypatch.setattr(setuptools, 'setup', lambda **settings: said.update(settings))
    runpy.run_path(str(ROOT / 'setup.py'))
    readme = (ROOT / 'README.md').read_text('utf-8')
    assert readme.count('](solve/') == 1 and '](solve/' not in said['long_description']
    assert '](data:image/png;base64,iVBOR' in said['long_description']
    metadata = read_setup()['metadata']
    assert metadata['version'] == 'attr: caffe_port.version.__version__' and version.__version__
