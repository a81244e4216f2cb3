"""Imported by a script of this folder: put the checkout first on the path."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
