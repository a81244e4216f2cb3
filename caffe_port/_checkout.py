"""Put the checkout first on the path, for scripts of this folder."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
