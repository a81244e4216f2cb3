"""A Net's forward by plan: which blobs are kept, and the others when somebody asks for them.

A blob is kept if it is an output, what a loss reads, was asked for before, or if somebody
holds its array. Any other has its shape at once and its values when they are asked for:
then all layers run again, as they stand, from a copy of the inputs. Whoever has changed the
weights meanwhile would be shown numbers of a forward that never was; so the outputs of
this second run are compared with those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from caffe_port.blob import Blob
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from caffe_port.plan.planner import Planner

# Outputs of two runs agree to this of the largest value; so many values are compared.
_TOLERANCE, _SAMPLE = 1e-4, 4096


class PlannedForward:
    """Forward over the blobs of one Net."""

    def __init__(self, module: NetModule, blobs: Mapping[str, Blob], planner: Planner):
        self._module, self._blobs, self._planner = module, blobs, planner
        self.asked = {
            name for node in module.nodes if node.op.loss for name in node.bottoms if node.bottoms
        }
        self._sources: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    def run(self) -> set[int]:
        """Compute what a plan can compute; return the numbers of the layers that it covers."""
        nodes = self._module.nodes
        recorded = torch.is_grad_enabled() and any(node.need_backward for node in nodes)
        if recorded or not self._planner.may_apply():
            return set()
        first = {i for i, node in enumerate(nodes) if not node.bottoms}
        sources: dict[str, Tensor] = {}
        for i in sorted(first):
            if nodes[i].type != 'Input':
                with torch.no_grad():
                    for name, top in zip(nodes[i].tops, nodes[i].run()):
                        self._blobs[name].tensor = top.detach()
            sources.update((name, self._blobs[name].tensor) for name in nodes[i].tops)
        held = {name for name, blob in self._blobs.items() if blob.data_is_held}
        wanted = {*self._module.outputs, *self.asked, *held} - set(sources)
        found = self._planner.run(sources, wanted)
        if found is None:
            return first
        for name, tensor in found.items():
            self._blobs[name].tensor = tensor
        layout = self._planner.layout({n: tuple(t.shape) for n, t in sources.items()}, wanted)
        unkept = [name for name in self._blobs if name not in found and name not in sources]
        for name in unkept:
            self._blobs[name].promise(layout.shape_of(name), partial(self._compute_unkept, name))
        if unkept:
            self._sources = {name: tensor.clone() for name, tensor in sources.items()}
            self._outputs = {
                name: _sampled(found[name]) for name in self._module.outputs if name in found
            }
        return set(range(len(nodes)))

    def _compute_unkept(self, asked: str) -> None:
        """Compute all blobs that the last forward did not keep, and keep `asked` from now on."""
        values = dict(self._sources)
        with torch.no_grad():
            for node in self._module.nodes:
                if node.bottoms:
                    tops = node.run(*[values[name] for name in node.bottoms])
                    values.update(zip(node.tops, tops))
        for name, before in self._outputs.items():
            apart = (_sampled(values[name]) - before).abs().max()
            if not apart <= _TOLERANCE * before.abs().max():
                raise CaffeError(
                    f'blob {asked} was not kept by the last forward, and the weights have changed '
                    f"since: ask for it before that, by forward(blobs=['{asked}']), or "
                    'call set_plan(False)'
                )
        self.asked.add(asked)
        for name, blob in self._blobs.items():
            if blob.is_promised:
                blob.tensor = values[name]
        self._sources = {}


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: -(-flat.numel() // _SAMPLE) or 1].nan_to_num().clone()
