"""Bring nets and solvers of older formats to the current one, as Caffe 1.0 does.

V0 nets hold `layers { layer { ... } }`, V1 nets `layers` with enum types; current
ones `layer` with type strings. Source: Caffe's util/upgrade_proto.cpp (the rules).
"""

from __future__ import annotations

import logging

from google.protobuf.message import Message

from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    SolverParameter,
    V1LayerParameter,
)

LOG = logging.getLogger('caffe_port')

# The deepest nets published have some 4000.
MAX_LAYERS = 10_000

# No string of a real prototxt is longer; to evaluate a longer param_str takes gigabytes.
MAX_STRING = 1 << 16

_NAMES = """
AbsVal Accuracy ArgMax BNLL Concat ContrastiveLoss Convolution Data Deconvolution Dropout
DummyData Eltwise EuclideanLoss Exp Flatten HDF5Data HDF5Output HingeLoss Im2col ImageData
InfogainLoss InnerProduct LRN MemoryData MultinomialLogisticLoss MVN Pooling Power ReLU Sigmoid
SigmoidCrossEntropyLoss Silence Slice Softmax Split TanH Threshold WindowData
""".split()
_BY_CAPITALS = {name.upper(): name for name in _NAMES}
_BY_CAPITALS.update(NONE='', SOFTMAXLOSS='SoftmaxWithLoss')
V1_TYPES = {
    name: _BY_CAPITALS[name.replace('_', '')]
    for name in V1LayerParameter.LayerType.DESCRIPTOR.values_by_name
}
V0_TYPES = {
    name.lower(): name
    for name in """
        ACCURACY BNLL CONCAT DATA DROPOUT EUCLIDEAN_LOSS FLATTEN HDF5_DATA HDF5_OUTPUT IM2COL
        INFOGAIN_LOSS LRN MULTINOMIAL_LOGISTIC_LOSS RELU SIGMOID SOFTMAX SOFTMAX_LOSS SPLIT TANH
        WINDOW_DATA""".split()
}
V0_TYPES.update(
    conv='CONVOLUTION', images='IMAGE_DATA', innerproduct='INNER_PRODUCT', pool='POOLING'
)
# Which message each V0 type's parameters went to, and what they are called there.
_V0_PARAMS = {
    'conv': 'convolution_param num_output bias_term weight_filler bias_filler pad kernel_size '
    'group stride',
    'innerproduct': 'inner_product_param num_output bias_term weight_filler bias_filler',
    'pool': 'pooling_param pad kernel_size stride pool',
    'dropout': 'dropout_param dropout_ratio',
    'lrn': 'lrn_param local_size alpha beta k',
    'concat': 'concat_param concat_dim',
    'infogain_loss': 'infogain_loss_param source',
    'hdf5_data': 'hdf5_data_param source batch_size',
    'data': 'data_param source batch_size rand_skip',
    'images': 'image_data_param source batch_size rand_skip shuffle new_height new_width',
    'window_data': 'window_data_param source batch_size fg_threshold bg_threshold fg_fraction '
    'context_pad crop_mode',
}
_V0_RENAMED = {
    'biasterm': 'bias_term',
    'kernelsize': 'kernel_size',
    'batchsize': 'batch_size',
    'shuffle_images': 'shuffle',
}
_V0_TRANSFORM = {
    'scale': 'scale',
    'meanfile': 'mean_file',
    'cropsize': 'crop_size',
    'mirror': 'mirror',
}
_V0_KEPT = ('name', 'blobs', 'blobs_lr', 'weight_decay')
_V1_DATA = {
    V1LayerParameter.DATA: 'data_param',
    V1LayerParameter.IMAGE_DATA: 'image_data_param',
    V1LayerParameter.WINDOW_DATA: 'window_data_param',
}
# What is in a ParamSpec now.
_V1_SPECS = {
    'param': 'name',
    'blob_share_mode': 'share_mode',
    'blobs_lr': 'lr_mult',
    'weight_decay': 'decay_mult',
}
_SOLVER_TYPES = {
    name.upper(): name for name in ('SGD', 'Nesterov', 'AdaGrad', 'RMSProp', 'AdaDelta', 'Adam')
}


