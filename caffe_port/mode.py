"""Where and how precisely nets compute: Caffe's process-wide mode and device, and a precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from caffe_port.errors import CaffeError

TRAIN, TEST = 0, 1
FP32, TF32, BF16, FP16 = PRECISIONS = 'fp32', 'tf32', 'bf16', 'fp16'
LOW = {BF16: torch.bfloat16, FP16: torch.float16}
LOW_DTYPES = tuple(LOW.values())
# The first GPUs with TF32 and bfloat16 are of this compute capability.
_AMPERE = 8

_gpu = False
_gpu_id = 0
_precision = FP32


def set_mode_cpu() -> None:
    """Compute nets on the CPU, which is the default."""
    global _gpu
    _gpu = False


def set_mode_gpu() -> None:
    """Compute nets on the GPU that set_device has chosen, 0 by default.

    Raises CaffeError where PyTorch finds no GPU.
    """
    global _gpu
    if not torch.cuda.is_available():
        raise CaffeError('set_mode_gpu: PyTorch finds no GPU here; use set_mode_cpu')
    _gpu = True
    _allow_tf32()


def set_device(gpu_id: int) -> None:
    """Choose the GPU that set_mode_gpu computes on, by its number from 0.

    Raises CaffeError if there is no such GPU.
    """
    global _gpu_id
    count = torch.cuda.device_count()
    if not 0 <= gpu_id < count:
        raise CaffeError(f'set_device: no GPU {gpu_id}; PyTorch finds {count}')
    _gpu_id = gpu_id


def device() -> torch.device:
    """Return the device on which nets compute now."""
    return torch.device('cuda', _gpu_id) if _gpu else torch.device('cpu')


def set_precision(precision: str) -> None:
    """Compute in fp32 (where a process starts), tf32, bf16 or fp16 from now on.

    tf32 rounds the factors of products to 10 bits, on a GPU, by cuDNN and cuBLAS. bf16 and fp16
    compute Convolution and InnerProduct in 16 bits (see caffe_port.lowered); losses, updates
    and what users see of blobs stay float32.

    Raises CaffeError for another name, and where the device does not have the precision.
    """
    global _precision
    if precision not in PRECISIONS:
        raise CaffeError(f'precision {precision!r}: must be one of {", ".join(PRECISIONS)}')
    if precision == TF32 and not _gpu:
        raise CaffeError('precision tf32: needs a GPU; the CPU computes in fp32')
    if precision in (TF32, BF16) and _gpu:
        major, minor = torch.cuda.get_device_capability(_gpu_id)
        if major < _AMPERE:
            raise CaffeError(
                f'precision {precision}: GPU {_gpu_id} has compute capability {major}.{minor}, '
                f'at least {_AMPERE}.0 is needed'
            )
    _precision = precision
    _allow_tf32()


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Compute in a precision within the block."""
    global _precision
    before = _precision
    try:
        set_precision(precision)
        yield
    finally:
        _precision = before  # which need not be this device's
        _allow_tf32()


def _allow_tf32() -> None:
    # TF32 keeps 10 bits of each factor: no parity with Caffe's float32.
    torch.backends.cudnn.allow_tf32 = _precision == TF32
    torch.backends.cuda.matmul.allow_tf32 = _precision == TF32


def precision() -> str:
    """Return the precision in which nets compute now."""
    return _precision


def low_dtype() -> torch.dtype | None:
    """Return the dtype of 16 bits in which nets compute now; None for fp32 and tf32."""
    return LOW.get(_precision)
