"""Two processes test at a time: each has one thread, and so have the processes it starts."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_addoption(parser):
    parser.addoption(
        '--thorough', action='store_true', help='draw twenty times as many random examples'
    )


def pytest_configure(config):
    # By the environment, so that the processes of pytest-xdist know it too.
    if config.getoption('--thorough'):
        os.environ['THOROUGH'] = '1'
