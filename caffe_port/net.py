"""Net: pycaffe's face over one torch.nn.Module."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from caffe_port import batches, debug, mode, plan, prototxt, tape
from caffe_port.aliases import CALLBACKS, Aliases, notify
from caffe_port.blob import Blob
from caffe_port.building import Node
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from caffe_port.net_weights import LayerFace, NetWeights
from caffe_port.ops.data import MemoryData
from caffe_port.proto.caffe_pb2 import NetParameter, NetState, Phase


class Net(NetWeights, Aliases):
    """A network over blobs, as pycaffe's Net.

    Net(file, phase), Net(file, weights, phase) or Net(file, phase, weights=weights), where
    the first is a prototxt file or a NetParameter. It computes on the device that
    caffe_port.mode has at the time of the call.

    blobs, params and layer_dict are dicts by name, in the net's order; params has lists of
    blobs, weight first. Unlike Caffe's, blobs has no copies made by Split layers.
    While debug_info is set, forward and backward log every layer's magnitudes.

    Raises CaffeError, naming file and layer, if one of them is not valid.
    """

    def __init__(
        self,
        network_file: str | os.PathLike | NetParameter,
        phase: int | str | os.PathLike | None = None,
        level: int = 0,
        stages: Sequence[str] | None = None,
        weights: str | os.PathLike | None = None,
    ):
        if isinstance(phase, (str, os.PathLike)):  # Net(proto, weights, phase)
            weights, phase, level = phase, level, 0
        if phase not in (mode.TRAIN, mode.TEST):
            raise CaffeError(f'Net: phase is {phase!r}, must be caffe.TRAIN or caffe.TEST')
        if isinstance(network_file, NetParameter):
            param, where = prototxt.upgrade_net(network_file, 'NetParameter'), None
        else:
            param, where = prototxt.read_net(network_file), os.fspath(network_file)
        state = NetState()
        state.CopyFrom(param.state)
        state.phase, state.level = cast(Phase, phase), level or state.level
        state.stage.extend(stages or ())
        try:
            self.module = NetModule(param, state)
        except CaffeError as error:
            raise CaffeError(f'{where}: {error}' if where else str(error)) from error
        self.debug_info = False
        self._reset_callbacks()
        self._show_module()
        if weights is not None:
            self.copy_from(weights)

    def _show_module(self) -> None:
        """Make the blobs, layers, params and names that pycaffe shows of the module."""
        module, device = self.module, mode.device()
        self._nodes: list[Node] = module.nodes
        self._device = device
        self._tape: dict[int, tape.Trace] = {}
        self.blobs = OrderedDict(
            (name, Blob(shape, device)) for name, shape in module.shapes.items()
        )
        for node in self._nodes:
            self.blobs.update(
                (name, blob) for name, blob in zip(node.tops, node.op.kept_tops) if blob is not None
            )
        self.layers = [LayerFace(node.type, node.op.param_blobs) for node in self._nodes]
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
        self._training = plan.PlannedTraining(self._nodes, self.blobs)
        self._seed_losses()

    def __getstate__(self) -> dict:
        state = {**self.__dict__, '_tape': {}}  # PyTorch's graphs cannot be copied
        return {name: value for name, value in state.items() if name not in CALLBACKS}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset_callbacks()

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
        first, last = self._number(start, 0), self._number(end, len(self._nodes) - 1)
        blobs = list(blobs or ())
        self._planned.asked.update(name for name in blobs if name in self.blobs)
        self.forward_range(first, last)
        wanted = self.outputs if end is None else self._nodes[last].tops
        return {name: self._blob(name).data for name in dict.fromkeys([*wanted, *blobs])}

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Feed the net's first layer, a MemoryData layer, from arrays.

        Raises CaffeError if it is of another type, or the arrays do not fit it.
        """
        node = self._nodes[0]
        if not isinstance(node.op, MemoryData):
            raise CaffeError(
                f'set_input_arrays: the first layer must be MemoryData, {node.name} is {node.type}'
            )
        with node.named_in_errors():
            node.op.set_arrays(data, labels)

    def _fill(self, name: str, values: np.ndarray) -> None:
        blob = self.blobs[name]
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError) as error:
            raise CaffeError(
                f'forward: input {name} is not an array of numbers: {error}'
            ) from error
        try:
            if array.shape[:1] != blob.shape[:1]:
                raise ValueError('another first dimension')
            blob.data[...] = array
        except ValueError as error:
            raise CaffeError(
                f'forward: input {name} has shape {array.shape}, the blob '
                f'{blob.shape}; reshape the blob first'
            ) from error

    def forward_range(self, first: int = 0, last: int | None = None) -> None:
        """Run the layers from number `first` up to `last`, both included (default: all).

        This is `forward` without arrays in and out: it reads and sets the blobs on the
        device, and keeps what backward needs unless PyTorch's gradients are off.
        """
        self.follow_device()
        if first == 0:
            self._tape.clear()
            self._training.start()
        recording, end = torch.is_grad_enabled(), len(self._nodes) if last is None else last + 1
        with torch.no_grad():
            taped = recording and any(node.need_backward for node in self._nodes)
            watched = self.debug_info or self._before_forward or self._after_forward
            done: set[int] = set()
            if (first, end) == (0, len(self._nodes)) and not (taped or watched):
                done.update(self._planned.run(lambda i: self._run(i, self._nodes[i], False)))
            for i in range(first, end):
                node = self._nodes[i]
                notify(self._before_forward, i)
                if taped and not watched and i not in done:
                    taken = self._training.forward(i, end)
                    done.update(taken)
                    for number in taken:
                        self._tape.pop(number, None)  # of an earlier forward
                if i not in done and node.type != 'Input':
                    self._run(i, node, recording)
                notify(self._after_forward, i)
                if self.debug_info:
                    debug.log_forward(node, self.blobs)
        self._seed_losses()

    def _run(self, i: int, node: Node, recording: bool) -> None:
        self._tape.pop(i, None)
        self._training.forget(i)
        bottoms = [self.blobs[name].tensor for name in node.bottoms]
        if recording and node.need_backward:
            # Keep what an in-place layer, this or a later one, overwrites in the blob's memory.
            read = [
                bottom.clone() if lost and self.blobs[name].is_shown() else bottom
                for name, lost, bottom in zip(node.bottoms, node.overwritten, bottoms)
            ]
            tops, self._tape[i] = tape.record(node, read, node.run)
        else:
            tops = node.run(*bottoms)
        for name, top in zip(node.tops, tops):
            if name not in node.bottoms:
                start = top.data_ptr()
                if any(0 <= start - x.data_ptr() < x.nbytes for x in bottoms or node.op.blobs()):
                    top = top.clone()  # blobs do not share memory
            self.blobs[name].tensor = top.detach()

    forward_all = batches.forward_all
    forward_backward_all = batches.forward_backward_all

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
        to no loss are skipped unless the net has `force_backward: true`.
        Returns the diffs of the inputs (the bottoms of `end`, if given) and of `diffs`.
        """
        first = self._number(start, len(self._nodes) - 1)
        last = self._number(end, 0)
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
        self._training.ask_for(set(diffs or ()))
        self.backward_range(first, last)
        wanted = self.inputs if end is None else self._nodes[last].bottoms
        return {name: self._blob(name).diff for name in dict.fromkeys([*wanted, *(diffs or ())])}

    def backward_range(
        self,
        first: int | None = None,
        last: int = 0,
        keep: bool = True,
        learned: Callable[[Node], None] | None = None,
    ) -> None:
        """Run backward over the layers from number `first` down to `last` (default: all).

        This is `backward` without arrays in and out. A blob's diff becomes the sum over
        its readers; if no reader takes part, the diff that is there is used. A layer that
        was not run, or was run on other shapes, uses the current values of the blobs.
        With `keep`, another backward may follow without another forward. `learned` is called
        with each layer after its part, and may change those of its params that no other layer has,
        and their diffs; it is not called where somebody watches the layers.
        """
        self.follow_device()
        if self.debug_info or self._before_backward or self._after_backward:
            learned = None
        readers = Counter(id(p) for node in self._nodes for p in node.op.blobs())
        for blob in self.module.param_blobs():
            blob.settle_grad()
            blob.may_be_early = learned is not None and readers[id(blob.parameter)] == 1
        end = len(self._nodes) - 1
        first = end if first is None else first
        try:
            self._run_back(first, last, keep, learned)
        finally:
            for blob in self.module.param_blobs():
                blob.may_be_early = False
        if self.debug_info and (first, last) == (end, 0):
            debug.log_params([item.parameter for item in self.module.learnable])

    def _run_back(
        self, first: int, last: int, keep: bool, learned: Callable[[Node], None] | None
    ) -> None:
        watched = self.debug_info or self._before_backward or self._after_backward
        arrived: dict[int, Tensor] = {}
        done: set[int] = set()
        for i in range(first, last - 1, -1):
            node = self._nodes[i]
            run = None if watched else self._training.ready(i, last)
            if run is not None and run.trace is not None:
                (diff,) = self._step_back(run.stretch, run.trace, arrived, keep)
                self._training.finish(run, diff, keep)
                done.update(run.stretch.numbers)
                if learned is not None:
                    for each in run.stretch.nodes:
                        learned(each)
            if i in done:
                continue
            notify(self._before_backward, i)
            if node.need_backward and (node.bottoms or node.op.blob_names):
                if i not in self._tape:
                    self._tape.update(self._training.traces(i))
                step = self._tape.get(i) if keep else self._tape.pop(i, None)
                if step is None or not tape.fits(node, step, self.blobs):
                    step = tape.retrace(node, self.blobs)
                self._step_back(node, step, arrived, keep)
                if self.debug_info:
                    debug.log_backward(node, self.blobs)
            notify(self._after_backward, i)
            if learned is not None:
                learned(node)

    def _step_back(
        self, node: Node | plan.Stretch, step: tape.Trace, arrived: dict[int, Tensor], keep: bool
    ) -> list[Tensor]:
        """Set the diffs of bottoms and add to those of params; return those of the tops."""
        diffs = []
        for value, name in zip(node.writes, node.tops):
            diff = arrived.pop(value, None)
            if diff is None:
                diff = self.blobs[name].diff_tensor
            if diff is None:
                diff = torch.zeros(self.blobs[name].shape, device=self._device)
            diffs.append(diff)
        if isinstance(node, Node):
            node.op.free_spares()
        with node.named_in_errors():
            of_bottoms, of_params = tape.gradients(node, step, diffs, keep)
        for leaf, value, name, diff in zip(step.bottoms, node.reads, node.bottoms, of_bottoms):
            if leaf.requires_grad:
                diff = torch.zeros_like(leaf) if diff is None else diff
                arrived[value] = arrived[value] + diff if value in arrived else diff
                self.blobs[name].diff_tensor = arrived[value]
        for parameter, diff in zip(node.blobs(), of_params):
            if diff is not None and parameter.grad is not None:
                parameter.grad.add_(diff)
            elif diff is not None:
                parameter.grad = diff.contiguous()  # 16 bits have channels last
        return diffs

    def _seed_losses(self) -> None:
        """Set the diff of each loss to its weight, unless it has a diff."""
        for node in self._nodes:
            for name, weight in zip(node.tops, node.loss_weights):
                if weight and self.blobs[name].diff_tensor is None:
                    blob = self.blobs[name]
                    blob.diff_tensor = torch.full(blob.shape, weight, device=self._device)

    def clear_param_diffs(self) -> None:
        """Set the diff of every parameter to zero."""
        for blob in self.module.param_blobs():
            blob.clear_diff()

    def mark_params_stale(self) -> None:
        """Mark host copies of the parameters stale, after the device has written them."""
        for blob in self.module.param_blobs():
            blob.mark_stale()

    def free_plans(self) -> None:
        """Free the memory of what plans have derived from the params, after these have changed."""
        if self.module.planner is not None:
            self.module.planner.free()

    def loss(self) -> Tensor:
        """Return the weighted sum of the losses after a forward, a scalar tensor."""
        terms = [
            self.blobs[name].tensor.sum() * weight
            for node in self._nodes
            for name, weight in zip(node.tops, node.loss_weights)
            if weight
        ]
        return sum(terms, torch.zeros((), device=self._device))

    # Shapes.

    def reshape(self) -> None:
        """Infer all shapes from those of the inputs, and reshape the blobs."""
        given = {
            top: self.blobs[top].shape
            for node in self._nodes
            if node.type == 'Input'
            for top in node.tops
        }
        for name, shape in self.module.infer_shapes(given).items():
            if self.blobs[name].shape != shape:
                self.blobs[name].reshape(*shape)
        self._seed_losses()

    # Helpers.

    def _blob(self, name: str) -> Blob:
        if name not in self.blobs:
            raise CaffeError(f'no blob "{name}"; there are {", ".join(self.blobs)}')
        return self.blobs[name]

    def _number(self, layer: str | None, default: int) -> int:
        if layer is None:
            return default
        if layer not in self.layer_dict:
            raise CaffeError(f'no layer "{layer}"; there are {", ".join(self._layer_names)}')
        return self._layer_names.index(layer)

    def follow_device(self) -> None:
        """Move to the device of caffe_port.mode, and send it what was written on the host."""
        device = mode.device()
        param = next(self.module.param_blobs(), None)
        moved = param is not None and param.parameter.device != device
        if moved or device != self._device:
            for own in self.module.param_blobs():
                own.settle_grad()
            self.module.to(device)
            for blob in self.blobs.values():
                blob.to(device)
            self._device = device
            self._tape.clear()
            self._training.start()
        self.module.flush()
