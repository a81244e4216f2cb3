"""caffe.proto and caffe_pb2.py against the record of Caffe's schema."""

import ast
import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from caffe_port.proto import caffe_pb2
from tests.vectors import FACTS

PROTO = Path(caffe_pb2.__file__).with_name('caffe.proto')
Kind = descriptor_pb2.FieldDescriptorProto
LABELS = {
    Kind.LABEL_OPTIONAL: 'optional',
    Kind.LABEL_REQUIRED: 'required',
    Kind.LABEL_REPEATED: 'repeated',
}


def rows(name):
    with open(FACTS / name, newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


def compiled() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    caffe_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def type_of(field) -> str:
    name = field.type_name.removeprefix('.caffe_port.')
    if field.type == Kind.TYPE_ENUM:
        return f'enum {name}'
    return name or Kind.Type.Name(field.type).removeprefix('TYPE_').lower()


def default_of(kind: str, text: str):
    """A default as a value; the record prints floats as float32 and booleans as Python does."""
    if text == '':
        return None
    if kind in ('float', 'double'):
        return np.float32(text)
    return text.lower() if kind == 'bool' else text


def described() -> set[tuple]:
    return {
        (
            message.name,
            field.number,
            LABELS[field.label],
            type_of(field),
            field.name,
            default_of(type_of(field), field.default_value),
            field.options.packed,
            field.options.deprecated,
        )
        for message in compiled().message_type
        for field in message.field
    }


def test_every_field_is_as_recorded_and_no_other_exists():
    recorded = {
        (
            row['message'],
            int(row['number']),
            row['label'],
            row['type'],
            row['name'],
            default_of(row['type'], row['default']),
            row['packed'] == 'packed',
            bool(row['deprecated']),
        )
        for row in rows('caffe_schema.tsv')
    }
    assert len(recorded) == 423
    assert described() == recorded


def test_every_enum_is_as_recorded_and_no_other_exists():
    recorded = defaultdict(list)
    for row in rows('caffe_enums.tsv'):
        recorded[row['enum']].append((row['name'], int(row['value'])))
    file = compiled()
    nested = [
        (f'{message.name}.', enum) for message in file.message_type for enum in message.enum_type
    ]
    found = {
        prefix + enum.name: [(value.name, value.number) for value in enum.value]
        for prefix, enum in [*nested, *(('', enum) for enum in file.enum_type)]
    }
    assert found == recorded


def test_nothing_is_nested_extended_or_grouped():
    for message in compiled().message_type:
        assert not (
            message.nested_type
            or message.extension
            or message.extension_range
            or message.oneof_decl
        ), message.name


def test_pb2_has_every_field_line_of_the_proto():
    line = re.compile(r'^  (optional|required|repeated) (\w+) (\w+) = (\d+)(?: \[(.*?)\])?;', re.M)
    written = []
    for name, body in re.findall(r'^message (\w+) \{\n(.*?)^\}', PROTO.read_text(), re.M | re.S):
        for label, kind, field, number, options in line.findall(body):
            given = dict(option.split(' = ') for option in filter(None, options.split(', ')))
            default = default_of(kind, given.pop('default', '').strip('"'))
            packed = given.pop('packed', 'false') == 'true'
            assert not given
            written.append((name, int(number), label, kind, field, default, packed))
    # The proto names an enum from within its message.
    assert set(written) == {
        (name, number, label, kind.split('.')[-1].removeprefix('enum '), *rest)
        for name, number, label, kind, *rest, _ in described()
    }
    assert len(written) == len(set(written))


def test_pb2_is_what_a_compiler_makes_of_the_proto(tmp_path):
    protoc = pytest.importorskip('grpc_tools.protoc', reason='grpcio-tools compiles protos')
    root = PROTO.parents[2]
    out = tmp_path / 'set'
    assert protoc.main(['protoc', f'-I{root}', f'--descriptor_set_out={out}', str(PROTO)]) == 0
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    made, shipped = files.file[0], compiled()
    for message in [*made.message_type, *shipped.message_type]:
        for field in message.field:
            field.ClearField('json_name')
            if field.type == Kind.TYPE_FLOAT and field.default_value:
                # Compilers differ in the digits they write.
                field.default_value = str(np.float32(field.default_value))
    assert made == shipped


def test_caffes_own_messages_can_be_loaded_beside_ours():
    twin = compiled()
    twin.name, twin.package = 'caffe.proto', 'caffe'
    for message in twin.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace('.caffe_port.', '.caffe.')
    pool = descriptor_pool.Default()
    pool.Add(twin)
    assert pool.FindMessageTypeByName('caffe.NetParameter') != caffe_pb2.NetParameter.DESCRIPTOR


def test_the_stub_has_the_messages_fields_and_enums_of_the_module():
    tree = ast.parse(Path(caffe_pb2.__file__).with_suffix('.pyi').read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {node.name: declared(node) for node in classes}
    found = {
        f'{node.name}.{inner.name}': declared(inner)
        for node in classes
        for inner in node.body
        if isinstance(inner, ast.ClassDef)
    } | names
    expected = {}
    for message in compiled().message_type:
        enums = {f'{message.name}.{enum.name}': enum for enum in message.enum_type}
        values = {value.name for enum in enums.values() for value in enum.value}
        fields = {field.name for field in message.field}
        numbers = {f'{field.name.upper()}_FIELD_NUMBER' for field in message.field}
        expected[message.name] = fields | numbers | values
        expected |= {name: {value.name for value in enum.value} for name, enum in enums.items()}
    expected |= {enum.name: {each.name for each in enum.value} for enum in compiled().enum_type}
    assert found == expected


def declared(node: ast.ClassDef) -> set[str]:
    """The names a class of the stub annotates."""
    return {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
