"""Each command of the pages runs: on small data and nets, and for two iterations."""

import functools
import importlib
import logging
import os
import re
import runpy
import shlex
import shutil
import sys

import pytest
import torch

import caffe_port as caffe
from caffe_port.__main__ import TOOLS
from caffe_port.__main__ import main as brew
from caffe_port.tools.brew import COMMANDS
from nets import voc_fcn32s
from solve import finetune
from solve.samples import trees
from tests.docs.materials import STAND_INS, write_materials, write_what_the_tools_need
from tests.docs.pages import PAGES, ROOT, list_commands
from tests.solve.small import blank_figures, shrink_samples

# Commands that are named to speak of them, those that measure for minutes, and those that other
# tests run in the same way: exports tests/caffe_port/test_export.py, studies
# tests/solve/test_studies.py, torchrun tests/solve/test_parallel.py.
NOT_RUN = re.compile(
    r'python -m caffe_port( NAME| train( \.\.\.)?)?'
    r'|python -m caffe_port\.summary|python -m caffe_port\.tools\.parse_log'
    r'|python caffe_port/convert\.py \S+ \S+\.(onnx|pt2) .*'
    r'|python solve/(sampling|balancing|upsampling|heavy|masking)\.py'
    r'|torchrun .*|python tests/bench_\w+\.py.*'
)
# What a page takes for granted: where data lies, how long one has.
ADDED = {
    r'python solve/(voc_\w+|finetune)\.py(?!.* --(check|resume))': '--iterations 2',
    r'python caffe_port/convert\.py (?!.*--info)': '--force',
    r'python solve/score\.py voc': '--sbdd-dir SBD/dataset --voc-dir VOC2011',
}
# The exit status is 1 where something is missing.
MAY_MISS = re.compile(r'python solve/doctor\.py')
# The commands of these pages follow from each other; elsewhere each stands alone.
STORIES = 'own-data.md', 'reproducing.md'
# Its commands need files of their own.
ELSEWHERE = ('caffe-tools.md',)


@pytest.fixture(scope='module')
def materials(tmp_path_factory):
    folder = tmp_path_factory.mktemp('materials')
    write_materials(folder)
    return folder


@pytest.fixture
def small(monkeypatch):
    shrink_samples(monkeypatch)
    blank_figures(monkeypatch)
    monkeypatch.setattr(finetune, 'SAMPLE_IMAGES', 5)
    few = dict(train=2, val=1, size=(80, 80))
    monkeypatch.setattr(trees, 'draw_dataset', functools.partial(trees.draw_dataset, **few))
    monkeypatch.setattr(voc_fcn32s, 'fcn', functools.partial(voc_fcn32s.fcn, width=2, fc=8))


def adapt(command):
    """Return a page's command as it is run here."""
    for there, here in STAND_INS.items():
        command = f'{command} '.replace(there, here).strip()
    if not torch.cuda.is_available():
        command = command.replace('.py 0 ', '.py ')
    added = [options for pattern, options in ADDED.items() if re.match(pattern, command)]
    return ' '.join([command, *added])


def call(command, monkeypatch):
    """Run a command in this process; return its exit status."""
    words = shlex.split(command)[1:]
    monkeypatch.delitem(sys.modules, '_checkout', raising=False)
    monkeypatch.setattr(sys, 'path', [str((ROOT / words[0]).parent), *sys.path])
    try:
        if words[0] == '-m':
            monkeypatch.setattr(sys, 'argv', words[1:])
            if words[1] == 'caffe_port':
                return brew(words[2:])
            monkeypatch.delitem(sys.modules, words[1], raising=False)
            runpy.run_module(words[1], run_name='__main__', alter_sys=True)
            return 0
        monkeypatch.setattr(sys, 'argv', [str(ROOT / words[0]), *words[1:]])
        module = importlib.import_module(words[0].removesuffix('.py').replace('/', '.'))
        if hasattr(module, 'main'):
            return module.main() or 0
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        return end.code or 0
    finally:
        caffe.set_plan(True)
        caffe.set_recompute(False)
        caffe.set_precision('fp32')
    return 0


def list_runs():
    """Return lists of commands that are run one after the other; none is in two lists."""
    runs = {}
    for page in sorted(PAGES, key=lambda page: page.name not in STORIES):
        found = [each for each in list_commands(page) if not NOT_RUN.fullmatch(each)]
        if page.name in STORIES:
            runs[tuple(found)] = page.name
        elif page.name not in ELSEWHERE:
            known = {command for commands in runs for command in commands}
            runs |= {(each,): f'{page.name}: {each}' for each in found if each not in known}
    return [pytest.param(commands, id=name) for commands, name in runs.items()]


@pytest.mark.parametrize('commands', list_runs())
def test_commands_of_the_pages_run(commands, materials, small, tmp_path, monkeypatch, capsys):
    shutil.copytree(materials, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for command in map(adapt, commands):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
        status = call(command, monkeypatch)
        said = ''.join(capsys.readouterr())
        assert status in (0, 1 if MAY_MISS.match(command) else 0), f'{command}\n{said}'
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
        assert said.strip() or after != before, f'{command} does nothing'


def test_commands_of_the_page_on_caffes_tools_run(tmp_path, monkeypatch):
    pytest.importorskip('lmdb')
    write_what_the_tools_need(tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [
        command.removeprefix('python -m caffe_port ')
        for command in list_commands(ROOT / 'docs/caffe-tools.md')
        if not NOT_RUN.fullmatch(command)
    ]
    assert {command.split()[0] for command in commands} == {*COMMANDS, *TOOLS} - {'device_query'}
    for command in commands:
        arguments, _, target = command.partition(' 2> ')
        handler = logging.FileHandler(target or os.devnull)
        logging.getLogger('caffe_port').addHandler(handler)
        try:
            assert brew(shlex.split(arguments)) == 0, command
        finally:
            logging.getLogger('caffe_port').removeHandler(handler)
            handler.close()
    results = 'train_lmdb', 'mean.binaryproto', 'train.log.train', 'features', 'new.caffemodel'
    assert all((tmp_path / name).exists() for name in results)
