"""Net: pycaffe's face over one torch.nn.Module."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from caffe_port import debug, mode, plan, prototxt
from caffe_port.blob import Blob, ParamBlob
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.module import NetModule, Node
from caffe_port.proto.caffe_pb2 import NetParameter, NetState

LOG = logging.getLogger('caffe_port')


@dataclass
class LayerFace:
    """A layer as pycaffe shows it: its type and its parameter blobs."""

    type: str
    blobs: list[ParamBlob]


@dataclass
class _Step:
    """What a layer's forward leaves for its backward."""

    bottoms: list[Tensor]
    edges: list  # where each top's gradient enters; None where it has none


class Net:
    """A network over blobs, as pycaffe's Net.

    Net(proto, phase), Net(proto, weights, phase) or Net(proto, phase, weights=file),
    where proto is a prototxt file or a NetParameter. It computes on the device of
    caffe_port.mode at the time of the call.

    blobs, params and layer_dict are ordered by name; params holds lists of blobs,
    weight first. Unlike Caffe's, blobs has no copies made by Split layers.
    While debug_info is set, forward and backward log every layer's magnitudes.

    Raises CaffeError, naming file and layer, for whatever is wrong with them.
    """

    def __init__(
        self,
        proto: str | os.PathLike | NetParameter,
        *args,
        phase: int | None = None,
        weights: str | os.PathLike | None = None,
        level: int = 0,
        stages: Sequence[str] | None = None,
    ):
        if len(args) == 2 and phase is None and weights is None and not isinstance(args[0], int):
            weights, phase = args
        elif args and phase is None:
            phase, *rest = args
            level, stages, weights = (*rest, *(level, stages, weights)[len(rest) :])
        if phase not in (mode.TRAIN, mode.TEST):
            raise CaffeError(f'Net: phase is {phase!r}, must be caffe.TRAIN or caffe.TEST')
        if isinstance(proto, NetParameter):
            param, where = prototxt.upgrade_net(proto, 'NetParameter'), None
        else:
            param, where = prototxt.read_net(proto), os.fspath(proto)
        state = NetState()
        state.CopyFrom(param.state)
        state.phase, state.level = phase, level or state.level
        state.stage.extend(stages or ())
        try:
            self.module = NetModule(param, state)
        except CaffeError as error:
            raise CaffeError(f'{where}: {error}' if where else str(error)) from error
        self.debug_info = False
        self._build_faces()
        if weights is not None:
            self.copy_from(weights)

    def _build_faces(self) -> None:
        module, device = self.module, mode.device()
        self._nodes: list[Node] = module.nodes
        self._device = device
        self._tape: dict[int, _Step] = {}
        self.blobs = OrderedDict(
            (name, Blob(shape, device)) for name, shape in module.shapes.items()
        )
        for node in self._nodes:
            self.blobs.update(
                (name, blob) for name, blob in zip(node.tops, node.op.kept_tops) if blob is not None
            )
        # A Python layer sees its own params through the very blobs that the net shows.
        faces: dict[int, ParamBlob] = {
            id(blob.parameter): blob
            for node in self._nodes
            if node.type == 'Python'
            for blob in node.op.layer.blobs
        }
        self.layers: list[LayerFace] = []
        for node in self._nodes:
            blobs = []
            for name, parameter in zip(node.op.blob_names, node.op.blobs()):
                view = node.op.views.get(name)
                if view is not None:
                    blobs.append(ParamBlob(parameter, view))
                else:
                    blobs.append(faces.setdefault(id(parameter), ParamBlob(parameter)))
            self.layers.append(LayerFace(node.op.param.type, blobs))
        self._param_blobs = [blob for layer in self.layers for blob in layer.blobs]
        module.faces = self._param_blobs
        self._layer_names = [node.name for node in self._nodes]
        self.layer_dict = OrderedDict(zip(self._layer_names, self.layers))
        self.params = OrderedDict(
            (name, layer.blobs)
            for name, layer in zip(self._layer_names, self.layers)
            if layer.blobs
        )
        self.top_names = OrderedDict((node.name, list(node.tops)) for node in self._nodes)
        self.bottom_names = OrderedDict((node.name, list(node.bottoms)) for node in self._nodes)
        planner = module.planner = plan.Planner(module)
        self._planned = plan.PlannedForward(module, self.blobs, planner)
        self._seed_losses()

    @property
    def name(self) -> str:
        return self.module.param.name

    @property
    def inputs(self) -> list[str]:
        """The blobs that Input layers declare."""
        return list(self.module.inputs)

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads."""
        return list(self.module.outputs)

    # Forward.

    def forward(
        self,
        blobs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Run the layers from `start` to `end`, both included (default: all).

        Keywords fill input blobs first; they must name all of them, and broadcast to
        their shapes from the same first dimension.
        Returns the output blobs (the tops of `end`, if given) and those named in
        `blobs`, as arrays; on the CPU these are the blobs' own memory.
        """
        if inputs:
            if set(inputs) != set(self.inputs):
                raise CaffeError(
                    f'forward: inputs are {", ".join(self.inputs) or "none"}, '
                    f'given are {", ".join(inputs)}'
                )
            for name, array in inputs.items():
                self._fill(name, array)
        first, last = self._range(start, 0), self._range(end, len(self._nodes) - 1)
        blobs = [name for name in blobs or () if self._blob(name)]
        self._planned.asked.update(blobs)
        self.forward_range(first, last)
        wanted = self.outputs if end is None else self._nodes[last].tops
        return {name: self._blob(name).data for name in dict.fromkeys([*wanted, *blobs])}

    def _fill(self, name: str, array: np.ndarray) -> None:
        blob, array = self.blobs[name], np.asarray(array)
        try:
            if array.shape[:1] != blob.shape[:1]:
                raise ValueError('another first dimension')
            blob.data[...] = array
        except ValueError as error:
            raise CaffeError(
                f'forward: input {name} has shape {array.shape}, the blob '
                f'{blob.shape}; reshape the blob first'
            ) from error

    def forward_range(self, first: int, last: int) -> None:
        """Run the layers numbered first to last, both included, on the blobs as they stand.

        `forward` is this with names for numbers and arrays in and out. Keeps what
        backward needs.
        """
        self.follow_device()
        if first == 0:
            self._tape.clear()
        with self._in_place():
            whole = (first, last) == (0, len(self._nodes) - 1) and not self.debug_info
            done = self._planned.run() if whole else ()
            for i in range(first, last + 1):
                node = self._nodes[i]
                if i not in done and node.type != 'Input':
                    self._run(i, node)
                if self.debug_info:
                    debug.forward(self, node)
            self._seed_losses()

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Let arrays of blobs that somebody holds show the values computed meanwhile."""
        held = [pair for blob in self.blobs.values() for pair in blob.held()]
        try:
            yield
        finally:
            for half, host in held:
                half.settle(host)

    def _run(self, i: int, node: Node) -> None:
        self._tape.pop(i, None)
        bottoms = [self.blobs[name].tensor for name in node.bottoms]
        if node.need_backward and torch.is_grad_enabled():
            tops = self._record(i, node, bottoms)
        else:
            with torch.no_grad():
                tops = node.run(*bottoms)
        for name, top in zip(node.tops, tops):
            self.blobs[name].tensor = top.detach()

    def _record(self, i: int, node: Node, bottoms: list[Tensor]) -> tuple[Tensor, ...]:
        """Run a node so that its own backward can follow, apart from all others'."""
        leaves = [bottom.detach() for bottom in bottoms]
        for j, name in enumerate(node.bottoms):
            if name in node.tops and self.blobs[name].data_is_held:
                leaves[j] = leaves[j].clone()  # what was read outlives what comes in its place
        for leaf, wanted in zip(leaves, node.propagate):
            leaf.requires_grad_(wanted)
        with torch.enable_grad():
            tops = node.run(*leaves)
        # An edge, unlike the top, does not keep alive what an in-place layer replaces.
        edges = [get_gradient_edge(top) if top.requires_grad else None for top in tops]
        self._tape[i] = _Step(leaves, edges)
        return tops

    # Backward.

    def backward(
        self,
        diffs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **tops: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Run backward from layer `start` to `end`, both included (default: all).

        Keywords fill diffs of output blobs (the tops of `start`, if given) first.
        Diffs of blobs are set, diffs of params added to. As in Caffe, layers that lead
        to no loss are passed over unless the net says `force_backward: true`.
        Returns the diffs of the inputs (the bottoms of `end`, if given) and of `diffs`.
        """
        first = self._range(start, len(self._nodes) - 1)
        last = self._range(end, 0)
        if tops:
            expected = self.outputs if start is None else self._nodes[first].tops
            if set(tops) - set(expected):
                raise CaffeError(
                    f'backward: tops are {", ".join(expected)}, given are {", ".join(tops)}'
                )
            for name, array in tops.items():
                if np.shape(array) != self.blobs[name].shape:
                    raise CaffeError(
                        f'backward: diff of {name} has shape {np.shape(array)}, '
                        f'the blob {self.blobs[name].shape}'
                    )
                self.blobs[name].diff[...] = array
        self.backward_range(first, last)
        wanted = self.inputs if end is None else self._nodes[last].bottoms
        return {name: self._blob(name).diff for name in dict.fromkeys([*wanted, *(diffs or ())])}

    def backward_range(self, first: int, last: int, keep: bool = True) -> None:
        """Run backward over the layers numbered first down to last, both included.

        A blob's diff is the sum over its readers, or what stands in it where no reader
        took part. With `keep`, the same forward can be followed by another backward.
        """
        self.module.flush()  # gradients are added to what stands in the diffs
        arrived: dict[int, Tensor] = {}
        with self._in_place():
            for i in range(first, last - 1, -1):
                node = self._nodes[i]
                if not node.need_backward or node.type == 'Input':
                    continue
                if i not in self._tape:
                    raise CaffeError(f'{node.name}: backward without a forward before it')
                step = self._tape[i] if keep else self._tape.pop(i)
                self._step_back(node, step, arrived, keep)
                if self.debug_info:
                    debug.backward(self, node)
        if self.debug_info and last == 0 and first == len(self._nodes) - 1:
            debug.all_params(self)

    def _step_back(self, node: Node, step: _Step, arrived: dict[int, Tensor], keep: bool) -> None:
        edges, grads = [], []
        for value, name, edge in zip(node.writes, node.tops, step.edges):
            diff = arrived.pop(value, None)
            if diff is None:
                diff = self.blobs[name].diff_tensor
            if edge is not None and diff is not None:
                edges.append(edge)
                grads.append(diff)
        bottoms = [leaf for leaf in step.bottoms if leaf.requires_grad]
        params = [p for p in node.op.blobs() if p.requires_grad]
        with node.named_in_errors():
            found = (
                torch.autograd.grad(
                    edges, bottoms + params, grads, retain_graph=keep, allow_unused=True
                )
                if edges
                else ()
            )
        found = list(found) or [None] * (len(bottoms) + len(params))
        for leaf, value, name in zip(step.bottoms, node.reads, node.bottoms):
            if leaf.requires_grad:
                diff = found.pop(0)
                diff = torch.zeros_like(leaf) if diff is None else diff
                arrived[value] = arrived[value] + diff if value in arrived else diff
                self.blobs[name].diff_tensor = arrived[value]
        for parameter, diff in zip(params, found):
            if diff is not None and parameter.grad is not None:
                parameter.grad.add_(diff)
            elif diff is not None:
                parameter.grad = (
                    diff.clone() if any(diff.data_ptr() == g.data_ptr() for g in grads) else diff
                )

    def _seed_losses(self) -> None:
        """Put each loss's weight into its diff, unless somebody wrote there."""
        for node in self._nodes:
            for name, weight in zip(node.tops, node.loss_weights):
                if weight and self.blobs[name].diff_tensor is None:
                    blob = self.blobs[name]
                    blob.diff_tensor = torch.full(blob.shape, weight, device=self._device)

    def clear_param_diffs(self) -> None:
        """Set the diff of every parameter to zero."""
        for blob in self._param_blobs:
            blob.clear_diff()

    def params_written(self) -> None:
        """Say that the parameters were written on the device: host arrays are void."""
        for blob in self._param_blobs:
            blob.written()

    def loss(self) -> Tensor:
        """The sum of the losses, each by its weight, after a forward: a scalar tensor."""
        terms = [
            self.blobs[name].tensor.sum() * weight
            for node in self._nodes
            for name, weight in zip(node.tops, node.loss_weights)
            if weight
        ]
        return sum(terms) if terms else torch.zeros((), device=self._device)

    # Shapes and weights.

    def reshape(self) -> None:
        """Give every blob the shape that follows from those of the inputs."""
        given = {
            top: self.blobs[top].shape
            for node in self._nodes
            if node.op.param.type == 'Input'
            for top in node.tops
        }
        for name, shape in self.module.infer_shapes(given).items():
            if self.blobs[name].shape != shape:
                self.blobs[name].reshape(*shape)
        self._seed_losses()

    def copy_from(self, weights: str | os.PathLike) -> None:
        """Copy parameters by layer name from a weight file; nothing on error.

        Layers that only the net has are left as they are, those that only the file has
        are logged. Shapes must agree, but for the 1s with which old files pad shapes to
        4 axes.
        """
        planned = []
        for layer in caffemodel.read(weights):
            if layer.name not in self.layer_dict:
                LOG.info('Ignoring source layer %s', layer.name)
                continue
            target = self.params.get(layer.name, [])
            if len(layer.blobs) != len(target):
                raise CaffeError(
                    f'{weights}: {layer.name}: expected {len(target)} blobs, '
                    f'found {len(layer.blobs)}'
                )
            for i, (stored, blob) in enumerate(zip(layer.blobs, target)):
                if not _same_shape(stored.shape, blob.shape):
                    hint = (
                        (
                            '; the counts agree: run surgery.transplant from a net of the '
                            "file's shapes"
                        )
                        if stored.count == blob.count
                        else ''
                    )
                    raise CaffeError(
                        f'{weights}: {layer.name}: blob {i}: expected {blob.shape}, '
                        f'found {stored.shape}{hint}'
                    )
                planned.append((stored, blob))
        for stored, blob in planned:
            blob.load(stored)

    def save(
        self, path: str | os.PathLike, diffs: Mapping[str, list[np.ndarray]] | None = None
    ) -> None:
        """Write net and parameters: .caffemodel, or HDF5 where the suffix is .h5.

        `diffs`, by layer as `params`, are stored beside the values.
        Raises CaffeError if two layers with parameters share a name.
        """
        owners = [name for name, layer in zip(self._layer_names, self.layers) if layer.blobs]
        twice = [name for name in self.params if owners.count(name) > 1]
        if twice:
            raise CaffeError(
                f'{path}: not written: two layers with parameters are named '
                f'"{twice[0]}", and weights are found by name'
            )
        write = caffemodel.write_hdf5 if os.fspath(path).endswith('.h5') else caffemodel.write
        write(
            path,
            self.module.param,
            {name: [blob.data for blob in blobs] for name, blobs in self.params.items()},
            diffs,
        )

    def share_with(self, net: Net) -> None:
        """Use the memory of `net`'s parameters for layers of the same name."""
        for name, own in self.params.items():
            for i, (blob, other) in enumerate(zip(own, net.params.get(name, ()))):
                if blob.shape != other.shape:
                    raise CaffeError(
                        f'share_with: {name}: blob {i}: expected {blob.shape}, found {other.shape}'
                    )
        for name, own in self.params.items():
            for blob, other in zip(own, net.params.get(name, ())):
                blob.share(other)

    # Helpers.

    def _blob(self, name: str) -> Blob:
        if name not in self.blobs:
            raise CaffeError(f'no blob "{name}"; there are {", ".join(self.blobs)}')
        return self.blobs[name]

    def _range(self, layer: str | None, default: int) -> int:
        if layer is None:
            return default
        if layer not in self.layer_dict:
            raise CaffeError(f'no layer "{layer}"; there are {", ".join(self._layer_names)}')
        return self._layer_names.index(layer)

    def follow_device(self) -> None:
        """Move to where caffe_port.mode points, and send what was written on the host."""
        device = mode.device()
        if (
            any(blob.parameter.device != device for blob in self._param_blobs[:1])
            or device != self._device
        ):
            self.module.to(device)
            for blob in self.blobs.values():
                blob.to(device)
            self._device = device
            self._tape.clear()
        self.module.flush()


def _same_shape(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Equal, or equal after the 1s with which old files pad shapes to 4 axes."""
    if len(stored) == 4 and len(shape) < 4:
        shape = (1,) * (4 - len(shape)) + shape
    return stored == shape
