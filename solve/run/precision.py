"""Compute a trained net in another precision, and say how far its scores are from fp32's."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from caffe_port import Net, mode

# float16 would need the loss scaled, or small gradients vanish.
FOR_TRAINING = mode.FP32, mode.TF32, mode.BF16
# Products of matrices of this size show whether the CPU has instructions for a type.
_SIDE, _TRIES, _SLOW = 256, 5, 2


def add_option(parser: argparse.ArgumentParser, precisions: Sequence[str]) -> None:
    """Add the option --precision, with fp32 as its default."""
    names = ', '.join(precisions).replace(mode.TF32, 'tf32 (GPU only)')
    parser.add_argument(
        '--precision',
        choices=precisions,
        default=mode.FP32,
        metavar='P',
        help=names.replace(mode.FP32, 'fp32 (default)'),
    )


def check(precision: str) -> None:
    """Raise CaffeError where the device lacks a precision; say so where it is slow."""
    with mode.computing_in(precision):
        dtype = mode.low_dtype()
    if dtype and mode.device().type == 'cpu' and (times := slowdown(dtype)) > _SLOW:
        print(
            f'Note: {precision} is slower than fp32 here: this CPU multiplies such matrices '
            f'{times:.0f} times as slowly',
            file=sys.stderr,
        )


def set_for_training(precision: str) -> None:
    """Train in a precision from now on, and say so if it is one of 16 bits.

    Raises CaffeError where the device lacks it.
    """
    check(precision)
    mode.set_precision(precision)
    if mode.low_dtype():
        print(
            f'Precision: {precision} in convolutions and inner products; the loss, scores and '
            'updates of float32 weights in fp32',
            flush=True,
        )


def slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 the CPU takes for a product of matrices."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], dtype: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads wait for each other
    try:
        for _ in range(_TRIES):
            for kind, spent in seconds.items():
                matrix = torch.ones(_SIDE, _SIDE, dtype=kind)
                start = time.perf_counter()
                matrix @ matrix
                spent.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    # The least is that of a moment without other work.
    return min(seconds[dtype]) / min(seconds[torch.float32])


def change(net: Net, precision: str, run: Callable[[], Mapping[str, Tensor]]) -> str:
    """Compute in a precision from now on; return how it changes what `run` computes.

    run: returns scores, N x C x H x W, by name, of one image. The net's weights are cast.
    """
    with torch.no_grad():
        with mode.computing_in(mode.FP32):
            expected = {name: scores.clone() for name, scores in run().items()}
        mode.set_precision(precision)
        net.cast_weights()
        found = run()
    parts = []
    for name, scores in expected.items():
        apart = (found[name] - scores).abs().max() / scores.abs().max()
        same = (found[name].argmax(1) == scores.argmax(1)).double().mean()
        output = f'{name}: ' if len(expected) > 1 else ''
        parts.append(
            f'{output}{same:.3%} of the pixels have the same class, scores differ by at most '
            f'{apart:.1e} of the largest'
        )
    return f'{precision} against fp32 on the first image: {"; ".join(parts)}'
