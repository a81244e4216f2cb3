"""A Net's forward by plan: it keeps some blobs, and computes the others when asked for them.

A blob is kept if it is an output, what a loss reads, was asked for before, or if a user
holds its array. Any other has its shape at once and its values when they are asked for:
then all layers run again, one by one, from a copy of the inputs. If the weights have changed
since, the values would match no forward pass, so this raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from caffe_port import mode
from caffe_port.blob import Blob
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from caffe_port.plan.layout import apart
from caffe_port.plan.planner import Planner

# Outputs of two runs agree to this share of the largest value, compared at this many values.
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
        self._changes = -1

    def run(self, run_source: Callable[[int], None]) -> Iterable[int]:
        """Compute what a plan can compute, and return the numbers of the layers it covers.

        run_source: runs a layer without bottoms, by its number.
        """
        nodes = self._module.nodes
        if not self._planner.may_apply():
            return ()
        first = [i for i, node in enumerate(nodes) if not node.bottoms]
        for i in first:
            if nodes[i].type != 'Input':
                run_source(i)
        return range(len(nodes)) if self._compute() else first

    def _compute(self) -> bool:
        tops = {top for node in self._module.nodes if not node.bottoms for top in node.tops}
        sources = {name: self._blobs[name].tensor for name in self._blobs if name in tops}
        held = {name for name, blob in self._blobs.items() if blob.is_shown()}
        wanted = {*self._module.outputs, *self.asked, *held} - set(sources)
        found = self._planner.run(sources, wanted)
        if found is None:
            return False
        for name, tensor in found.items():
            self._blobs[name].tensor = tensor
        layout = self._planner.layout({n: tuple(t.shape) for n, t in sources.items()}, wanted)
        assert layout is not None  # it has just run
        unkept = [name for name in self._blobs if name not in found and name not in sources]
        for name in unkept:
            self._blobs[name].postpone(layout.shape_of(name), partial(self._compute_unkept, name))
        if unkept:
            self._sources = {name: tensor.clone() for name, tensor in sources.items()}
            self._outputs = {
                name: _sampled(found[name]) for name in self._module.outputs if name in found
            }
            self._changes = self._planner.changes
        return True

    def _compute_unkept(self, asked: str) -> None:
        """Compute all blobs that the last forward did not keep, and keep `asked` from now on."""
        device = next((p.device for p in self._module.parameters()), None)
        values = {name: tensor.to(device) for name, tensor in self._sources.items()}
        same = self._changes == self._planner.count_changes()
        # Plans compute in fp32; the precision may have been changed since.
        # Of what is made in inference mode PyTorch takes no gradients.
        with torch.inference_mode(False), torch.no_grad(), mode.computing_in(mode.FP32):
            for node in self._module.nodes:
                if node.bottoms:
                    tops = node.run(*[values[name] for name in node.bottoms])
                    values.update(zip(node.tops, tops))
        for name, before in self._outputs.items():
            difference = (_sampled(values[name]) - before.to(device)).abs().max()
            same = same and bool(difference <= _TOLERANCE * before.abs().max())
        if not same:
            raise CaffeError(
                f'blob {asked} was not kept by the last forward, and the weights have changed '
                f"since: ask for it before that, by forward(blobs=['{asked}']), or "
                'call set_plan(False)'
            )
        self.asked.add(asked)
        taken: set[int] = set()
        for name, blob in self._blobs.items():
            if blob.is_postponed:
                blob.tensor = apart(values[name], taken)
        self._sources = {}


def _sampled(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    return flat[:: -(-flat.numel() // _SAMPLE) or 1].nan_to_num().clone()
