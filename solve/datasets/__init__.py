"""The Python data layers of the official nets.

Official prototxts name them by the release's modules. Importing this package makes
those names importable, unless the path already has modules of the same names.
"""

from __future__ import annotations

import importlib.util
import sys

from solve.datasets import folder, nyud, pascalcontext, siftflow, voc

_RELEASE_MODULES = {
    'voc_layers': voc,
    'nyud_layers': nyud,
    'siftflow_layers': siftflow,
    'pascalcontext_layers': pascalcontext,
    'folder_layers': folder,
}

for _name, _module in _RELEASE_MODULES.items():
    if _name not in sys.modules and importlib.util.find_spec(_name) is None:
        sys.modules[_name] = _module