def upgrade_net(
    net: NetParameter, name: str = 'net', dropped: list[str] | None = None
) -> NetParameter:
    """Return a copy of `net` in the current format; errors call it `name`.

    What means nothing to its layer is dropped with a warning, which is added to `dropped`.

    Raises CaffeError for what no format allows, such as `layer` beside `layers`, for more
    than MAX_LAYERS layers and for strings longer than MAX_STRING.
    """
    count = len(net.layer) + len(net.layers)
    if count > MAX_LAYERS:
        raise CaffeError(f'{name}: {count} layers, expected at most {MAX_LAYERS}')
    _check_strings(net, name)
    upgraded = NetParameter()
    upgraded.CopyFrom(net)
    if upgraded.layers and upgraded.layer:
        raise CaffeError(
            f'{name}: has both `layer` (string types) and the older `layers` '
            '(enum types), must have one of them'
        )
    old = list(upgraded.layers)
    if any(layer.HasField('layer') for layer in old):
        inputs = set(upgraded.input)
        found = [] if dropped is None else dropped
        old = [_from_v0(layer, name, found) for layer in _without_padding_layers(old, inputs, name)]
    upgraded.layer.extend([_from_v1(layer) for layer in old])
    upgraded.ClearField('layers')
    _inputs_to_layer(upgraded, name)
    _fix_batch_norms(upgraded)
    return upgraded


def upgrade_solver(
    solver: SolverParameter, name: str = 'solver', dropped: list[str] | None = None
) -> SolverParameter:
    """Return a copy of `solver` with `type` for the older `solver_type`, its nets upgraded.

    `dropped` is as for `upgrade_net`.

    Raises CaffeError where both are given, and as `upgrade_net` does.
    """
    _check_strings(solver, name)
    upgraded = SolverParameter()
    upgraded.CopyFrom(solver)
    if upgraded.HasField('solver_type'):
        if upgraded.HasField('type'):
            raise CaffeError(
                f'{name}: has both `type` and the older `solver_type`, must have one of them'
            )
        upgraded.type = _SOLVER_TYPES[SolverParameter.SolverType.Name(upgraded.solver_type)]
        upgraded.ClearField('solver_type')
    nets = [
        getattr(upgraded, field)
        for field in ('net_param', 'train_net_param')
        if upgraded.HasField(field)
    ]
    for net in [*nets, *upgraded.test_net_param]:
        net.CopyFrom(upgrade_net(net, name, dropped))
    return upgraded


def v1_type(value: int) -> str:
    """Return the type string of a V1 layer's enum value; empty if there is none."""
    found = V1LayerParameter.LayerType.DESCRIPTOR.values_by_number.get(value)
    return V1_TYPES[found.name] if found else ''


def v0_type(word: str) -> str:
    """Return the type string of a V0 layer's type word; the word itself if it is unknown."""
    return V1_TYPES[V0_TYPES[word]] if word in V0_TYPES else word


def _check_strings(message: Message, name: str) -> None:
    """Raise CaffeError for strings beyond MAX_STRING or not UTF-8 (protobuf returns bytes)."""
    for field, value in message.ListFields():
        values = [value] if field.has_presence else value
        if field.type == field.TYPE_MESSAGE:
            for each in values:
                _check_strings(each, name)
        elif field.type == field.TYPE_STRING:
            where = f'{name}: {field.full_name.partition(".")[2]}'
            if any(isinstance(each, bytes) for each in values):
                raise CaffeError(f'{where} is not UTF-8')
            longest = max(map(len, values))
            if longest > MAX_STRING:
                raise CaffeError(f'{where}: {longest} characters, expected at most {MAX_STRING}')


def _without_padding_layers(
    layers: list[V1LayerParameter], inputs: set[str], name: str
) -> list[V1LayerParameter]:
    """Fold each padding layer of a V0 net into the conv or pool that it feeds."""
    makers: dict[str, V1LayerParameter | None] = dict.fromkeys(inputs)
    kept = []
    for layer in layers:
        if not layer.HasField('layer'):
            raise CaffeError(f'{name}: {layer.name}: a V1 layer in a V0 net')
        feeders = []
        for bottom in layer.bottom:
            if bottom not in makers:
                raise CaffeError(f'{name}: {layer.layer.name}: unknown bottom "{bottom}"')
            feeders.append(makers[bottom])
        makers.update(dict.fromkeys(layer.top, layer))
        if layer.layer.type == 'padding':
            continue
        folded = V1LayerParameter()
        folded.CopyFrom(layer)
        kept.append(folded)
        for feeder in feeders:
            if feeder is not None and feeder.layer.type == 'padding':
                _fold(feeder, folded, name)
    return kept


