"""Layers over sequences: LSTM, RNN and the cell LSTMUnit."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op, Shape

# What a step adds to a state, and its cont: N x 1.
_Step = tuple[Callable[[Tensor], Tensor], Tensor]


class _Cell(torch.autograd.Function):
    """c = cont sigmoid(f) c_prev + sigmoid(i) tanh(g) and h = sigmoid(o) tanh(c), where the
    last axis of `gates` holds i, f, o and g in this order.

    The gradient of f is Caffe's, which takes cont sigmoid(f) for a sigmoid: it is the true
    one where cont is 0 or 1.
    """

    @staticmethod
    def forward(ctx: Any, c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        size = c_prev.shape[-1]
        i, f, o = gates[..., : 3 * size].sigmoid().chunk(3, -1)
        f = (f * cont).where(cont != 0, 0)
        g = gates[..., 3 * size :].tanh()
        c = f * c_prev + i * g
        tanh_c = c.tanh()
        ctx.save_for_backward(c_prev, i, f, o, g, tanh_c)
        return c, o * tanh_c

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        c_prev, i, f, o, g, tanh_c = ctx.saved_tensors
        of_c, of_h = grads
        of_c = of_c + of_h * o * (1 - tanh_c * tanh_c)
        of_gates = torch.cat(
            [
                of_c * g * i * (1 - i),
                of_c * c_prev * f * (1 - f),
                of_h * tanh_c * o * (1 - o),
                of_c * i * (1 - g * g),
            ],
            -1,
        )
        return of_c * f, of_gates, None


class _Steps(torch.autograd.Function):
    """Pass on the inputs of all steps, to which the steps add weight times state.

    Compute the weight's gradient as one matrix product over all steps; `seen` holds each
    step's state.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, seen: list[Tensor]) -> Tensor:
        ctx.seen = seen
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], grads[0].flatten(0, 1).t() @ torch.cat(ctx.seen), None


