"""How a net is computed: layer by layer, or faster, with the same numbers.

A layer by itself may be computed in another way (`faster`), which shows in the rounding
alone. In training, layers in a row may be computed as one, with its own gradients (`stretches`),
which are a Net's (`training`) or a module's. A whole net in TEST without gradients may be
computed by a Layout, which keeps no blob but those asked for. `set_plan(False)` turns all of it
off: then every layer runs as caffe_port.ops writes it, which is the reference.

A plan knows types and shapes of layers and no net's name. It covers float32 on the CPU;
elsewhere, and while PyTorch compiles or exports, layers run one by one.
"""

from caffe_port.plan import description
from caffe_port.plan.forward import PlannedForward
from caffe_port.plan.planner import Planner
from caffe_port.plan.stretches import Stretch
from caffe_port.plan.switch import is_on, is_recomputing, set_plan, set_recompute
from caffe_port.plan.training import PlannedTraining

__all__ = [
    'PlannedForward',
    'PlannedTraining',
    'Planner',
    'Stretch',
    'description',
    'is_on',
    'is_recomputing',
    'set_plan',
    'set_recompute',
]
