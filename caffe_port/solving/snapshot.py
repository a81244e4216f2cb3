"""Write and read the three files of a snapshot: weights, solver state and resume file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from caffe_port.errors import CaffeError, make_folder, replacing
from caffe_port.files import caffemodel
from caffe_port.files.checksum import digest_file
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving import resume
from caffe_port.solving.update import Update


def name_files(param: SolverParameter, iteration: int) -> tuple[str, Path]:
    """Return the paths of a snapshot's weights and solver state, as Caffe names them."""
    suffix = '.h5' * (param.snapshot_format == SolverParameter.HDF5)
    stem = f'{param.snapshot_prefix or "snapshot"}_iter_{iteration}'
    return f'{stem}.caffemodel{suffix}', Path(f'{stem}.solverstate{suffix}')


def write(
    model: str, state: Path, net: Net, update: Update, kept: dict, current_step: int, diffs: bool
) -> None:
    """Write weights, with their diffs if asked, state and resume file, whose content is `kept`.

    Each is there whole or not at all. The state comes last: with it the snapshot is complete.
    Raises WriteError where the disk refuses.
    """
    make_folder(state.parent)
    params = net.params.items() if diffs else ()
    net.save(model, {name: [blob.diff for blob in blobs] for name, blobs in params} or None)
    hdf5 = state.suffix == '.h5'
    write_state = caffemodel.write_state_hdf5 if hdf5 else caffemodel.write_state
    with replacing(state) as temporary:
        write_state(state, kept['iter'], model, update.arrays(), current_step)
        digests = {'caffemodel': digest_file(model), 'solverstate': digest_file(temporary)}
        resume.write(resume.name_resume_file(state), kept, digests)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as read: all of it has been checked but the weights, and layers' states."""

    iter: int
    current_step: int
    history: dict[int, tuple[Tensor, ...]]
    model: Path | None  # the weights' file
    resume_file: Path
    kept: dict | None  # the resume file's content, if there is one


def read(path: Path, net: Net, update: Update, kind: str) -> Snapshot:
    """Read the snapshot of a solver state, Caffe's or ours, for a solver of type `kind`.

    Its weights are looked for beside it, so that a run may be moved, then where it names them.
    Raises CaffeError if a file is broken, or does not belong to the others or to the solver.
    """
    state = caffemodel.read_state(path)
    for name in 'iter', 'current_step':
        if getattr(state, name) < 0:
            raise CaffeError(f'{path}: {name} is {getattr(state, name)}, must not be negative')
    history = update.read(state.history, path, net.name)
    model = None
    if state.learned_net:
        named = Path(state.learned_net)
        model = path.parent / named.name
        if not os.path.exists(model):
            model = named
    resume_file = resume.name_resume_file(path)
    kept = resume.read(resume_file, state.iter)
    if kept is not None:
        if kept['type'] not in (None, kind):
            raise CaffeError(f'{path}: of a solver of type {kept["type"]}, this one is {kind}')
        resume.check_file(kept, resume_file, 'solverstate', path)
        if model is not None:
            resume.check_file(kept, resume_file, 'caffemodel', model)
    return Snapshot(state.iter, state.current_step, history, model, resume_file, kept)
