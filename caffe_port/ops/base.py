"""What every layer type has in common."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.blob import Blob, Shape, check_shape
from caffe_port.errors import CaffeError
from caffe_port.mode import LOW_DTYPES, TRAIN
from caffe_port.ops import fillers
from caffe_port.param_blob import ParamBlob
from caffe_port.proto.caffe_pb2 import FillerParameter, LayerParameter

LAYER_TYPES: dict[str, type[Op]] = {}
# The largest pad or stride that is laid out in memory; nets in use have less than 10.
MAX_PAD = 1024


class Op(nn.Module):
    """One layer: maps bottom tensors to top tensors, differentiably.

    A subclass that is not `abstract` has the name of its Caffe type. It defines `setup`,
    which gets the shapes of the bottoms, reads the parameter and adds blobs, and `forward`,
    which computes.
    """

    bottoms: tuple[int, float] = (1, 1)  # how many it takes: least, most
    tops: tuple[int, float] = (1, 1)
    loss = False  # whether the first top has loss_weight 1 by default
    # Whether force_backward gives a bottom a diff; the last entry counts for all further ones.
    forceable: tuple[bool, ...] = (True,)
    # Whether each item of the first axis is computed by itself, so that none gives all other dims.
    itemwise = False

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not abstract:
            LAYER_TYPES[cls.__name__] = cls

    def __init__(self, param: LayerParameter, phase: int, device: torch.device):
        super().__init__()
        self.param, self.phase = param, phase
        self.training = phase == TRAIN  # from here on train() and eval() set it
        # Kept for forward: torch.compile cannot read a protobuf message.
        self.top_count = len(param.top)
        self.in_place = list(param.bottom) == list(param.top)
        # An empty buffer that Module.to moves, so that it has the layer's device.
        self.register_buffer(
            'place', torch.empty(0, dtype=torch.uint8, device=device), persistent=False
        )
        self.blob_names: list[str] = []
        self.param_blobs: list[ParamBlob] = []  # the same params as pycaffe shows them
        self.views: dict[str, Shape] = {}
        # Tops that a layer without bottoms owns; a net shows these very blobs.
        self.kept_tops: list[Blob | None] = []

    def __getattr__(self, name: str):
        value = super().__getattr__(name)
        # A permissively shared param is the owner's memory in this layer's shape.
        if isinstance(value, Tensor) and name in self.__dict__.get('views', ()):
            return value.view(self.views[name])
        return value

    @property
    def device(self) -> torch.device:
        return self.place.device

    @property
    def _dtype(self) -> torch.dtype:
        """What the layer's blobs are cast to."""
        return next((blob.dtype for blob in self.blobs()), torch.float32)

    def _need_no_setup(self, *shapes: Shape) -> None:
        """Do nothing: the layer has neither settings nor blobs."""

    def _shapes_by_forward(self, *shapes: Shape) -> list[Shape]:
        """Return the shapes of the tops for bottoms of `shapes`.

        Runs `forward` on bottoms without items, or else on tensors without memory: there is
        no second formula for shapes.
        """
        if self.itemwise and all(shapes) and len({shape[0] for shape in shapes}) == 1:
            # PyTorch's kernels without memory of these layers take seconds to import.
            try:
                return self._shapes_without_items(*shapes)
            except (RuntimeError, ValueError):  # the other way words it for these shapes
                pass
        bottoms = tuple(torch.empty(shape, dtype=self._dtype, device='meta') for shape in shapes)
        own = {
            name: tensor.to('meta')
            for name, tensor in (*self._parameters.items(), *self._buffers.items())
            if tensor is not None
        }
        with torch.no_grad():
            tops = torch.func.functional_call(self, own, bottoms)
        return [tuple(top.shape) for top in as_tuple(tops)]

    def _shapes_without_items(self, *shapes: Shape) -> list[Shape]:
        bottoms = [
            torch.empty(0, *shape[1:], dtype=self._dtype, device=self.device) for shape in shapes
        ]
        with torch.no_grad():
            tops = as_tuple(self.forward(*bottoms))
        return [(shapes[0][0], *top.shape[1:]) for top in tops]

    # Each layer names its own bottoms, hence Callable[...], as torch types Module.forward.
    setup: Callable[..., None] = _need_no_setup
    top_shapes: Callable[..., list[Shape]] = _shapes_by_forward

    def retrace(self, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return tops that autograd can follow back to `bottoms`, without a forward of the net.

        `tops` are the blobs' current values. What forward keeps, such as BatchNorm's
        statistics, does not change; Dropout draws a new mask.
        """
        # Forward may write to these clones; gradients still reach the params, in 16 bits too.
        own = {name: getattr(self, name) for name in self.blob_names}
        clones = {
            name: blob.float() if blob.dtype in LOW_DTYPES else blob.clone()
            for name, blob in own.items()
        }
        return as_tuple(torch.func.functional_call(self, clones, tuple(bottoms)))

    def add_blob(
        self,
        name: str,
        shape: Sequence[int],
        filler: FillerParameter | None = None,
        learned: bool = True,
    ) -> None:
        """Add a parameter blob and fill it by `filler`, or with 0."""
        shape = check_shape(shape, f'param {name}')
        if filler is None or (filler.type == 'constant' and filler.value == 0):
            values = zeros(shape).to(self.device)
        else:
            values = torch.from_numpy(fillers.fill(filler, shape)).to(self.device)
        parameter = nn.Parameter(values, requires_grad=learned)
        self.register_parameter(name, parameter)
        self.blob_names.append(name)
        self.param_blobs.append(ParamBlob(parameter))

    def free_spares(self) -> None:
        """Free the memory of gradients that were cleared."""
        for blob in self.param_blobs:
            blob.take_spare()

    def blobs(self) -> list[nn.Parameter]:
        """Return the parameters in Caffe's order."""
        return [blob.parameter for blob in self.param_blobs]

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        # NetModule reports unexpected keys: layer "a" would report the keys of a layer "a.b".
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, [], errors
        )

    def extra_repr(self) -> str:
        """Return what repr shows: channels in and out, and the settings."""
        return ', '.join([*map(str, self._channels()), *self._settings()])

    def _channels(self) -> Sequence[int]:
        return ()

    def _settings(self) -> list[str]:
        return []

    def require(self, condition: bool, message: str) -> None:
        """Raise CaffeError with `message` unless `condition` holds."""
        if not condition:
            raise CaffeError(message)


