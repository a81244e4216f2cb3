"""The labels of a data set, for commands that need no net; without data, a drawn sample's."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.layer import SegDataLayer
from solve.run import experiments
from solve.run.inventory import EXPERIMENTS, open_layer
from solve.run.options import ROOT, name_option


@dataclass(frozen=True)
class GroundTruth:
    """The labels of a split, which `name` describes."""

    name: str
    layer: SegDataLayer
    top: int
    classes: Sequence[str]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield labels, H x W uint8, 255 for void, image by image."""
        for name in self.layer.ids:
            yield self.layer.load(name)[self.top][0, 0].astype(np.uint8)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add NET, whose data set it is, --train and the folders of the data sets."""
    add = parser.add_argument
    add(
        'net',
        metavar='NET',
        nargs='?',
        default='voc_fcn32s',
        help='its data (default: %(default)s)',
    )
    add('--train', action='store_true', help='the images it learns from (default: is scored on)')
    places = dict.fromkeys(place for data in experiments.DATA.values() for place in data.PLACES)
    for place in places:
        add(name_option(place), type=Path, metavar='DIR', help='default: data/ in the project')


def open_ground_truth(args: argparse.Namespace, draw) -> GroundTruth:
    """Open the labels that a command line names.

    draw(data set) draws a sample and returns its folders; it is called where no folder is given
    and none is in its default place.

    Raises CaffeError for an unknown experiment or a missing folder.
    """
    data = experiments.find_data(args.net)
    if data is None or args.net not in EXPERIMENTS:
        raise CaffeError(f'{args.net}: no experiment; those are {", ".join(EXPERIMENTS)}')
    given = {place: getattr(args, place) for place in data.PLACES if getattr(args, place)}
    places = {place: ROOT / folder for place, folder in data.PLACES.items()} | given
    what = ''
    if not given and not any(folder.exists() for folder in places.values()):
        places = {place: Path(folder) for place, folder in draw(args.net.split('_')[0]).items()}
        what = ' of the drawn sample'
    split = EXPERIMENTS[args.net].train if args.train else EXPERIMENTS[args.net].test
    layer = open_layer(split, places)
    tops = split.params.get('tops', split.layer.top_names)
    top = next(i for i, name in enumerate(tops) if name in ('label', 'sem'))
    classes = getattr(data, 'CLASSES', None) or data.SEMANTIC
    return GroundTruth(f'{split.name}{what}, {len(layer.ids)} images', layer, top, classes)
