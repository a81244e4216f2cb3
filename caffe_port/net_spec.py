"""A net is a readable expression: `n.conv = L.Convolution(n.data, num_output=64)`.

Four nouns. A Function is one layer call: its type, its bottoms, its settings. A
Top is one output of a Function and the bottom of others. A NetSpec gives tops
their names. `layers` (written L) makes Functions and returns their tops;
`params` (written P) holds the enum values. Nothing is named before `to_proto`.

Behaves as pycaffe's net_spec; unlike there, an unknown setting is refused where the
layer is written and not only in `to_proto`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from google.protobuf.message import Message

from caffe_port.errors import CaffeError
from caffe_port.proto import caffe_pb2

LayerParameter = caffe_pb2.LayerParameter

# Layer types that read messages not named after them.
_BORROWED = {
    'Data': ('transform_param',),
    'Deconvolution': ('convolution_param',),
    'EuclideanLoss': ('loss_param',),
    'HingeLoss': ('loss_param',),
    'Im2col': ('convolution_param',),
    'ImageData': ('transform_param',),
    'InfogainLoss': ('softmax_param', 'loss_param'),
    'LSTM': ('recurrent_param',),
    'MemoryData': ('transform_param',),
    'MultinomialLogisticLoss': ('loss_param',),
    'RNN': ('recurrent_param',),
    'SigmoidCrossEntropyLoss': ('loss_param',),
    'SoftmaxWithLoss': ('softmax_param', 'loss_param'),
    'WindowData': ('transform_param',),
}


class BottomError(CaffeError, TypeError):
    """A bottom is not a Top (pycaffe raises a TypeError)."""


@cache
def _own_messages(type_name: str) -> tuple[str, ...]:
    """Return the LayerParameter fields that a layer type reads, such as 'convolution_param'.

    The schema names them: Convolution reads ConvolutionParameter, and so on.
    """
    named_after = tuple(
        field.name
        for field in LayerParameter.DESCRIPTOR.fields
        if field.message_type
        and field.name.endswith('_param')
        and field.message_type.name == type_name + 'Parameter'
    )
    return named_after + _BORROWED.get(type_name, ())


class Top:
    """One output of a layer: top number `n` of the Function `fn`."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return the net that computes this top."""
        return to_proto(self)

    def _update(self, params: Mapping[str, Any]) -> None:
        self.fn._update(params)


class Function:
    """One layer call: `type_name`, the tops it reads, its settings.

    `ntop` and `in_place` are taken out of `params`; the rest are fields of
    LayerParameter or of the messages the type reads.

    Raises BottomError if an input is not a Top, CaffeError for a setting that
    is not in the schema or whose value does not fit.
    """

    def __init__(self, type_name: str, inputs: Iterable[Top], params: Mapping[str, Any]) -> None:
        self.type_name = type_name
        self.inputs = tuple(inputs)
        for index, top in enumerate(self.inputs):
            if not isinstance(top, Top):
                raise BottomError(f'{type_name} input {index} is not a Top (type is {type(top)})')
        self.params = dict(params)
        self.ntop = self.params.pop('ntop', 1)
        self.in_place = self.params.pop('in_place', False)
        if not isinstance(self.ntop, int) or self.ntop < 0:
            raise CaffeError(f'{self}: ntop must be a count, got {self.ntop!r}')
        if self.in_place and len(self.inputs) < self.ntop:
            raise CaffeError(
                f'{self}: in_place needs a bottom for every top, '
                f'got {len(self.inputs)} for {self.ntop}'
            )
        self.tops = tuple(Top(self, n) for n in range(self.ntop))
        self.settings()  # raises for a misspelt field here, where it was written

    def __str__(self) -> str:
        name = self.params.get('name')
        return f'{self.type_name} {name}' if name else self.type_name

    def _update(self, params: Mapping[str, Any]) -> None:
        self.params.update(params)

    def settings(self) -> LayerParameter:
        """Return the keyword arguments as a LayerParameter with neither bottoms nor tops."""
        layer = LayerParameter(type=self.type_name)
        for name, value in self.params.items():
            _assign(self._home(layer, name), name, value, str(self))
        return layer

    def _home(self, layer: LayerParameter, name: str) -> Message:
        """Return the message of `layer` that has a field `name`."""
        own = _own_messages(self.type_name)
        for message in (*(getattr(layer, field) for field in own), layer):
            if name in message.DESCRIPTOR.fields_by_name:
                return message
        where = ', '.join((*own, 'LayerParameter'))
        raise CaffeError(f'{self}: unknown setting {name!r}; looked in {where}')


