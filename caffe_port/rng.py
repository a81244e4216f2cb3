"""Caffe's random streams: one mt19937 for all that is drawn on the CPU."""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np
import torch

from caffe_port.errors import CaffeError

_WORDS = 624  # of mt19937's state

_stream = np.random.RandomState(secrets.randbits(32))
_device_streams: dict[torch.device, torch.Generator] = {}
_device_seed = secrets.randbits(63)


def set_random_seed(seed: int) -> None:
    """Start every stream anew from `seed`, as Caffe does from `random_seed`."""
    global _stream, _device_seed
    _stream = np.random.RandomState(seed % 2**32)
    _device_seed = seed
    _device_streams.clear()


def stream() -> np.random.RandomState:
    """Return the host's stream, from which fillers draw."""
    return _stream


def draw_words(count: int) -> np.ndarray:
    """Draw the next `count` 32-bit words of the host's stream, in order (uint32)."""
    return _stream.randint(0, 2**32, size=count, dtype=np.uint32)


def draw_mask(shape: torch.Size, keep: float, device: torch.device) -> torch.Tensor:
    """Draw a bool mask that is true with probability `keep`.

    On the CPU it is Caffe's own: one word per element in C order, kept iff
    word <= keep * (2**32 - 1), which is boost's bernoulli_distribution over
    mt19937. A GPU has a stream of its own, as cuRAND is in Caffe.
    """
    if device.type == 'cpu':
        mask = draw_words(math.prod(shape)) <= keep * (2**32 - 1)
        return torch.from_numpy(mask.reshape(shape))
    return draw_uniform(shape, device) < keep


def draw_uniform(shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Draw float32 numbers from 0 to 1: on the CPU from one word each, in C order."""
    if device.type == 'cpu':
        values = draw_words(math.prod(shape)) / np.float32(2**32 - 1)
        return torch.from_numpy(values.astype(np.float32).reshape(shape))
    if device not in _device_streams:
        _device_streams[device] = torch.Generator(device).manual_seed(_device_seed)
    return torch.rand(shape, generator=_device_streams[device], device=device)


class Stream:
    """A stream apart, an mt19937 that the next word of the host stream seeds.

    Caffe's data layers have such streams, which their threads draw from.
    """

    def __init__(self) -> None:
        self._stream = np.random.RandomState(int(draw_words(1)[0]))

    def draw_words(self, count: int) -> np.ndarray:
        """Draw the next `count` 32-bit words (uint32)."""
        return self._stream.randint(0, 2**32, size=count, dtype=np.uint32)

    def below(self, bound: int) -> int:
        """Draw a number from 0 to bound - 1: a word modulo the bound."""
        return int(self.draw_words(1)[0]) % bound

    def state(self) -> list:
        """Return the position of the stream, as JSON can hold it."""
        state = self._stream.get_state(legacy=False)['state']
        return [state['key'].tolist(), int(state['pos'])]

    def set_state(self, state: list) -> None:
        """Go on from a state(); raises CaffeError, and changes nothing, if it is not one."""
        stream = np.random.RandomState()
        try:
            key, position = state
            stream.set_state(('MT19937', np.array(key, np.uint32), int(position), 0, 0.0))
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise CaffeError(f'not a state of a random stream: {error}') from error
        self._stream = stream


def get_state() -> dict:
    """Return the state of the streams, for set_state: plain values, uint8 and uint32 arrays."""
    _, key, position, has_gauss, gauss = _stream.get_state()
    return {
        'key': key,
        'position': position,
        'has_gauss': has_gauss,
        'gauss': gauss,
        'device_seed': _device_seed,
        'devices': {str(d): g.get_state().numpy() for d, g in _device_streams.items()},
    }


def set_state(state: dict) -> None:
    """Set the streams to what get_state returned, or its lists; GPUs not here are left out.

    Raises CaffeError, and changes nothing, if `state` is not one.
    """
    global _stream, _device_seed
    stream, devices = check_state(state)
    _stream, _device_seed = stream, state['device_seed']
    _device_streams.clear()
    _device_streams.update(devices)


def check_state(state: Any) -> tuple[np.random.RandomState, dict[torch.device, torch.Generator]]:
    """Return the streams that `state` describes, without using them.

    Raises CaffeError, naming the entry, if it is no state.
    """
    what = 'not a state of the random streams'
    try:
        position, has_gauss, gauss = state['position'], state['has_gauss'], state['gauss']
        seed, saved = state['device_seed'], state['devices']
        key = _numbers('key', state['key'], np.uint32)
    except (LookupError, TypeError, ValueError) as error:
        raise CaffeError(f'{what}: {str(error) or type(error).__name__}') from error
    # NumPy takes any position and reads beyond its words.
    for name, good in {
        'key': key.shape == (_WORDS,),
        'position': type(position) is int and 0 <= position <= _WORDS,
        'has_gauss': type(has_gauss) is int and has_gauss in (0, 1),
        'gauss': type(gauss) in (int, float) and math.isfinite(gauss),
        'device_seed': type(seed) is int and -(2**63) <= seed < 2**64,
        'devices': isinstance(saved, dict),
    }.items():
        if not good:
            raise CaffeError(f'{what}: {name} is {str(state[name])[:40]}')
    host = np.random.RandomState()
    host.set_state(('MT19937', key, position, has_gauss, gauss))
    devices = {}
    for name, numbers in saved.items():
        try:
            device, values = torch.device(name), _numbers(name, numbers, np.uint8)
            if (device.index or 0) < torch.cuda.device_count():
                devices[device] = torch.Generator(device)
                devices[device].set_state(torch.from_numpy(values))
        except (TypeError, ValueError, RuntimeError) as error:
            raise CaffeError(f'{what}: devices: {str(error)[:200]}') from error
    return host, devices


def _numbers(name: str, values: Any, dtype: type) -> np.ndarray:
    """Return an array or list of integers as an array of `dtype`; ValueError if it is none."""
    found = np.array(values)
    bits = np.iinfo(dtype).bits
    if found.ndim != 1 or (found.size and found.dtype.kind not in 'iu'):
        raise ValueError(f'{name}: expected integers, found {str(values)[:40]}')
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < 2**bits:
        raise ValueError(f'{name}: expected integers of {bits} bits, found {str(values)[:40]}')
    return found.astype(dtype)
