"""The fuzzer, under an option: `pytest tests/test_fuzz.py --fuzz MINUTES [--fuzz-seed N]`."""

import secrets

import pytest


def test_damaged_files_of_every_kind_end_in_success_or_one_caffe_error(request, tmp_path):
    minutes = request.config.getoption('--fuzz')
    if not minutes:
        pytest.skip('runs for as long as --fuzz MINUTES says')
    from tests.fuzz.run import KINDS, run

    seed = request.config.getoption('--fuzz-seed') or secrets.randbits(32)
    print(f'\nseed {seed}; what fails is kept in {tmp_path}')
    counts, failures = run(seed, minutes, tmp_path)
    print(f'{sum(counts.values())} cases: {dict(sorted(counts.items()))}')
    shown = '\n'.join(failures[:20])
    assert not failures, f'seed {seed}: {len(failures)} failed, the first:\n{shown}'
    assert minutes < 1 or set(counts) == set(KINDS)