def _assign(message: Message, name: str, value: Any, layer: str) -> None:
    """Set a field from a plain value; dicts fill messages, lists repeated fields.

    A single value for a repeated field is a list of one.
    """
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        known = ', '.join(message.DESCRIPTOR.fields_by_name)
        raise CaffeError(
            f'{layer}: {message.DESCRIPTOR.name} has no field {name!r}; it has {known}'
        )
    present = getattr(message, name)
    repeated = hasattr(present, 'extend')
    try:
        if field.message_type and repeated:
            for item in _listed(value):
                _fill(present.add(), item, layer)
        elif field.message_type:
            _fill(present, value, layer)
        elif repeated:
            present.extend(_listed(value))
        else:
            setattr(message, name, value)
    except TypeError as error:
        raise CaffeError(f'{layer}: {name} cannot be {value!r}: {error}') from error
    except ValueError as error:
        if isinstance(error, CaffeError):  # from a field of this one
            raise
        raise CaffeError(f'{layer}: {name} cannot be {value!r}: {error}') from error


def _fill(message: Message, value: Mapping[str, Any] | Message, layer: str) -> None:
    if isinstance(value, Message):
        message.MergeFrom(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _assign(message, name, item, layer)
    else:
        raise TypeError(f'expected a dict for {message.DESCRIPTOR.name}')


def _listed(value: Any) -> Iterable:
    single = isinstance(value, (str, bytes, Mapping, Message)) or not isinstance(value, Iterable)
    return [value] if single else value


class NetSpec:
    """A net under construction; attributes and items are its tops.

    `n.conv1 = L.Convolution(n.data, ...)` names a top and its layer `conv1`;
    `n['conv1/7x7'] = ...` takes names that are no identifiers. `n.tops` is the dict of
    all that was assigned, in that order.

    Raises CaffeError when something other than a Top is assigned.
    """

    tops: dict[str, Top | Function]

    def __init__(self) -> None:
        object.__setattr__(self, 'tops', {})

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        # Through __dict__: copy and pickle ask for attributes before __init__ has run.
        tops = self.__dict__.get('tops', {})
        if name not in tops:
            raise AttributeError(f'the net has no top {name!r}; it has {", ".join(tops)}')
        return tops[name]

    def __delattr__(self, name: str) -> None:
        self.__getattr__(name)
        del self.tops[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(value, (Top, Function)):
            raise CaffeError(
                f'{name}: expected a Top, got {type(value).__name__}; a layer of '
                f'several tops is assigned to several names'
            )
        self.tops[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def __delitem__(self, name: str) -> None:
        del self.tops[name]

    def to_proto(self) -> caffe_pb2.NetParameter:
        """Return the net: layers in the order of assignment, each after those it reads.

        Tops without a name get their layer's type and a number: Convolution1.
        """
        names = {top: name for name, top in self.tops.items()}
        return _assemble(self.tops.values(), names)


def to_proto(*tops: Top) -> caffe_pb2.NetParameter:
    """Return the net that computes these tops, with generated names."""
    return _assemble(tops, {})


def _assemble(
    wanted: Iterable[Top | Function], names: dict[Top | Function, str]
) -> caffe_pb2.NetParameter:
    """Return the net that `wanted` needs, with generated names for tops not in `names`."""
    counts: Counter[str] = Counter()
    names = dict(names)

    def name_of(noun: Top | Function, type_name: str) -> str:
        if noun not in names:
            counts[type_name] += 1
            names[noun] = f'{type_name}{counts[type_name]}'
        return names[noun]

    written: dict[Function, LayerParameter] = {}
    for fn in _in_order(wanted):
        bottoms = [written[top.fn].top[top.n] for top in fn.inputs]
        tops = bottoms if fn.in_place else [name_of(top, fn.type_name) for top in fn.tops]
        name = name_of(fn.tops[0] if fn.tops else fn, fn.type_name)
        written[fn] = LayerParameter(name=name, type=fn.type_name, bottom=bottoms, top=tops)
        written[fn].MergeFrom(fn.settings())
    return caffe_pb2.NetParameter(layer=written.values())


def _in_order(wanted: Iterable[Top | Function]) -> Iterable[Function]:
    """Return every Function that `wanted` needs, once, after all of its inputs."""
    done: dict[Function, None] = {}
    for noun in wanted:
        # A stack, as nets may be deeper than Python's call stack.
        path = [noun.fn if isinstance(noun, Top) else noun]
        while path:
            missing = (top.fn for top in path[-1].inputs if top.fn not in done)
            before = next(missing, None)
            if before is None:
                done[path.pop()] = None
            else:
                path.append(before)
    return done


class Layers:
    """`layers.<Type>(*bottoms, **settings)` makes a layer of any type.

    It returns the Top; a tuple of Tops with `ntop` above 1; the Function with `ntop=0`.
    """

    def __getattr__(self, type_name: str) -> Callable[..., Any]:
        if type_name.startswith('__'):  # Python looks for special methods here
            raise AttributeError(type_name)

        def layer(*bottoms: Top, **params: Any) -> Top | tuple[Top, ...] | Function:
            fn = Function(type_name, bottoms, params)
            if fn.ntop == 0:
                return fn
            return fn.tops[0] if fn.ntop == 1 else fn.tops

        return layer


class Parameters:
    """`params.<Type>.<VALUE>` is an enum value of the type's message: params.Pooling.MAX."""

    def __getattr__(self, type_name: str) -> Any:
        return getattr(caffe_pb2, type_name + 'Parameter')


layers = Layers()
params = Parameters()
