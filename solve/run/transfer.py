"""Bring arrays to the device where nets compute, and tensors back, while it computes others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor


class Upload:
    """Arrays on their way to a device: begun in any thread, waited for by the device alone."""

    def __init__(self, arrays: Mapping[str, np.ndarray], device: torch.device):
        self._tensors = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()
        }
        self._arrived: torch.cuda.Event | None = None
        if device.type == 'cuda':
            with torch.cuda.stream(_stream_of(device)):
                self._tensors = {
                    # From pinned memory, or the host would wait for the copy.
                    name: tensor.pin_memory().to(device, non_blocking=True)
                    for name, tensor in self._tensors.items()
                }
                self._arrived = torch.cuda.Event()
                self._arrived.record()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors; what the device's stream does from now on comes after the copy."""
        if self._arrived:
            for tensor in self._tensors.values():
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(self._arrived)
                tensor.record_stream(stream)
        return self._tensors


class Download:
    """Tensors on their way to the host: begun when made, waited for when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        # What comes from a GPU in this way arrives in pinned memory.
        self._tensors = {name: x.to('cpu', non_blocking=True) for name, x in tensors.items()}
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def arrays(self) -> dict[str, np.ndarray]:
        """Wait for the tensors and return them; on the CPU they are the tensors' own memory."""
        if self._arrived:
            self._arrived.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
