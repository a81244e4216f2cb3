"""NetModule: a NetParameter as one torch.nn.Module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from caffe_port import lowered, mode
from caffe_port.blob import Shape
from caffe_port.building import BuiltNet
from caffe_port.errors import CaffeError
from caffe_port.outputs import Outputs
from caffe_port.param_blob import ParamBlob
from caffe_port.proto.caffe_pb2 import NetParameter, NetState


class Stretch(Protocol):
    """Layers in a row that compute their top as one."""

    numbers: Sequence[int]
    bottom: str
    top: str

    def compute(self, bottom: Tensor) -> Tensor:
        """Return the top."""


class Planner(Protocol):
    """What computes faster than layer by layer (see plan)."""

    def __call__(
        self, inputs: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor] | None:
        """Return the outputs, computed without the layers between; None where it may not."""

    def stretch(self, first: int, blobs: Mapping[str, Tensor]) -> Stretch | None:
        """Return the layers from number `first` on that may be computed as one, if any."""

    def free(self) -> None:
        """Free memory; the parameters have changed."""


class NetModule(nn.Module):
    """The layers of a net, in order, as one module.

    A call takes input blobs as keywords, or in the order of `inputs`, and returns a dict of
    the output blobs, which are attributes too (see Outputs): all tensors, differentiable, on
    any device. state_dict keys are `<layer>.weight` and `<layer>.bias` in Caffe's shapes.
    train() and eval() switch Dropout, BatchNorm and stochastic pooling; until then each layer
    follows its phase.

    Raises CaffeError, naming the layer, if the net is not valid.
    """

    def __init__(self, param: NetParameter, state: NetState):
        super().__init__()
        self.training = state.phase == mode.TRAIN
        layers = BuiltNet(param, state, mode.device())
        self.param, self.nodes, self.learnable = layers.param, layers.nodes, layers.learnable
        self.inputs, self.outputs, self.shapes = layers.inputs, layers.outputs, layers.shapes
        for number, node in enumerate(self.nodes):
            # Two layers may have one name, and PyTorch assigns to "training": use another key.
            taken = node.name in self._modules or node.name == 'training'
            self._modules[f'{node.name}#{number}' if taken else node.name] = node.op
        self.planner: Planner | None = None

    def param_blobs(self) -> Iterator[ParamBlob]:
        """Yield the params of all layers, in order, as pycaffe shows them."""
        for node in self.nodes:
            yield from node.op.param_blobs

    def flush(self) -> None:
        """Send what was written to host arrays of the params to the device."""
        for blob in self.param_blobs():
            blob.flush()

    def _apply(self, fn, recurse: bool = True) -> NetModule:
        self.flush()  # before what .to() moves
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        self.flush()  # before what copies and pickles take
        return self.__dict__

    def state_dict(self, *args, **kwargs):
        self.flush()
        return super().state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return f'inputs: {", ".join(self.inputs)}; outputs: {", ".join(self.outputs)}'

    def forward(self, *blobs_in: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        if not torch.compiler.is_compiling():
            self.flush()
        if blobs_in:
            inputs = self._with_names(blobs_in, inputs)
        unknown = set(inputs) - set(self.shapes)
        if unknown:
            raise CaffeError(
                f'no blob named {", ".join(sorted(unknown))}; '
                f'inputs are {", ".join(self.inputs) or "none"}'
            )
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                raise CaffeError(f'input {name}: expected a tensor, found {type(value).__name__}')
        planner = None if torch.compiler.is_compiling() else self.planner
        if planner is not None:
            planned = planner(inputs, self.outputs)
            if planned is not None:
                return Outputs(planned)
        blobs = dict(inputs)
        done: set[int] = set()
        for i, node in enumerate(self.nodes):
            stretch = planner.stretch(i, blobs) if planner is not None and i not in done else None
            if stretch is not None:
                blobs[stretch.top] = stretch.compute(blobs[stretch.bottom])
                done.update(stretch.numbers)
            if i in done or not node.bottoms and all(top in inputs for top in node.tops):
                continue
            if node.type == 'Input':
                missing = [top for top in node.tops if top not in inputs]
                raise CaffeError(f'input {", ".join(missing)} is not given')
            blobs.update(zip(node.tops, node.run(*[blobs[name] for name in node.bottoms])))
        found = {name: blobs[name] for name in self.outputs}
        if mode.low_dtype() is not None:
            found = {name: lowered.raised(tensor) for name, tensor in found.items()}
        # torch.export knows plain containers only.
        return found if torch.compiler.is_exporting() else Outputs(found)

    def _with_names(
        self, given: tuple[Tensor, ...], inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the inputs with those that were given by position under their names."""
        first = self.inputs[: len(given)]
        if len(given) > len(first):
            names = ', '.join(self.inputs) or 'none'
            raise CaffeError(f'{len(given)} inputs by position; inputs are {names}')
        twice = [name for name in first if name in inputs]
        if twice:
            raise CaffeError(f'input {twice[0]} is given by position and by name')
        return {**dict(zip(first, given)), **inputs}

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        # Names of layers may have dots, which PyTorch would take for modules within modules.
        if strict:
            own = {prefix + key for key in self.state_dict(keep_vars=True)}
            unexpected.extend(
                key for key in state_dict if key.startswith(prefix) and key not in own
            )

    def infer_shapes(self, given: dict[str, Shape]) -> dict[str, Shape]:
        """Return the shape of every blob, given those of the Input layers' tops."""
        shapes = dict(given)
        for node in self.nodes:
            if node.type == 'Input':
                continue
            with node.named_in_errors():
                tops = node.op.top_shapes(*[shapes[name] for name in node.bottoms])
            shapes.update(zip(node.tops, tops))
        return shapes