class LSTMUnit(Op):
    """Compute one step of an LSTM, as lstm_unit_layer.cpp.

    Bottoms: c_prev 1 x N x D, gates 1 x N x 4 D (i, f, o, g), cont 1 x N. Tops: c, h.
    """

    bottoms, tops = (3, 3), (2, 2)
    forceable = (True, True, False)

    def forward(self, c_prev: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        self.require(
            c_prev.dim() == 3 and c_prev.shape[0] == 1,
            f'c_prev {tuple(c_prev.shape)} must be 1 x N x D',
        )
        _, count, size = c_prev.shape
        self.require(
            gates.shape == (1, count, 4 * size) and cont.shape == (1, count),
            f'gates {tuple(gates.shape)} and cont {tuple(cont.shape)}, expected '
            f'{(1, count, 4 * size)} and {(1, count)}',
        )
        return _Cell.apply(c_prev, gates, cont.detach()[..., None])


class _Recurrent(Op, abstract=True):
    """Base of LSTM and RNN, as recurrent_layer.cpp.

    Bottoms: x (T x N x ...), cont (T x N: 0 where a sequence begins, else 1), on request a
    static input (N x ...) that is added at each step, and with expose_hidden the states
    before the first step (1 x N x D each). Tops: T x N x D, and with expose_hidden the states
    after the last step. As in Caffe no gradient passes to or from those states.

    Without expose_hidden the states go on from one forward to the next, where cont[0] is
    not 0; they begin at 0, as they do again for a larger N. A program exported by PyTorch
    begins each call at 0.
    """

    states: tuple[str, ...]
    forceable = (True, False, True)

    def _read_settings(self, x: Shape, others: tuple[Shape, ...]) -> list[int]:
        """Read the parameter, and return how many values x and the static input have."""
        p = self.param.recurrent_param
        exposed = len(self.states) if p.expose_hidden else 0
        self.size, self.exposed = p.num_output, exposed > 0
        self.require(self.size > 0, 'num_output must be positive')
        self.require(
            len(others) - exposed in (0, 1) and self.top_count == 1 + exposed,
            f'{2 + len(others)} bottoms and {self.top_count} tops, expected {2 + exposed} bottoms, '
            f'or one more with a static input, and {1 + exposed} tops',
        )
        self.has_static = len(others) > exposed
        self.require(
            len(x) >= 3 and x[0] > 0, f'x {x} must have 3 axes or more: steps, streams, values'
        )
        self.hidden: list[Tensor] = []
        return [math.prod(x[2:]), *(math.prod(shape[1:]) for shape in others[: self.has_static])]

    def _add_blobs(self, inputs: list[int], outputs: int, *others: tuple[int, ...]) -> None:
        """Add the blobs that multiply x and the static input, W, b, W_static, and others."""
        p = self.param.recurrent_param
        shapes = [(outputs, inputs[0]), (outputs,), *((outputs, n) for n in inputs[1:]), *others]
        for i, shape in enumerate(shapes):
            filler = p.weight_filler if len(shape) == 2 else p.bias_filler
            self.add_blob(('weight', 'bias')[i] if i < 2 else str(i), shape, filler)

    def _blobs(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.blob_names]

    def _check_cont(self, x: Tensor, cont: Tensor) -> None:
        self.require(
            cont.shape == x.shape[:2], f'cont {tuple(cont.shape)}, expected {tuple(x.shape[:2])}'
        )

    def _inputs(self, x: Tensor, cont: Tensor, others: tuple[Tensor, ...]) -> Tensor:
        """Return what x and the static input add at every step, in one matrix product."""
        self._check_cont(x, cont)
        weight, bias, static, *_ = self._blobs()
        total = F.linear(self._rows(x, 1, x, weight), weight, bias)
        if self.has_static:
            total = total + F.linear(self._rows(others[0], 0, x, static), static)
        return total

    def _rows(self, bottom: Tensor, axis: int, x: Tensor, weight: Tensor) -> Tensor:
        """Flatten what follows the streams, which `axis` counts, to the weight's inputs."""
        self.require(
            bottom.dim() > axis
            and bottom.shape[axis] == x.shape[1]
            and bottom.shape[axis + 1 :].numel() == weight.shape[1],
            f'bottom {tuple(bottom.shape)} must have {x.shape[1]} streams of {weight.shape[1]} '
            f'values',
        )
        return bottom.reshape(*bottom.shape[: axis + 1], weight.shape[1])

    def _steps(self, inputs: Tensor, weight: Tensor, cont: Tensor) -> Iterator[_Step]:
        """Yield for each step what turns the state before it into the cell's input."""
        seen: list[Tensor] = []
        fixed = weight.detach().t()

        def step(values: Tensor, going_on: Tensor, state: Tensor) -> Tensor:
            state = state * going_on
            seen.append(state.detach())
            return torch.addmm(values, state, fixed)

        every = _Steps.apply(inputs, weight, seen).unbind()
        for values, going_on in zip(every, cont.detach()[..., None].unbind()):
            yield partial(step, values, going_on), going_on

    def _fits_cudnn(self, x: Tensor, cont: Tensor) -> bool:
        """Say whether the cell is cuDNN's: on a GPU, all sequences going on after step 0.

        It waits for the device, which has cont.
        """
        if not (x.is_cuda and self._carries(x)):
            return False
        begins = cont[:1] == 0
        return bool((cont[1:] == 1).all() & (begins | (cont[:1] == 1)).all())

    def _join_static(
        self, x: Tensor, others: tuple[Tensor, ...], inputs: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return x and the weight for it; a static input counts as more values of x."""
        weight, _, *static = inputs
        values = self._rows(x, 1, x, weight)
        if static:
            rows = self._rows(others[0], 0, x, static[0])
            values = torch.cat([values, rows.expand(len(x), *rows.shape)], -1)
            weight = torch.cat([weight, static[0]], 1)
        return values, weight

    def _begin(self, cont: Tensor, state: Tensor) -> Tensor:
        """Return a state as PyTorch takes it, 0 where a sequence begins: 1 x N x D."""
        return state.where(cont.detach()[0, :, None] != 0, 0)[None]

    def _first_states(self, x: Tensor, given: tuple[Tensor, ...]) -> list[Tensor]:
        shape = (x.shape[1], self.size)
        if self.exposed:
            for name, state in zip(self.states, given):
                self.require(
                    state.shape == (1, *shape),
                    f'{name} {tuple(state.shape)}, expected {(1, *shape)}',
                )
            return [state.detach()[0] for state in given]
        if self._carries(x) and self.hidden and len(self.hidden[0]) >= shape[0]:
            return [state[: shape[0]].to(x.device) for state in self.hidden]
        return [x.new_zeros(shape) for _ in self.states]

    @staticmethod
    def _carries(x: Tensor) -> bool:
        """Say whether this forward hands its states on to the next."""
        return not (x.is_meta or torch.compiler.is_compiling())

    def _tops(self, top: Tensor, x: Tensor, last: list[Tensor]) -> tuple[Tensor, ...]:
        last = [state.detach() for state in last]
        if self.exposed:
            return top, *(state[None].clone() for state in last)
        if self._carries(x):
            self.hidden = last
        return (top,)

    def state(self) -> dict:
        """Return the states that the next forward begins with, as JSON can hold them."""
        arrays = [np.ascontiguousarray(state.cpu().numpy()) for state in self.hidden]
        return {
            'streams': len(arrays[0]) if arrays else 0,
            'hidden': [base64.b64encode(array.tobytes()).decode() for array in arrays],
        }

    def set_state(self, state: dict) -> None:
        """Go on from a state(); raises CaffeError, and changes nothing, if it does not fit."""
        try:
            arrays = [
                np.frombuffer(base64.b64decode(text, validate=True), np.float32).reshape(
                    state['streams'], self.size
                )
                for text in state['hidden']
            ]
        except (LookupError, TypeError, ValueError, binascii.Error) as error:
            raise CaffeError(
                f'state of {self.param.name}: not hidden states of size {self.size}: {error}'
            ) from error
        if len(arrays) not in (0, len(self.states)):
            raise CaffeError(
                f'state of {self.param.name}: {len(arrays)} hidden states, expected '
                f'{len(self.states)}'
            )
        self.hidden = [torch.from_numpy(array.copy()).to(self.device) for array in arrays]


class LSTM(_Recurrent):
    """Run a long short-term memory over sequences, as lstm_layer.cpp.

    With D = num_output the blobs are W_xc (4 D x values of x), b_c (4 D), W_xc_static if there
    is a static input, and W_hc (4 D x D); gates are in the order i, f, o, g. States: h, c.

    On a GPU cuDNN computes it where no sequence begins after the first step.
    """

    bottoms, tops = (2, 5), (1, 3)
    states = ('h_0', 'c_0')

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        inputs, size = self._read_settings(x, others), self.size
        self._add_blobs(inputs, 4 * size, (4 * size, size))
        # PyTorch's cell, without parameters of its own; in a tuple it is no submodule.
        self._cell = (torch.nn.LSTM(sum(inputs), size, device='meta'),)

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        h, c = self._first_states(x, others[self.has_static :])
        if self._fits_cudnn(x, cont):
            top, h, c = self._run_cudnn(x, cont, others, h, c)
            return self._tops(top, x, [h, c])
        inputs = self._inputs(x, cont, others)
        outputs = []
        for gates_after, going_on in self._steps(inputs, self._blobs()[-1], cont):
            c, h = _Cell.apply(c, gates_after(h), going_on)
            outputs.append(h)
        return self._tops(torch.stack(outputs), x, [h, c])

    def _run_cudnn(
        self, x: Tensor, cont: Tensor, others: tuple[Tensor, ...], h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the top and the last h and c from PyTorch's LSTM, whose gates are i, f, g, o."""

        def in_its_order(gates: Tensor) -> Tensor:
            i, f, o, g = gates.chunk(4)
            return torch.cat([i, f, g, o])

        self._check_cont(x, cont)
        *inputs, recurrent = self._blobs()
        values, weight = self._join_static(x, others, inputs)
        first = self._begin(cont, h), self._begin(cont, c)
        parameters = _name_parameters(
            in_its_order(weight), in_its_order(recurrent), in_its_order(inputs[1])
        )
        top, (h, c) = torch.func.functional_call(self._cell[0], parameters, (values, first))
        return top, h[0], c[0]


class RNN(_Recurrent):
    """Run a simple recurrent net over sequences, as rnn_layer.cpp.

    h = tanh(W_hh h + W_xh x + b_h) and the top o = tanh(W_ho h + b_o). The blobs are W_xh,
    b_h, W_xh_static if there is a static input, W_hh, W_ho and b_o. State: h.

    On a GPU cuDNN computes h where no sequence begins after the first step.
    """

    bottoms, tops = (2, 4), (1, 2)
    states = ('h_0',)

    def setup(self, x: Shape, cont: Shape, *others: Shape) -> None:
        inputs, size = self._read_settings(x, others), self.size
        self._add_blobs(inputs, size, (size, size), (size, size), (size,))
        # As LSTM's.
        self._cell = (torch.nn.RNN(sum(inputs), size, device='meta'),)

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        (h,) = self._first_states(x, others[self.has_static :])
        *_, weight, of_top, bias = self._blobs()
        if self._fits_cudnn(x, cont):
            states, h = self._run_cudnn(x, cont, others, h)
        else:
            sums, hidden = self._inputs(x, cont, others), []
            for sum_after, _ in self._steps(sums, weight, cont):
                h = sum_after(h).tanh()
                hidden.append(h)
            states = torch.stack(hidden)
        return self._tops(F.linear(states, of_top, bias).tanh(), x, [h])

    def _run_cudnn(
        self, x: Tensor, cont: Tensor, others: tuple[Tensor, ...], h: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return h of all steps, and the last, from PyTorch's RNN."""
        self._check_cont(x, cont)
        *inputs, weight, _, _ = self._blobs()
        values, joined = self._join_static(x, others, inputs)
        parameters = _name_parameters(joined, weight, inputs[1])
        states, last = torch.func.functional_call(
            self._cell[0], parameters, (values, self._begin(cont, h))
        )
        return states, last[0]


def _name_parameters(weight: Tensor, recurrent: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Name the parameters of a cell of PyTorch's, which has a second bias."""
    return {
        'weight_ih_l0': weight,
        'weight_hh_l0': recurrent,
        'bias_ih_l0': bias,
        'bias_hh_l0': torch.zeros_like(bias),
    }
