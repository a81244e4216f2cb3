"""What every layer type has in common."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from caffe_port.blob import Blob, checked_shape
from caffe_port.errors import CaffeError
from caffe_port.ops import fillers
from caffe_port.proto.caffe_pb2 import FillerParameter, LayerParameter

Shape = tuple[int, ...]
LAYER_TYPES: dict[str, type[Op]] = {}


class Op(nn.Module):
    """One layer: maps bottom tensors to top tensors, differentiably.

    A subclass bears the name of its type in Caffe and says how many bottoms and
    tops it takes as (least, most). `setup` reads the parameter and adds blobs,
    `forward` computes.
    """

    bottoms: tuple[int, float] = (1, 1)
    tops: tuple[int, float] = (1, 1)
    loss = False  # a loss layer: its first top weighs 1 unless told otherwise
    forceable = (True,)  # per bottom (the last for all further): has a gradient

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith('_'):
            LAYER_TYPES[cls.__name__] = cls

    def __init__(self, param: LayerParameter, phase: int, device: torch.device):
        super().__init__()
        self.param, self.phase = param, phase
        # Plain values for forward: compilers of PyTorch do not see into messages.
        self.top_count = len(param.top)
        self.in_place = list(param.bottom) == list(param.top)
        # Where the layer is, as Module.to moves it; it has no other use.
        self.register_buffer(
            'place', torch.empty(0, dtype=torch.uint8, device=device), persistent=False
        )
        self.blob_names: list[str] = []
        self.views: dict[str, Shape] = {}
        # Tops that a layer without bottoms keeps itself; a net shows these very blobs.
        self.kept_tops: list[Blob | None] = []

    def __getattr__(self, name: str):
        value = super().__getattr__(name)
        # A permissively shared param keeps the owner's memory in this layer's shape.
        return value.view(self.views[name]) if name in self.__dict__.get('views', ()) else value

    @property
    def device(self) -> torch.device:
        return self.place.device

    def setup(self, *shapes: Shape) -> None:
        """Read the layer's parameter and add its blobs, given its bottoms' shapes."""

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        """The shapes of the tops for bottoms of `shapes`.

        Runs `forward` on tensors without memory: there is no second formula for shapes.
        """
        bottoms = tuple(torch.empty(shape, device='meta') for shape in shapes)
        own = {
            name: tensor.to('meta')
            for name, tensor in (*self._parameters.items(), *self._buffers.items())
            if tensor is not None
        }
        with torch.no_grad():
            tops = torch.func.functional_call(self, own, bottoms)
        return [tuple(top.shape) for top in as_tuple(tops)]

    def add_blob(
        self,
        name: str,
        shape: Sequence[int],
        filler: FillerParameter | None = None,
        learned: bool = True,
    ) -> None:
        """Add a parameter blob, filled as `filler` says (zero without one)."""
        shape = checked_shape(shape, f'param {name}')
        if filler is None or (filler.type == 'constant' and filler.value == 0):
            values = zeros(shape).to(self.device)
        else:
            values = torch.from_numpy(fillers.fill(filler, shape)).to(self.device)
        self.register_parameter(name, nn.Parameter(values, requires_grad=learned))
        self.blob_names.append(name)

    def blobs(self) -> list[nn.Parameter]:
        """The parameter blobs in Caffe's order."""
        return [self._parameters[name] for name in self.blob_names]

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
    ) -> None:
        # NetModule names what is unexpected: keys of a layer "a.b" look so to a layer "a".
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, [], errors
        )

    def require(self, condition: bool, message: str) -> None:
        """Raise CaffeError with `message` unless `condition` holds."""
        if not condition:
            raise CaffeError(message)


def as_tuple(tops: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tops if isinstance(tops, tuple) else (tops,)


def zeros(shape: Shape) -> Tensor:
    """Zeros that take no memory until they are written, if they are many.

    A net's weights usually come from a file right after, and a prototxt alone
    should not be able to fill the machine's memory.
    """
    count = math.prod(shape)
    if count < 2**18:
        return torch.zeros(shape)
    return torch.frombuffer(mmap.mmap(-1, 4 * count), dtype=torch.float32).view(shape)


def axis_of(axis: int, axes: int, what: str = 'axis') -> int:
    """The axis as 0..axes-1, counting from the end if negative; CaffeError outside."""
    if not -axes <= axis < axes:
        raise CaffeError(f'{what} {axis} is outside a blob of {axes} axes')
    return axis % axes


def indices(values: Tensor, size: int, what: str) -> Tensor:
    """Whole numbers that a blob keeps as floats, as indices; CaffeError outside 0..size-1."""
    whole = values.detach().long()
    if whole.numel() and not (whole.is_meta or torch.compiler.is_compiling()):
        low, high = (int(end) for end in whole.aminmax())
        if low < 0 or high >= size:
            raise CaffeError(f'{what} {low if low < 0 else high} is outside 0..{size - 1}')
    return whole


def per_axis(values: Sequence[int], axes: int, default: int | None, what: str) -> Shape:
    """A repeated field as one number per spatial axis: none, one for all, or all.

    Raises CaffeError for another count, or none without a default.
    """
    if not values and default is None:
        raise CaffeError(f'{what} is not given')
    values = list(values) or [default]
    if len(values) not in (1, axes):
        raise CaffeError(f'{len(values)} values of {what} for {axes} spatial axes')
    return tuple(values * axes if len(values) == 1 else values)


def height_width(
    param, name: str, default: int | None, plain: Callable[[], Sequence[int]]
) -> tuple[int, int]:
    """Two spatial numbers from `<name>_h` and `<name>_w`, or else from the plain field.

    Raises CaffeError if both forms are given, or only one of the two.
    """
    high, wide = f'{name}_h', f'{name}_w'
    given = [param.HasField(field) for field in (high, wide)]
    values = plain()
    if not any(given):
        return per_axis(values, 2, default, name)
    if values:
        raise CaffeError(f'{name}: give either one number or {high} and {wide}, not both')
    if not all(given) and default is None:
        raise CaffeError(f'{high} and {wide} go together')
    return tuple(
        getattr(param, field) if has else default for field, has in zip((high, wide), given)
    )