def as_tuple(tops: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the tops of any layer as a tuple."""
    return tops if isinstance(tops, tuple) else (tops,)


def settings(**values: Any) -> list[str]:
    """Return `name=value` for each; write numbers equal on all axes once, and leave out None."""
    texts = []
    for name, value in values.items():
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if value is not None:
            number = f'{value:g}' if isinstance(value, float) else str(value)
            texts.append(f'{name}={number}')
    return texts


def zeros(shape: Shape) -> Tensor:
    """Return zeros; a large tensor takes no memory until it is written.

    Weights usually come from a file next, and a prototxt alone must not be able to fill
    the machine's memory.
    """
    count = math.prod(shape)
    if count < 2**18:
        return torch.zeros(shape)
    # Private memory takes three quarters of the time of shared memory, the default, to be filled.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, 4 * count, private), dtype=torch.float32).view(shape)


def axis_of(axis: int, axes: int, what: str = 'axis') -> int:
    """Return the axis as 0..axes-1; a negative one counts from the end.

    Raises CaffeError outside.
    """
    if not -axes <= axis < axes:
        raise CaffeError(f'{what} {axis} is outside a blob of {axes} axes')
    return axis % axes


def indices(values: Tensor, size: int, what: str) -> Tensor:
    """Return whole numbers, which a blob holds as floats, as indices.

    Raises CaffeError outside 0..size-1.
    """
    whole = values.detach().long()
    if whole.numel() and not (whole.is_meta or torch.compiler.is_compiling()):
        low, high = (int(end) for end in whole.aminmax())
        if low < 0 or high >= size:
            raise CaffeError(f'{what} {low if low < 0 else high} is outside 0..{size - 1}')
    return whole


def per_axis(values: Sequence[int], axes: int, default: int | None, what: str) -> Shape:
    """Return a repeated field as one number per spatial axis; the field has none, one or all.

    Raises CaffeError for another count, or for none without a default.
    """
    if not values:
        if default is None:
            raise CaffeError(f'{what} is not given')
        return (default,) * axes
    if len(values) not in (1, axes):
        raise CaffeError(f'{len(values)} values of {what} for {axes} spatial axes')
    return tuple(values) * (axes if len(values) == 1 else 1)


def height_width(
    param, name: str, default: int | None, plain: Callable[[], Sequence[int]]
) -> tuple[int, int]:
    """Return height and width from `<name>_h` and `<name>_w`, or else from the plain field.

    Raises CaffeError if both forms are given, or only one of the two.
    """
    fields = f'{name}_h', f'{name}_w'
    given = [field for field in fields if param.HasField(field)]
    values = plain()
    if not given:
        high, wide = per_axis(values, 2, default, name)
        return high, wide
    if values:
        raise CaffeError(f'{name}: give either one number or {" and ".join(fields)}, not both')
    if len(given) < 2 and default is None:
        raise CaffeError(f'{" and ".join(fields)} go together')
    high, wide = (getattr(param, field) if field in given else default or 0 for field in fields)
    return high, wide
