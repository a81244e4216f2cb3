"""How many examples the tests with drawn input take, and which."""

import os
from collections.abc import Callable

from hypothesis import seed, settings

# The seed of a thorough run, as conftest draws and prints it.
THOROUGH = os.environ.get('THOROUGH')


def examples(count: int, **others) -> Callable:
    """Draw `count` examples, the same ones in every run; with --thorough twenty times as many.

    Those are other ones in each run, and the same again with --thorough-seed.
    """
    settled = dict(deadline=None, database=None, **others)
    if THOROUGH is None:
        return settings(max_examples=count, derandomize=True, **settled)
    many = settings(max_examples=20 * count, derandomize=False, **settled)
    return lambda test: seed(int(THOROUGH))(many(test))
