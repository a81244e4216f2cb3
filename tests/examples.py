"""How many examples the tests with drawn input take."""

import os

from hypothesis import settings

THOROUGH = 'THOROUGH' in os.environ


def examples(count: int) -> settings:
    """Draw the same `count` examples each time; twenty times as many, and new, under --thorough."""
    if THOROUGH:
        return settings(max_examples=20 * count, deadline=None, database=None, print_blob=True)
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)
