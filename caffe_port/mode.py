"""Where nets compute: Caffe's process-wide mode and device."""

from __future__ import annotations

import torch

from caffe_port.errors import CaffeError

TRAIN, TEST = 0, 1

_gpu = False
_gpu_id = 0


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
    # TF32 keeps 10 bits of each factor: no parity with Caffe's float32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    _gpu = True


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
