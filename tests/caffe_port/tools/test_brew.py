"""Caffe's own commands: flags, lines, exit statuses, and that they do what the API does."""

import logging
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.__main__ import main
from caffe_port.errors import CaffeError
from caffe_port.glog import GlogFile, GlogFormatter
from caffe_port.tools import flags
from tests import starting
from tests.caffe_logs import parse_log

NET = """
name: "tiny"
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy"
        include { phase: TEST } }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 6 display: 2
snapshot: 3 snapshot_prefix: "{}/snap" random_seed: 7 solver_mode: CPU
test_iter: 2 test_interval: 100
"""
LINE = re.compile(r'^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+\.py:\d+\] ')


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'net.prototxt').write_text(NET)
    (tmp_path / 'solver.prototxt').write_text(SOLVER.format(tmp_path))
    return tmp_path


def said(caplog):
    return '\n'.join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    'arguments',
    [['-a', 'x', '-b'], ['--a', 'x', '--b'], ['--a=x', '--b=true'], ['-a=x', '-b=1', '--n=3']],
)
def test_flags_have_one_dash_or_two_and_a_value_behind_them_or_beside(arguments):
    found, plain = flags.parse(['train', *arguments, 'rest'], dict(a='', b=False, n=3))
    assert (found, plain) == (dict(a='x', b=True, n=3), ['train', 'rest'])


def test_flags_that_are_none_or_of_another_kind_are_refused():
    defaults = dict(a='', b=True, n=3)
    assert flags.parse(['--nob', '--', '--c'], defaults) == (dict(a='', b=False, n=3), ['--c'])
    for arguments, message in (
        (['--c=1'], "unknown command line flag 'c'; there are --a, --b, --n"),
        (['--a'], "flag '--a' is missing its argument"),
        (['--n=x'], "illegal value 'x' specified for int32 flag 'n'"),
        (['--b=x'], "illegal value 'x' specified for bool flag 'b'"),
    ):
        with pytest.raises(CaffeError, match=message):
            flags.parse(arguments, defaults)


def test_train_is_the_solver_and_its_log_is_read_by_caffes_own_tools(folder, tmp_path, caplog):
    handler = GlogFile(tmp_path / 'caffe.log')
    logging.getLogger('caffe_port').addHandler(handler)
    try:
        assert main(['train', f'--solver={folder}/solver.prototxt']) == 0
    finally:
        logging.getLogger('caffe_port').removeHandler(handler)
        handler.close()
    weights = caffe.Net(str(folder / 'net.prototxt'), caffe.TEST)
    weights.copy_from(str(folder / 'snap_iter_6.caffemodel'))
    solver = caffe.get_solver(str(folder / 'solver.prototxt'))
    solver.step(6)
    np.testing.assert_array_equal(weights.params['fc'][0].data, solver.net.params['fc'][0].data)
    lines = (tmp_path / 'caffe.log').read_text().splitlines()
    assert lines[0].startswith('Log file created at: ') and lines[2].startswith('Log line format')
    assert all(LINE.match(line) for line in lines[3:])
    text = '\n'.join(lines)
    train, test = parse_log(tmp_path / 'caffe.log')
    assert [(row[0], row[3]) for row in train] == [(0, 'loss'), (2, 'loss'), (4, 'loss')]
    assert {row[3] for row in test} == {'loss', 'accuracy'}
    assert {row[2] for row in train[1:]} == {0.1}
    assert all(0 <= row[1] < 600 for row in train + test)
    month_and_day, clock = lines[3].split()[:2]
    now = time.localtime()
    assert (int(month_and_day[1:3]), int(month_and_day[3:])) == (now.tm_mon, now.tm_mday)
    assert len(clock.rpartition('.')[2]) == 6
    assert text.rstrip().endswith('Optimization Done.')


def test_train_resumes_from_a_snapshot_or_begins_with_weights(folder, caplog):
    solver = f'--solver={folder}/solver.prototxt'
    assert main(['train', solver]) == 0
    whole = (folder / 'snap_iter_6.caffemodel').read_bytes()
    (folder / 'snap_iter_6.caffemodel').unlink()
    assert main(['train', solver, '-snapshot', f'{folder}/snap_iter_3.solverstate']) == 0
    assert (folder / 'snap_iter_6.caffemodel').read_bytes() == whole
    caplog.clear()
    assert main(['train', solver, f'--weights={folder}/snap_iter_6.caffemodel']) == 0
    assert main(['train', solver, '--weights=a', '--snapshot=b']) == 1
    assert 'but not both' in said(caplog)


