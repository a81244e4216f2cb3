"""What a run of finetune.py trains: a net with own classes, on own pictures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from caffe_port import plugins
from caffe_port.errors import CaffeError, replacing
from caffe_port.proto.caffe_pb2 import NetParameter
from nets.data import SEED
from solve.datasets import folder as own
from solve.datasets.images import VOID
from solve.run import experiments
from solve.run.adaptation import FINER

# The file of a run's folder that holds its plan.
PLAN = 'finetune.json'


@dataclass(frozen=True)
class Plan:
    """What a run of finetune.py trains: it is written to the run's folder, to resume from."""

    net: str
    classes: list[str]
    table: dict[int | str, int]  # numbers in the masks to classes, empty for the same
    keep_classes: bool = False
    weights: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)  # widths, of fcn()
    constants: dict[str, Any] = field(default_factory=dict)  # of the solver

    def write(self, path: Path) -> None:
        """Write the plan as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read what `write` has written; raise CaffeError for anything else."""
        try:
            held = json.loads(path.read_text())
            table = {
                key if key == own.OTHERS else int(key): value
                for key, value in held['table'].items()
            }
            return cls(**{**held, 'table': table})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CaffeError(f'{path}: not the plan of a run of finetune.py: {error}') from error

    def make_net_param(self, split: str, lists_dir: Path) -> NetParameter:
        """Make the net for `split` with own classes; its pairs are in `lists_dir`."""
        fcn = find_net(self.net)
        param = fcn(split, classes=len(self.classes), **self.arguments)
        if split == 'deploy':
            return param
        data = param.layer[0].python_param
        data.module, data.layer = 'folder_layers', own.FolderSegDataLayer.__name__
        data.param_str = str(
            dict(
                split=split,
                lists_dir=str(lists_dir),
                classes=len(self.classes),
                map=self.table,
                mean=own.MEAN,
                seed=SEED,
            )
        )
        if not any(layer.type == 'Scale' for layer in param.layer):
            for layer in param.layer:
                for learnt in layer.param if layer.name in FINER else ():
                    learnt.lr_mult *= FINER[layer.name]
        return param


def find_net(name: str) -> Any:
    """Return the fcn() of an experiment that takes `classes`; raise CaffeError for any other."""
    fcn = experiments.find_fcn(name)
    if fcn and 'classes' in inspect.signature(fcn).parameters:
        return fcn
    usable = [
        known
        for known in sorted(plugins.find_entry_points(plugins.NETS_GROUP))
        if (found := experiments.find_fcn(known))
        and 'classes' in inspect.signature(found).parameters
    ]
    raise CaffeError(
        f'--net {name}: not a net whose number of classes is open; those are {", ".join(usable)}'
    )


def parse_map(text: str | None, classes: Sequence[str]) -> dict[int | str, int]:
    """Read `7=0,8=1,*=255`: numbers in masks to classes; `*` is all others.

    Raises CaffeError for anything else, a number that comes twice, and a class that is none.
    """
    table: dict[int | str, int] = {}
    for part in text.split(',') if text else ():
        left, _, right = (piece.strip() for piece in part.partition('='))
        key: int | str = int(left) if left.isdecimal() else left
        if not right.isdecimal() or (isinstance(key, str) and key != own.OTHERS):
            raise CaffeError(f'--map {part!r}: expected NUMBER=CLASS or *=CLASS, as 7=0,8=1,*=255')
        if key in table:
            raise CaffeError(f'--map {text}: {left} is in it twice')
        if int(right) >= len(classes) and int(right) != VOID:
            raise CaffeError(
                f'--map {part}: no class {right}; there are 0..{len(classes) - 1} and {VOID} (void)'
            )
        table[key] = int(right)
    return table
