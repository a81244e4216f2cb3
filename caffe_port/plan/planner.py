"""Where a plan is used, and the plans of a net by the shapes of its inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from caffe_port.mode import TEST
from caffe_port.module import NetModule
from caffe_port.ops.base import Shape
from caffe_port.plan.faster import Faster
from caffe_port.plan.kept import Kept
from caffe_port.plan.layout import Layout
from caffe_port.plan.switch import covers

# Layouts of so many shapes are remembered.
MAX_LAYOUTS = 16
# A layout for fewer multiply-adds costs more than it saves.
LEAST = 2**27


class Planner:
    """The plans of one module."""

    def __init__(self, module: NetModule):
        self._module = module
        self._sources = {top for node in module.nodes if not node.bottoms for top in node.tops}
        # What depends on more than the shapes of its bottoms can't be planned.
        self._plannable = all(
            node.op.phase == TEST and not (node.bottoms and node.type in ('Python', 'Filter'))
            for node in module.nodes
        )
        for node in module.nodes:
            if node.type in Faster.TYPES and len(node.tops) == 1:
                node.faster = Faster(node.op)
        self._forget()

    def _forget(self) -> None:
        self._layouts: OrderedDict[tuple, Layout] = OrderedDict()
        self._arena, self._kept = torch.empty(0), Kept()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:  # a copy makes its plans anew
        own = '_layouts', '_arena', '_kept', '_lock'
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def __call__(
        self, inputs: Mapping[str, Tensor], wanted: Iterable[str]
    ) -> dict[str, Tensor] | None:
        """Compute what NetModule.forward returns; None where that had better run its layers."""
        tensors = (*inputs.values(), *self._module.parameters())
        gradients = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if gradients or set(inputs) != self._sources:
            return None
        found = self.run(inputs, wanted)
        return found and {name: found[name] for name in wanted}

    def may_apply(self) -> bool:
        """Return whether `run` may find a layout for some shapes."""
        return self._plannable and covers(self._parameters())

    def run(self, sources: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor] | None:
        """Compute blobs of `wanted` names from those of layers without bottoms; no gradients.

        Returns them by name, contiguous; None where no layout applies or pays.
        """
        if not (self._plannable and covers((*sources.values(), *self._parameters()))):
            return None
        # Tensors made in inference mode could not be written to outside it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            layout = self.layout(
                {name: tuple(tensor.shape) for name, tensor in sources.items()}, wanted
            )
            if layout is None or layout.work < LEAST:
                return None
            if len(self._arena) < layout.size:
                self._arena = torch.empty(layout.size)
            return layout.run(sources, self._arena, self._kept)

    def layout(self, shapes: Mapping[str, Shape], wanted: Iterable[str]) -> Layout:
        """Return the layout for sources of these shapes, new or remembered."""
        names = tuple(sorted(set(wanted)))
        key = tuple(shapes.items()), names, tuple(tuple(p.shape) for p in self._parameters())
        if key not in self._layouts:
            self._layouts[key] = Layout(self._module, shapes, names)
            if len(self._layouts) > MAX_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        return self._layouts[key]

    def _parameters(self) -> list[Tensor]:
        return [parameter for node in self._module.nodes for parameter in node.op.blobs()]
