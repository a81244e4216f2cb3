"""Caffe on PyTorch, number for number: `import caffe_port as caffe`."""

import logging
import sys

from caffe_port import coord_map, draw, ops, proto
from caffe_port import pyio as io
from caffe_port.blob import Blob
from caffe_port.classifier import Classifier
from caffe_port.detector import Detector
from caffe_port.errors import CaffeError
from caffe_port.glog import init_log, log
from caffe_port.mode import TEST, TRAIN, set_device, set_mode_cpu, set_mode_gpu, set_precision
from caffe_port.nccl import NCCL, has_nccl
from caffe_port.net import Net
from caffe_port.net_spec import NetSpec, layers, params, to_proto
from caffe_port.ops.python import Layer
from caffe_port.parallel import (
    set_multiprocess,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from caffe_port.plan import set_plan, set_recompute
from caffe_port.rng import set_random_seed
from caffe_port.solving.solver import SGDSolver
from caffe_port.solving.solver_types import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    get_solver,
)
from caffe_port.timer import Timer
from caffe_port.version import __version__

# So that `import caffe_port.io` and `from caffe_port.io import ...` work too.
sys.modules[__name__ + '.io'] = io

# Caffe logs to standard error; remove or replace the handler to change that.
_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)
if not _log.handlers:
    _log.addHandler(logging.StreamHandler())


def layer_type_list() -> list[str]:
    """Return the names of all layer types, sorted."""
    return sorted(ops.LAYER_TYPES)


__all__ = [
    'AdaDeltaSolver',
    'AdaGradSolver',
    'AdamSolver',
    'Blob',
    'CaffeError',
    'Classifier',
    'Detector',
    'Layer',
    'Net',
    'NesterovSolver',
    'NCCL',
    'NetSpec',
    'RMSPropSolver',
    'SGDSolver',
    'TEST',
    'TRAIN',
    'Timer',
    '__version__',
    'coord_map',
    'draw',
    'get_solver',
    'has_nccl',
    'init_log',
    'io',
    'layer_type_list',
    'layers',
    'log',
    'params',
    'proto',
    'set_device',
    'set_mode_cpu',
    'set_mode_gpu',
    'set_multiprocess',
    'set_plan',
    'set_precision',
    'set_recompute',
    'set_random_seed',
    'set_solver_count',
    'set_solver_rank',
    'solver_count',
    'solver_rank',
    'to_proto',
]
