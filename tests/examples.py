"""How many examples the tests with drawn input take."""

import os

from hypothesis import settings

THOROUGH = 'THOROUGH' in os.environ


def examples(count: int, **others) -> settings:
    """Draw `count` examples, twenty times as many under --thorough; the same ones in every run."""
    many = 20 * count if THOROUGH else count
    return settings(max_examples=many, deadline=None, derandomize=True, database=None, **others)