def test_test_logs_the_means_of_what_the_net_gives(folder, caplog):
    assert main(['train', f'--solver={folder}/solver.prototxt']) == 0
    caplog.clear()
    model = [f'--model={folder}/net.prototxt', f'--weights={folder}/snap_iter_6.caffemodel']
    assert main(['test', *model, '--iterations=3']) == 0
    text = said(caplog)
    values = [float(v) for v in re.findall(r'Batch \d+, accuracy = ([\d.e+-]+)', text)]
    assert len(values) == 3
    assert float(re.search(r'^accuracy = (\S+)', text, re.M)[1]) == pytest.approx(np.mean(values))
    assert re.search(r'^loss = \S+ \(\* 1 = \S+ loss\)$', text, re.M)


def test_time_gives_each_layer_its_share(folder, caplog):
    assert main(['time', f'--model={folder}/net.prototxt', '--iterations=2']) == 0
    text = said(caplog)
    for name in ('data', 'fc', 'loss'):
        assert re.search(rf'^ +{name}\tforward: [\d.e+-]+ ms\.$', text, re.M), name
        assert re.search(rf'^ +{name}\tbackward: [\d.e+-]+ ms\.$', text, re.M), name
    for line in ('Average Forward pass', 'Average Backward pass', 'Average Forward-Backward'):
        assert re.search(rf'^{line}: [\d.e+-]+ ms\.$', text, re.M)
    assert text.endswith('*** Benchmark ends ***')


def test_what_cannot_be_done_is_one_line_and_status_1(folder, caplog, capsys):
    for arguments, message in (
        (['train'], 'need a solver definition to train: --solver'),
        (['test', '--model=x'], 'need model weights to score: --weights'),
        (['time'], 'need a model definition to time: --model'),
        (['time', f'--model={folder}/net.prototxt', '--phase=x'], 'phase must be'),
        (['cook'], 'Unknown action: cook; there are train, test, device_query, time'),
        (['train', '--solver=none.prototxt'], 'none.prototxt: No such file'),
        (['device_query', '--gpu=x'], '--gpu=x: expected a number'),
        (['train', f'--solver={folder}/solver.prototxt', '--sigint_effect=x'], 'expected stop'),
    ):
        caplog.clear()
        assert main(arguments) == 1
        assert message in caplog.records[-1].getMessage()
        assert caplog.records[-1].levelno == logging.CRITICAL
    # As in Caffe: another number of words than one shows the usage; --help is gflags' status 1.
    for arguments, status in (([], 0), (['train', 'test'], 0), (['--help'], 1), (['-help'], 1)):
        assert main(arguments) == status
        assert 'command line brew' in capsys.readouterr().out
    assert main(['--version']) == 0 and 'caffe_port version' in capsys.readouterr().out


@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_a_snapshot_or_as_its_flag_says(folder, stop):
    text = SOLVER.format(folder).replace('max_iter: 6', 'max_iter: 100000000')
    (folder / 'solver.prototxt').write_text(text.replace('snapshot: 3', 'snapshot: 0'))
    code = 'import runpy; runpy.run_module("caffe_port", run_name="__main__")'
    run = starting.start(
        code, 'train', f'--solver={folder}/solver.prototxt', stdout=subprocess.DEVNULL
    )
    watchdog = threading.Timer(120, run.kill)
    watchdog.start()
    for line in run.stderr:
        if 'Iteration 2' in line:
            run.send_signal(signal.SIGHUP)
            break
    for line in run.stderr:
        if 'Snapshotting solver state' in line:
            run.send_signal(stop)
            break
    rest = run.stderr.read()
    watchdog.cancel()
    assert run.wait() == 0
    assert 'Optimization stopped early.' in rest
    assert len(list(folder.glob('snap_iter_*.solverstate'))) == 2
    assert all(LINE.match(line) for line in rest.splitlines())


@pytest.mark.parametrize('status', [0, 3])
def test_many_gpus_start_a_process_each(folder, monkeypatch, caplog, status):
    started = []

    def run(command):
        started.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    solver = f'{folder}/solver.prototxt'
    arguments = ['train', '-solver', solver, '--gpu=0,1', '--sighup_effect=none']
    if status:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == status
    else:
        assert main(arguments) == 0
    assert started == [
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
        + ['-m', 'caffe_port', 'train', '--gpu=0,1', f'--solver={solver}', '--sighup_effect=none']
    ]
    assert 'Using GPUs 0, 1' in said(caplog)


def test_a_gpu_that_is_not_there_is_named(folder, caplog):
    solver = f'--solver={folder}/solver.prototxt'
    for gpus in '99', '99,100':
        caplog.clear()
        assert main(['train', solver, f'--gpu={gpus}']) == 1
        assert 'no GPU 99; PyTorch finds' in said(caplog)


def test_a_record_of_glog_keeps_its_message_and_letter():
    record = logging.LogRecord('x', logging.WARNING, '/a/b.py', 12, 'half %d', (1,), None)
    record.created = 1_700_000_000.25
    assert re.match(
        r'W\d{4} \d\d:\d\d:\d\d\.250000 +\d+ b\.py:12\] half 1$', GlogFormatter().format(record)
    )
