"""The order of the house: a file imports only from what stands above it, at its top."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# As DESIGN lists the rooms, from the foundation up. A folder stands for its files that are
# not named themselves; those come in the order in which they import each other.
ORDER = """
caffe_port/_checkout caffe_port/version caffe_port/errors caffe_port/command
caffe_port/plugins caffe_port/mode
caffe_port/proto caffe_port/parallel caffe_port/rng
caffe_port/blob caffe_port/net_spec caffe_port/coord_map
caffe_port/files caffe_port/prototxt
caffe_port/ops caffe_port/outputs caffe_port/module caffe_port/plan caffe_port/tape caffe_port/debug
caffe_port/batches caffe_port/net caffe_port/glog caffe_port/solving caffe_port/pyio
caffe_port/classifier caffe_port/draw caffe_port/verify caffe_port/export
caffe_port caffe_port/convert caffe_port/summary
nets surgery
solve/datasets solve/run solve/samples solve
""".split()
FILES = [
    path.relative_to(ROOT)
    for package in ('caffe_port', 'nets', 'surgery', 'solve')
    for path in sorted((ROOT / package).rglob('*.py'))
    if path.name != 'caffe_pb2.py'
]


def module_of(path):
    return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


MODULES = {module_of(path) for path in FILES} | {'caffe_port.proto.caffe_pb2'}


def room_of(module):
    """The number of the line of ORDER that a module is in."""
    name = module.replace('.', '/')
    while name not in ORDER:
        name = name.rpartition('/')[0]
    return ORDER.index(name)


def imports_of(path):
    """Each module of ours that a file imports, with the line, wherever in it that is."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f'{path}:{node.lineno}: a relative import'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition('.')[0]
            if name:
                yield name, node.lineno


@pytest.mark.parametrize('path', FILES, ids=str)
def test_a_file_imports_only_from_rooms_above(path):
    own = module_of(path)
    below = [
        f'{path}:{line}: {own} imports {name}, which stands below it'
        for name, line in imports_of(path)
        if room_of(name) > room_of(own)
    ]
    assert not below, '\n'.join(below)


def test_within_a_room_no_files_import_each_other_in_a_circle():
    graph = {module_of(path): {name for name, _ in imports_of(path)} for path in FILES}
    done = set()
    while len(done) < len(graph):
        free = [
            name
            for name in graph
            if name not in done and graph[name] - {name} <= done | {'caffe_port.proto.caffe_pb2'}
        ]
        assert free, f'in a circle: {", ".join(sorted(set(graph) - done))}'
        done.update(free)


@pytest.mark.parametrize('path', FILES, ids=str)
def test_imports_stand_at_the_top_and_name_modules(path):
    """None in a function, under TYPE_CHECKING or by a string, but for optional packages."""
    tree = ast.parse((ROOT / path).read_text())
    hidden = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            hidden += [
                inner
                for inner in ast.walk(node)
                if isinstance(inner, ast.ImportFrom)
                and (inner.module or '').split('.')[0] in ('caffe_port', 'nets', 'surgery', 'solve')
            ]
        if isinstance(node, ast.Name) and node.id == 'TYPE_CHECKING':
            hidden.append(node)
        if isinstance(node, ast.Call) and getattr(
            node.func, 'attr', getattr(node.func, 'id', '')
        ) in ('import_module', '__import__'):
            hidden.append(node)
    # Plugins are named by prototxts and entry points, optional packages by their extras.
    if path in (Path('caffe_port/plugins.py'), Path('caffe_port/files/stored.py')):
        hidden = []
    assert not hidden, '\n'.join(f'{path}:{node.lineno}: a hidden import' for node in hidden)
