"""The order of the house: a file imports only from what stands above it, at its top."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The rooms as DESIGN lists them, from the foundation up: a file, a folder with all that is in
# it, or `folder/*`, the files of a folder that are not named themselves. Every file is in one.
ORDER = """
caffe_port/_checkout caffe_port/version caffe_port/errors caffe_port/command
caffe_port/plugins caffe_port/mode caffe_port/timer
caffe_port/proto caffe_port/parallel caffe_port/rng
caffe_port/blob caffe_port/param_blob caffe_port/net_spec caffe_port/coord_map
caffe_port/files caffe_port/prototxt
caffe_port/ops caffe_port/lowered caffe_port/outputs caffe_port/building caffe_port/module
caffe_port/tape caffe_port/plan caffe_port/debug caffe_port/aliases caffe_port/batches
caffe_port/net_weights
caffe_port/net
caffe_port/glog caffe_port/solving caffe_port/nccl caffe_port/pyio caffe_port/classifier
caffe_port/detector caffe_port/draw caffe_port/verify caffe_port/export caffe_port/zoo
caffe_port/tools caffe_port/__main__ caffe_port/__init__ caffe_port/convert caffe_port/summary
nets surgery
solve/_checkout solve/datasets solve/run solve/samples solve/launch solve/score solve/*
""".split()
PACKAGES = ('caffe_port', 'nets', 'surgery', 'solve')
# What may be imported where it is needed: optional packages, and what a start need not wait for.
# What may be imported by its name: what prototxts and entry points name, optional packages.
WHERE_NEEDED = {
    ('caffe_port/draw.py', '_drawn_by_matplotlib'): 'matplotlib.figure',
    ('caffe_port/pyio.py', 'resize_image'): 'scipy',
    ('solve/datasets/labels.py', 'read_mat'): 'scipy.io',
    ('solve/samples/scenes.py', 'borders'): 'scipy.ndimage',
    ('solve/samples/trees.py', 'write_mat'): 'scipy.io',
    ('solve/run/evaluation.py', 'Evaluation'): 'solve.run.figures',
    ('solve/run/job.py', 'Job'): 'solve.run.figures',
    ('solve/run/overlays.py', '_draw_legend'): 'matplotlib',
    ('caffe_port/ops/hdf5_data.py', '_h5py'): 'h5py',
    ('caffe_port/ops/databases.py', '_Lmdb'): 'lmdb',
    ('caffe_port/ops/databases.py', '_LevelDb'): 'plyvel',
    ('caffe_port/tools/new_database.py', '_Lmdb'): 'lmdb',
    ('caffe_port/tools/new_database.py', '_LevelDb'): 'plyvel',
}
BY_NAME = {('caffe_port/plugins.py', '_import'), ('caffe_port/files/stored.py', 'import_library')}
FILES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob('*.py'))
}


def name_of(module):
    return str(FILES[module].relative_to(ROOT))


def room_of(module):
    """Return the number of a module's room in ORDER, from 1; 0 for a file that is in none."""
    file = Path(name_of(module)).with_suffix('')
    rooms = [str(file), f'{file.parent}/*', *map(str, file.parents)]
    return next((ORDER.index(room) + 1 for room in rooms if room in ORDER), 0)


def imports_of(module):
    """Yield each module of the house that a module imports, wherever in it, with the line."""
    package = module if FILES[module].name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) - node.level + 1]
            source = '.'.join([*(above if node.level else []), *filter(None, [node.module])])
            names = [f'{source}.{alias.name}' for alias in node.names]
        for name in names:
            while name and name not in FILES:
                name = name.rpartition('.')[0]
            if name:
                yield name, node.lineno


def find_hidden(module):
    """Yield the line and fault of each import that is not at the top, or by a string."""
    file = name_of(module)

    def walk(node, top):
        for child in ast.iter_child_nodes(node):
            within = top
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                within = top or getattr(child, 'name', 'lambda')
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                names = [child.module or '.']
            if isinstance(child, ast.ImportFrom) and child.level:
                yield child.lineno, 'a relative import'
            elif top and names and [WHERE_NEEDED.get((file, top))] != names:
                yield child.lineno, f'{", ".join(names)} is imported in {top}'
            used = getattr(child, 'attr', getattr(child, 'id', getattr(child, 'name', '')))
            if used == 'TYPE_CHECKING' and not isinstance(child, ast.alias):
                yield child.lineno, 'an import for type checkers only'
            if used in ('import_module', '__import__') and (file, top) not in BY_NAME:
                yield child.lineno, 'an import by a string'
            yield from walk(child, within)

    yield from walk(ast.parse(FILES[module].read_text()), '')


def report(faults):
    assert not faults, '\n'.join(faults)


def test_files_import_only_from_rooms_above():
    rooms = {module: room_of(module) for module in FILES}
    faults = [f'{name_of(module)}:1: in no room of ORDER' for module in FILES if not rooms[module]]
    report(
        faults
        + [
            f'{name_of(module)}:{line}: imports {name}, which stands below'
            for module in FILES
            for name, line in imports_of(module)
            if rooms[name] and rooms[module] and rooms[name] > rooms[module]
        ]
    )


def test_no_files_import_each_other_in_a_circle():
    left = {module: {name for name, _ in imports_of(module)} - {module} for module in FILES}
    while free := [module for module, needs in left.items() if not needs & set(left)]:
        for module in free:
            del left[module]
    path = [*left][:1]
    while path and path[-1] not in path[:-1]:
        path.append(min(left[path[-1]] & set(left)))
    circle = path[path.index(path[-1]) :] if path else []
    report([f'{name_of(circle[0])}:1: in a circle: {" > ".join(circle)}'] if circle else [])


def test_imports_stand_at_the_top_and_name_modules():
    report(
        [
            f'{name_of(module)}:{line}: {fault}'
            for module in FILES
            for line, fault in find_hidden(module)
        ]
    )
