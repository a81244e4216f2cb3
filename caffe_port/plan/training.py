"""A Net's forward and backward by stretches: layers in a row whose blobs nobody looks at.

The blobs inside a stretch have their shapes at once. Their values are made whole when somebody
asks for them, their diffs are computed then, layer by layer: from the values of the last
forward and the diff that its last backward met, while the weights are still the same. A blob
that was asked for once is whole from the next forward on: the stretch ends with it.
They are made outside inference mode, whoever asks: PyTorch takes no gradients of tensors of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from caffe_port import tape
from caffe_port.blob import Blob
from caffe_port.building import Node
from caffe_port.errors import CaffeError
from caffe_port.ops.base import as_tuple
from caffe_port.plan import stretches
from caffe_port.plan.steps import Room
from caffe_port.plan.stretches import Made, Stretch
from caffe_port.plan.switch import is_recomputing


class Run:
    """A forward of a stretch; the trace for its backward is used once unless kept."""

    def __init__(self, stretch: Stretch, bottom: Tensor):
        self.stretch = stretch
        self.bottom = bottom.clone(memory_format=torch.channels_last)
        self.made: list[Made] = []
        # The memory of blobs as they were then, to which users may have written since.
        self.memory: dict[str, Tensor] = {stretch.bottom: bottom}
        self.by_themselves: set[int] = set()  # layers that have run one by one since
        self.trace: tape.Trace | None = None
        self.diff: Tensor | None = None  # of the top, in the last backward

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'trace': None}  # PyTorch's graphs cannot be copied

    @property
    def top(self) -> Tensor:
        return self.memory[self.stretch.top]

    def is_seen(self) -> bool:
        """Return whether blobs inside have been made whole."""
        return any(name in self.memory for name in self.stretch.inner)

    @torch.inference_mode(False)
    def made_whole(self, name: str) -> Tensor:
        """Return the values that a blob inside had."""
        (made,) = (made for made in self.made if made.name == name)
        return made.whole()

    def traces(self) -> Iterator[tuple[int, tape.Trace]]:
        """Yield the traces that the layers would have, had they run one by one, by their numbers.

        As there, a layer reads what users have written to its bottom's memory since, but a
        maximum was picked before.
        """
        for number, node in zip(self.stretch.numbers, self.stretch.nodes):
            if number in self.by_themselves or not node.need_backward:
                continue
            (name,) = node.bottoms
            is_kept = name in self.memory and node.type != 'Pooling'
            bottom = self.memory[name] if is_kept else self.made_whole(name)
            yield number, tape.record(node, [bottom], node.run)[1]


class PlannedTraining:
    """Stretches over the blobs of one Net."""

    def __init__(self, nodes: Sequence[Node], blobs: Mapping[str, Blob]):
        self._nodes, self._blobs = nodes, blobs
        self._asked: set[str] = set()
        self._found_for: tuple[set[str], bool] | None = None
        self._stretches: dict[int, Stretch] = {}  # by their first layer's number
        self._runs: dict[int, Run] = {}  # by their last layer's number
        # By their first layer's number: the memory for blobs inside, and the run that is there.
        self._rooms: dict[int, list[Room]] = {}
        self._last: dict[int, Run] = {}

    def __getstate__(self) -> dict:
        # A copy finds its stretches, and takes memory for them, anew.
        return {**self.__dict__, '_stretches': {}, '_rooms': {}, '_last': {}, '_found_for': None}

    def ask_for(self, names: set[str]) -> None:
        """Keep these blobs and their diffs whole from now on."""
        self._asked |= names

    def start(self) -> None:
        """Forget the last forward, and let stretches end with the blobs that are asked for."""
        for run in self._runs.values():
            run.trace = None
            del run.memory[run.stretch.bottom]
        self._runs = {}
        shown = {name for name in self._blobs if self._is_shown(name)}
        found_for = self._asked | shown, is_recomputing()
        if self._found_for != found_for:
            self._found_for = found_for
            found = stretches.find(self._nodes, self._asked | shown)
            self._stretches = {stretch.numbers[0]: stretch for stretch in found}
            self._rooms = {stretch.numbers[0]: stretch.rooms() for stretch in found}
            self._last = {}

    def _is_shown(self, name: str) -> bool:
        return self._blobs[name].is_shown() or self._blobs[name].is_diff_shown()

    def _is_unseen(self, stretch: Stretch) -> bool:
        """Return whether nobody asks for blobs inside a stretch or holds their arrays."""
        return not any(name in self._asked or self._is_shown(name) for name in stretch.inner)

    def forward(self, first: int, end: int) -> Sequence[int]:
        """Run the stretch that begins with layer `first`; return the numbers of its layers.

        There are none unless a stretch begins there, ends before layer `end` and fits its bottom.
        """
        stretch = self._stretches.get(first)
        if stretch is None or stretch.numbers[-1] >= end or not stretch.need_backward:
            return ()
        if not self._is_unseen(stretch):
            return ()
        bottom = self._blobs[stretch.bottom].tensor
        if not stretch.may_take(bottom):
            return ()
        run, rooms = Run(stretch, bottom), self._rooms[first]
        if first in self._last:
            self._last[first].made.clear()  # it is overwritten now
        self._last[first] = run
        if stretch.nodes[0].overwritten[0] and self._blobs[stretch.bottom].is_shown():
            run.memory[stretch.bottom] = run.bottom
        (top,), run.trace = tape.record(
            stretch, [run.bottom], lambda leaf: (stretch.compute(leaf, run.made, rooms),)
        )
        self._blobs[stretch.top].tensor = run.memory[stretch.top] = top.detach()
        for name, shape in stretch.inner_shapes(tuple(bottom.shape)).items():
            self._blobs[name].postpone(shape, partial(self._show, run, name))
        self._runs[stretch.numbers[-1]] = run
        return stretch.numbers

    def forget(self, number: int) -> None:
        """Take no gradient through a stretch of whose layers one runs by itself."""
        for run in self._runs.values():
            if number in run.stretch.numbers:
                run.by_themselves.add(number)

    def traces(self, number: int) -> dict[int, tape.Trace]:
        """Return the traces of the layers of a stretch, of which layer `number` is one.

        There are none unless the backward of the stretch is yet to come; it will not come then.
        """
        for run in self._runs.values():
            if number in run.stretch.numbers and run.trace is not None:
                run.trace = None
                self._make(run, next(iter(run.stretch.inner), ''))
                return dict(run.traces())
        return {}

    def _make(self, run: Run, name: str) -> None:
        """Have the values of the blobs inside a stretch, of which one has this name."""
        if run.stretch.inner and not run.made:
            self._compute_again(run, f'blob {name} was', 'forward', f"forward(blobs=['{name}'])")

    def _show(self, run: Run, name: str) -> None:
        """Make the values of a blob inside a stretch whole."""
        self._asked.add(name)
        self._make(run, name)
        self._blobs[name].tensor = run.memory[name] = run.made_whole(name)

    def ready(self, last: int, first: int) -> Run | None:
        """Return the run of the stretch that ends with layer `last`, if its backward may run.

        It may not where layers from `first` on are asked for, or where somebody has seen the
        values of blobs inside or asks for their diffs, or has written to the bottom's memory.
        """
        run = self._runs.get(last)
        if run is None or run.trace is None or first > run.stretch.numbers[0]:
            return None
        stretch = run.stretch
        unchanged = (
            self._is_unseen(stretch)
            and not run.is_seen()
            and not run.by_themselves
            and stretch.is_untouched()
            and tape.fits(stretch, run.trace, self._blobs)
            and _is_same(run.memory[stretch.bottom], run.bottom)
        )
        return run if unchanged else None

    def finish(self, run: Run, diff: Tensor, keep: bool) -> None:
        """Note that the backward of a run has taken place, from the diff of its top."""
        run.diff = diff.clone()  # the blob's may be written to
        for node in run.stretch.nodes:
            node.op.free_spares()
        if not keep:
            run.trace = None
        if run.stretch.steps[-1].relu is not None:  # in place: the blob's diff is the one before it
            self._blobs[run.stretch.top].diff_tensor = diff * (run.top > 0)
        for name in run.stretch.inner_with_diffs:
            self._blobs[name].postpone_diff(partial(self._show_diff, run, name))

    @torch.inference_mode(False)
    def _compute_again(self, run: Run, what: str, by: str, call: str) -> None:
        """Compute the blobs of a run once more.

        Raises CaffeError if the top is not what it was: the weights have changed.
        """
        made: list[Made] = []
        with torch.no_grad():
            top = run.stretch.compute(run.bottom, made)
        if not _is_same(top, run.top):
            raise CaffeError(
                f'{what} not kept by the last {by}, and the weights or blobs have changed since: '
                f'ask for it by {call}, look at it again after the next {by}, or '
                'call set_plan(False)'
            )
        run.made = made

    @torch.inference_mode(False)
    def _show_diff(self, run: Run, asked: str) -> None:
        """Compute the diffs of the blobs inside a stretch, layer by layer.

        ReLUs and maxima let them pass where they did in the stretch: they read its values.
        """
        stretch = run.stretch
        self._asked.add(asked)
        what = f'the diff of blob {asked} was'
        self._compute_again(run, what, 'backward', f"backward(diffs=['{asked}'])")
        diff, found = run.diff, {}
        for node in reversed(stretch.nodes):
            (name,) = node.bottoms
            if name == stretch.bottom or not node.propagate[0]:
                break
            x = run.top if name == stretch.top else run.made_whole(name)
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (top,) = as_tuple(node.op(x))
            (diff,) = torch.autograd.grad(top, x, diff)
            found[name] = diff
        for name, diff in found.items():
            if name in stretch.inner and self._blobs[name].is_diff_postponed:
                self._blobs[name].diff_tensor = diff


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two blobs are the same to the bit, NaN included."""
    bits = (each.contiguous().view(torch.int32) for each in (one, other))
    return torch.equal(*bits)