def _fold(padding: V1LayerParameter, layer: V1LayerParameter, name: str) -> None:
    what = f'{name}: {layer.layer.name}'
    if layer.layer.type not in ('conv', 'pool'):
        raise CaffeError(
            f'{what}: padding layer "{padding.layer.name}" feeds a '
            f'"{layer.layer.type}" layer, must feed conv or pool'
        )
    counts = len(layer.bottom), len(padding.bottom), len(padding.top)
    if counts != (1, 1, 1):
        raise CaffeError(
            f'{what}: expected one bottom, and one bottom and top of its padding '
            f'layer "{padding.layer.name}"; found {counts}'
        )
    layer.layer.pad = padding.layer.pad
    layer.bottom[0] = padding.bottom[0]


def _from_v0(connection: V1LayerParameter, name: str, dropped: list[str]) -> V1LayerParameter:
    old = connection.layer
    if old.HasField('type') and old.type not in V0_TYPES:
        raise CaffeError(f'{name}: {old.name}: unknown V0 layer type "{old.type}"')
    layer = V1LayerParameter(
        bottom=connection.bottom, top=connection.top, type=V0_TYPES.get(old.type)
    )
    param, *taken = _V0_PARAMS.get(old.type, '-').split()
    for field, value in old.ListFields():
        renamed = _V0_RENAMED.get(field.name, field.name.removeprefix('det_'))
        if field.name in _V0_KEPT:
            put(layer, field.name, value)
        elif field.name in _V0_TRANSFORM:
            put(layer.transform_param, _V0_TRANSFORM[field.name], value)
        elif renamed in taken:
            put(getattr(layer, param), renamed, value)
        elif field.name == 'hdf5_output_param' and old.type == 'hdf5_output':
            layer.hdf5_output_param.CopyFrom(value)
        elif field.name != 'type':
            dropped.append(
                f'{name}: {old.name}: {field.name} means nothing to a V0 layer of type '
                f'"{old.type}"; dropped, as in Caffe'
            )
            LOG.warning('%s', dropped[-1])
    return layer


def _from_v1(old: V1LayerParameter) -> LayerParameter:
    layer = LayerParameter()
    for field, value in old.ListFields():
        if field.name == 'type':
            layer.type = v1_type(value)
        elif field.name in _V1_SPECS:
            for i, each in enumerate(value):
                while len(layer.param) <= i:
                    layer.param.add()
                setattr(layer.param[i], _V1_SPECS[field.name], each)
        else:
            put(layer, field.name, value)
    param = _V1_DATA.get(old.type)
    if param is not None and layer.HasField(param):
        _move_transform(getattr(layer, param), layer)
    return layer


def _move_transform(param: Message, layer: LayerParameter) -> None:
    """Move a data layer's own settings of the transformation to transform_param."""
    for field in ('scale', 'mean_file', 'crop_size', 'mirror'):
        if param.HasField(field):
            setattr(layer.transform_param, field, getattr(param, field))
            param.ClearField(field)


def _inputs_to_layer(net: NetParameter, name: str) -> None:
    """Turn `input` with `input_shape` or `input_dim` into an Input layer at the front.

    Inputs without any shape, as older weight files have them, are dropped.
    """
    if not net.input:
        return
    count = len(net.input)
    shapes = [list(shape.dim) for shape in net.input_shape]
    if not shapes:
        shapes = [net.input_dim[i : i + 4] for i in range(0, len(net.input_dim), 4)]
    if shapes:
        if len(shapes) < count or not net.input_shape and len(net.input_dim) < 4 * count:
            raise CaffeError(
                f'{name}: expected one input_shape or four input_dim for each of '
                f'{count} inputs, found {len(net.input_shape)} and '
                f'{len(net.input_dim)}'
            )
        layer = LayerParameter(name='input', type='Input', top=net.input)
        for shape in shapes[:count]:
            layer.input_param.shape.add(dim=shape)
        net.layer.insert(0, layer)
    for field in ('input', 'input_shape', 'input_dim'):
        net.ClearField(field)


def _fix_batch_norms(net: NetParameter) -> None:
    """Freeze the statistics of BatchNorm layers that declare their three params."""
    for layer in net.layer:
        if layer.type == 'BatchNorm' and len(layer.param) == 3:
            for spec in layer.param:
                spec.lr_mult = spec.decay_mult = 0


def put(message: Message, field: str, value: object) -> None:
    """Set a field, or append to a repeated one."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    if not descriptor.has_presence:
        single = isinstance(value, (int, float, str, Message))
        getattr(message, field).extend([value] if single else value)
    elif isinstance(value, Message):
        getattr(message, field).CopyFrom(value)
    else:
        setattr(message, field, value)
