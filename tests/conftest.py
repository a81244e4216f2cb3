"""Options of the test command, and what all tests share.

Two processes test at a time (setup.cfg): each has one thread, and so have those it starts.
"""

import os
import secrets

os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_addoption(parser):
    parser.addoption(
        '--thorough',
        action='store_true',
        help='run only the tests with drawn input, and draw twenty times as many examples, '
        'others in each run',
    )
    parser.addoption(
        '--thorough-seed', type=int, metavar='N', help='the seed of --thorough, to draw it again'
    )
    parser.addoption(
        '--fuzz', type=float, default=0, metavar='MINUTES', help='run the fuzzer for so long'
    )
    parser.addoption(
        '--fuzz-seed', type=int, metavar='N', help="the fuzzer's seed, to run it again"
    )
    parser.addoption(
        '--kills',
        type=int,
        metavar='N',
        help='kill runs of tests/solve/test_faults.py N times in each of four configurations '
        '(default: 3 times in one)',
    )


def pytest_configure(config):
    # By the environment, so that the processes of pytest-xdist know it too.
    if config.getoption('--thorough') and 'PYTEST_XDIST_WORKER' not in os.environ:
        seed = config.getoption('--thorough-seed')
        os.environ['THOROUGH'] = str(secrets.randbits(32) if seed is None else seed)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption('--thorough'):
        terminalreporter.write_line(
            f'drawn by seed {os.environ["THOROUGH"]}: to draw the same again, '
            f'--thorough --thorough-seed {os.environ["THOROUGH"]}'
        )


def pytest_collection_modifyitems(config, items):
    if config.getoption('--thorough'):
        drawn = [item for item in items if getattr(item.obj, 'is_hypothesis_test', False)]
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = drawn
