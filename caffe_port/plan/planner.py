"""Where a plan is used, and the plans of a net by the shapes of its inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from caffe_port.mode import TEST
from caffe_port.module import NetModule
from caffe_port.plan.faster import Faster
from caffe_port.plan.kept import Kept
from caffe_port.plan.layout import Layout
from caffe_port.plan.switch import covers

# Layouts of so many shapes are remembered.
_MAX_LAYOUTS = 16
# A layout for fewer multiply-adds costs more than it saves.
LEAST = 2**27


class Planner:
    """The plans of one module; NetModule.planner and every Node.faster refer to it."""

    def __init__(self, module: NetModule):
        self._module = module
        self._layouts: OrderedDict[tuple, Layout | None] = OrderedDict()
        self._arena = torch.empty(0)
        self._kept = Kept()
        self._lock = threading.Lock()
        for node in module.nodes:
            if node.type in Faster.TYPES and len(node.tops) == 1:
                node.faster = Faster(node.op)

    def __reduce__(self):  # a copy makes its plans anew
        return Planner, (self._module,)

    def run(self, sources: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor] | None:
        """Compute the blobs of `wanted` names from those without bottoms, without gradients.

        Returns them by name, contiguous; or None where no layout applies or pays.
        """
        module, wanted = self._module, tuple(sorted(set(wanted)))
        parameters = [p for node in module.nodes for p in node.op.blobs()]
        if not covers((*sources.values(), *parameters)):
            return None
        shapes = {name: tuple(tensor.shape) for name, tensor in sources.items()}
        key = (tuple(shapes.items()), wanted, tuple(tuple(p.shape) for p in parameters))
        # Tensors made in inference mode could not be written to outside it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if key not in self._layouts:
                self._layouts[key] = self._layout(shapes, wanted)
                if len(self._layouts) > _MAX_LAYOUTS:
                    self._layouts.popitem(last=False)
            self._layouts.move_to_end(key)
            layout = self._layouts[key]
            if layout is None:
                return None
            if len(self._arena) < layout.size:
                self._arena = torch.empty(layout.size)
            return layout.run(sources, self._arena, self._kept)

    def layout(self, shapes: Mapping[str, tuple[int, ...]]) -> Layout | None:
        """Return the lines for sources of these shapes when the outputs are asked for."""
        return self._layout(shapes, self._module.outputs)

    def _layout(
        self, shapes: Mapping[str, tuple[int, ...]], wanted: Iterable[str]
    ) -> Layout | None:
        for node in self._module.nodes:
            # What depends on more than its bottoms' shapes can't be planned.
            if node.bottoms and node.type in ('Python', 'Filter'):
                return None
            if node.op.phase != TEST:
                return None
        layout = Layout(self._module, shapes, wanted)
        work = sum(line.before() for line in layout.lines)
        return layout if work >= LEAST else None
