"""Where a plan is used, and the plans of a net by the shapes of its inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from caffe_port.blob import Shape
from caffe_port.building import Node
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from caffe_port.ops.base import LAYER_TYPES
from caffe_port.plan.faster import Faster
from caffe_port.plan.kept import Kept
from caffe_port.plan.layout import Layout
from caffe_port.plan.stretches import Stretch, find
from caffe_port.plan.switch import covers, is_untouched

# How many shapes have their layouts remembered.
MAX_LAYOUTS = 16
# A layout for fewer multiply-adds costs more than it saves.
LEAST = 2**27
# Layers whose tops follow from bottoms and blobs alone, once none is in training.
_PURE = frozenset(
    'AbsVal Accuracy ArgMax BNLL BatchNorm Bias Clip Concat Convolution Crop Deconvolution '
    'Dropout ELU Eltwise EuclideanLoss Exp Flatten InnerProduct LRN Log MVN PReLU Pooling Power '
    'ReLU Reduction Reshape Scale Sigmoid Silence Slice Softmax SoftmaxWithLoss Split Swish TanH '
    'Threshold Tile'.split()
)


def _is_pure(node: Node) -> bool:
    if not node.bottoms:
        return True
    op = node.op
    if node.type not in _PURE or type(op) is not LAYER_TYPES[node.type]:
        return False
    if not type(op).__module__.startswith('caffe_port.ops.'):  # a plugin's, of the same name
        return False
    return node.type != 'BatchNorm' or op.always_global is not False


class Planner:
    """The plans of one module."""

    def __init__(self, module: NetModule):
        self._module = module
        self._sources = {top for node in module.nodes if not node.bottoms for top in node.tops}
        self._pure = all(map(_is_pure, module.nodes))
        for node in module.nodes:
            if node.type in Faster.TYPES and len(node.tops) == 1:
                node.faster = Faster(node.op)
        self._forget()

    def _forget(self) -> None:
        self._layouts: OrderedDict[tuple, Layout | None] = OrderedDict()
        self._arena, self._kept = torch.empty(0), Kept()
        self.changes = -1  # how often the parameters had changed at the last run
        self._lock = threading.Lock()
        self._stretches: dict[int, Stretch] | None = None  # by their first layer, once found

    def __getstate__(self) -> dict:  # a copy makes its plans anew
        own = '_layouts', '_arena', '_kept', '_lock', '_stretches'
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def __call__(
        self, inputs: Mapping[str, Tensor], wanted: Iterable[str]
    ) -> dict[str, Tensor] | None:
        """Compute what NetModule.forward returns; None where its layers should run one by one."""
        tensors = (*inputs.values(), *self._module.parameters())
        gradients = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if gradients or set(inputs) != self._sources:
            return None
        found = self.run(inputs, wanted)
        return found and {name: found[name] for name in wanted}

    def stretch(self, first: int, blobs: Mapping[str, Tensor]) -> Stretch | None:
        """Return the stretch that begins with layer `first`, if it may compute its bottom.

        There is none where no gradients are recorded.
        """
        if not torch.is_grad_enabled():
            return None
        if self._stretches is None:
            self._stretches = {each.numbers[0]: each for each in find(self._module.nodes)}
        stretch = self._stretches.get(first)
        if stretch is None or not stretch.may_take(blobs[stretch.bottom]):
            return None
        return stretch

    def may_apply(self) -> bool:
        """Return whether `run` may find a layout for some shapes."""
        return self._may_plan(())

    def _may_plan(self, sources: Iterable[Tensor]) -> bool:
        ops = [node.op for node in self._module.nodes]
        return (
            self._pure
            and covers((*sources, *self._parameters()))
            and all(is_untouched(op) and not (op.training and op.param.bottom) for op in ops)
        )

    def run(self, sources: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor] | None:
        """Compute blobs of `wanted` names from those of layers without bottoms; no gradients.

        Returns them by name, contiguous; None where no layout applies or pays.
        """
        if not self._may_plan(sources.values()):
            return None
        # Tensors made in inference mode could not be written to outside it.
        with self._lock, torch.inference_mode(False), torch.no_grad():
            layout = self.layout(
                {name: tuple(tensor.shape) for name, tensor in sources.items()}, wanted
            )
            if layout is None or layout.work < LEAST:
                return None
            if len(self._arena) < layout.size:
                self._arena = torch.empty(layout.size, dtype=torch.float32)
            self._watch()
            found = layout.run(sources, self._arena, self._kept)
            self.changes = self._kept.changes
            return found

    def free(self) -> None:
        """Free the memory of blobs, and of what follows from the parameters, which have changed."""
        with self._lock:
            self._arena = torch.empty(0)
            self._kept.forget()

    def count_changes(self) -> int:
        """Return how often the parameters have changed, as far as layouts watch them."""
        with self._lock, torch.inference_mode(False):
            self._watch()
            self._kept.refresh()
            return self._kept.changes

    def _watch(self) -> None:
        """Watch what any layout watches: one layout's weights may have changed under another."""
        for layout in self._layouts.values():
            if layout is not None:
                layout.watch(self._kept)

    def layout(self, shapes: Mapping[str, Shape], wanted: Iterable[str]) -> Layout | None:
        """Return the layout for sources of these shapes, new or remembered; None if there is none.

        A layer that refuses its bottoms has no layout: run by itself it says why.
        """
        names = tuple(sorted(set(wanted)))
        key = tuple(shapes.items()), names, tuple(tuple(p.shape) for p in self._parameters())
        if key not in self._layouts:
            try:
                self._layouts[key] = Layout(self._module, shapes, names)
            except CaffeError:
                self._layouts[key] = None
            if len(self._layouts) > MAX_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        return self._layouts[key]

    def _parameters(self) -> list[Tensor]:
        return [parameter for node in self._module.nodes for parameter in node.op.blobs()]
