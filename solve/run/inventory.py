"""List what each experiment needs: weights and images, their sources, and what is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.files.checksum import compute_checksum
from solve.datasets import nyud, pascalcontext, siftflow, voc
from solve.datasets.layer import SegDataLayer


@dataclass(frozen=True)
class Weights:
    """A published weight file: its address and, where they are known, its bytes and checksum."""

    url: str
    nbytes: int | None = None
    checksum: str | None = None


@dataclass(frozen=True)
class ImageSplit:
    """The images of a data layer: their list, `files` by kind, and how many are published.

    `params` is what param_str has besides the folders. Of `lists`, the first that exists
    counts, else the last. Paths hold the names of folders and `{id}` in braces.
    """

    name: str
    layer: type[SegDataLayer]
    params: Mapping[str, Any]
    lists: tuple[str, ...]
    files: Mapping[str, str]
    images: int | None
    source: str

    def list_path(self, places: Mapping[str, Path]) -> Path:
        paths = [Path(each.format(**places)) for each in self.lists]
        return next((path for path in paths if path.is_file()), paths[-1])


@dataclass(frozen=True)
class Experiment:
    """What an experiment starts from (files in the project), trains on and is scored on."""

    start: tuple[str, ...]
    train: ImageSplit
    test: ImageSplit


@dataclass(frozen=True)
class Row:
    """One line of an experiment's table: a thing it needs, and its state.

    `state` is 'there', 'missing', 'part' (some files of many) or 'broken'; `size` is text;
    `remark` says what is wrong or notable; `url` is where to get what is not there.
    """

    what: str
    state: str
    size: str
    path: Path
    remark: str = ''
    url: str = ''


# Addresses: the release's files `caffemodel-url` and its README pages, Caffe's model zoo, and
# the VGG group's page. Checksums: the model zoo; OpenCV's tests for fcn8s-heavy-pascal.
_BERKELEY = 'http://dl.caffe.berkeleyvision.org'
_VGG16 = Weights(
    'http://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe/VGG_ILSVRC_16_layers.caffemodel',
    553432081,
    'sha256:a6196bc498e45ea4cb2637114ae8db9410cf1556fd60a55ae93272371beba197',
)
# By the places in the project where the scripts look for them. A script takes the plain
# classifier as well as its fully convolutional form: surgery turns one into the other.
WEIGHTS = {
    'data/ilsvrc-nets/vgg16-fcn.caffemodel': _VGG16,
    'data/ilsvrc-nets/vgg16.caffemodel': _VGG16,
    'data/ilsvrc-nets/caffenet-fcn.caffemodel': Weights(
        f'{_BERKELEY}/bvlc_reference_caffenet.caffemodel',
        checksum='sha1:4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46',
    ),
    'data/ilsvrc-nets/googlenet.caffemodel': Weights(
        f'{_BERKELEY}/bvlc_googlenet.caffemodel',
        checksum='sha1:405fc5acd08a3bb12de8ee5e23a96bec22f08204',
    ),
    'data/voc-fcn32s.caffemodel': Weights(f'{_BERKELEY}/fcn32s-heavy-pascal.caffemodel'),
    'data/voc-fcn16s.caffemodel': Weights(f'{_BERKELEY}/fcn16s-heavy-pascal.caffemodel'),
    'data/voc-fcn8s.caffemodel': Weights(
        f'{_BERKELEY}/fcn8s-heavy-pascal.caffemodel',
        checksum='sha1:c449ea74dd7d83751d1357d6a8c323fcf4038962',
    ),
    'data/voc-fcn8s-atonce.caffemodel': Weights(f'{_BERKELEY}/fcn8s-atonce-pascal.caffemodel'),
    'data/voc-fcn-alexnet.caffemodel': Weights(f'{_BERKELEY}/fcn-alexnet-pascal.caffemodel'),
    # The release publishes no weights of nyud-fcn32s-color-d.
    **{
        f'data/{name}.caffemodel': Weights(f'{_BERKELEY}/{name}-heavy.caffemodel')
        for name in (
            'nyud-fcn32s-color',
            'nyud-fcn32s-hha',
            'nyud-fcn32s-color-hha',
            'siftflow-fcn32s',
            'siftflow-fcn16s',
            'siftflow-fcn8s',
            'pascalcontext-fcn32s',
            'pascalcontext-fcn16s',
            'pascalcontext-fcn8s',
        )
    },
}
CLASSIFIERS = {
    'vgg16': 'data/ilsvrc-nets/vgg16.caffemodel',
    'caffenet': 'data/ilsvrc-nets/caffenet-fcn.caffemodel',
    'googlenet': 'data/ilsvrc-nets/googlenet.caffemodel',
}

_SBD = ImageSplit(
    'SBD train',
    voc.SBDDSegDataLayer,
    {'split': 'train'},
    ('{sbdd_dir}/train.txt',),
    {'images': '{sbdd_dir}/img/{id}.jpg', 'labels': '{sbdd_dir}/cls/{id}.mat'},
    8498,
    'http://www.cs.berkeley.edu/~bharath2/codes/SBD/download.html',
)
_SEG11VALID = ImageSplit(
    'VOC 2011 seg11valid',
    voc.VOCSegDataLayer,
    {'split': 'seg11valid', 'sbdd_dir': '{sbdd_dir}', 'expected': None},
    ('{voc_dir}/ImageSets/Segmentation/seg11valid.txt', '{voc_dir}/ImageSets/Segmentation/val.txt'),
    {'images': '{voc_dir}/JPEGImages/{id}.jpg', 'labels': '{voc_dir}/SegmentationClass/{id}.png'},
    voc.SEG11VALID_IMAGES,
    'http://host.robots.ox.ac.uk/pascal/VOC/voc2011/',
)


def _nyud(split: str, images: int | None, *tops: str) -> ImageSplit:
    return ImageSplit(
        f'NYUDv2 {split}',
        nyud.NYUDSegDataLayer,
        {'split': split, 'tops': [*tops, 'label']},
        (f'{{nyud_dir}}/{split}.txt',),
        {top: '{nyud_dir}/' + nyud.FILES[top].format('{id}') for top in (*tops, 'label')},
        images,
        f'{_BERKELEY}/nyud.tar.gz',
    )


def _siftflow(split: str, images: int | None) -> ImageSplit:
    return ImageSplit(
        f'SIFT Flow {split}',
        siftflow.SIFTFlowSegDataLayer,
        {'split': split},
        (f'{{siftflow_dir}}/{split}.txt',),
        {
            'images': f'{{siftflow_dir}}/Images/{siftflow.SCENES}/{{id}}.jpg',
            'semantic labels': f'{{siftflow_dir}}/SemanticLabels/{siftflow.SCENES}/{{id}}.mat',
            'geometric labels': f'{{siftflow_dir}}/GeoLabels/{siftflow.SCENES}/{{id}}.mat',
        },
        images,
        'http://www.cs.unc.edu/~jtighe/Papers/ECCV10/siftflow/SiftFlowDataset.zip',
    )


def _pascalcontext(split: str, images: int | None) -> ImageSplit:
    return ImageSplit(
        f'PASCAL-Context {split}',
        pascalcontext.PASCALContextSegDataLayer,
        {'split': split},
        (f'{{voc_dir}}/VOC2010/ImageSets/Main/{split}.txt',),
        {
            'images': '{voc_dir}/VOC2010/JPEGImages/{id}.jpg',
            'labels': '{context_dir}/trainval/{id}.mat',
        },
        images,
        'http://www.cs.stanford.edu/~roozbeh/pascal-context/ and '
        'http://host.robots.ox.ac.uk/pascal/VOC/voc2010/',
    )


def _on_voc(start: str) -> Experiment:
    return Experiment((start,), _SBD, _SEG11VALID)


def _on_nyud(*tops: str, start: tuple[str, ...]) -> Experiment:
    return Experiment(start, _nyud('trainval', None, *tops), _nyud('test', 654, *tops))


def _on_siftflow(start: str) -> Experiment:
    return Experiment((start,), _siftflow('trainval', None), _siftflow('test', 200))


def _on_pascalcontext(start: str) -> Experiment:
    return Experiment((start,), _pascalcontext('train', None), _pascalcontext('val', 5105))


_VGG16_FCN = 'data/ilsvrc-nets/vgg16-fcn.caffemodel'
EXPERIMENTS = {
    'voc_fcn32s': _on_voc(_VGG16_FCN),
    'voc_fcn16s': _on_voc('data/voc-fcn32s.caffemodel'),
    'voc_fcn8s': _on_voc('data/voc-fcn16s.caffemodel'),
    'voc_fcn8s_atonce': _on_voc(_VGG16_FCN),
    'voc_fcn_alexnet': _on_voc('data/ilsvrc-nets/caffenet-fcn.caffemodel'),
    'voc_fcn_googlenet': _on_voc('data/ilsvrc-nets/googlenet.caffemodel'),
    'nyud_fcn32s_color': _on_nyud('color', start=(_VGG16_FCN,)),
    'nyud_fcn32s_color_d': _on_nyud('color', 'depth', start=('data/ilsvrc-nets/vgg16.caffemodel',)),
    'nyud_fcn32s_hha': _on_nyud('hha', start=(_VGG16_FCN,)),
    'nyud_fcn32s_color_hha': _on_nyud(
        'color',
        'hha',
        start=('data/nyud-fcn32s-color.caffemodel', 'data/nyud-fcn32s-hha.caffemodel'),
    ),
    'siftflow_fcn32s': _on_siftflow(_VGG16_FCN),
    'siftflow_fcn16s': _on_siftflow('data/siftflow-fcn32s.caffemodel'),
    'siftflow_fcn8s': _on_siftflow('data/siftflow-fcn16s.caffemodel'),
    'pascalcontext_fcn32s': _on_pascalcontext(_VGG16_FCN),
    'pascalcontext_fcn16s': _on_pascalcontext('data/pascalcontext-fcn32s.caffemodel'),
    'pascalcontext_fcn8s': _on_pascalcontext('data/pascalcontext-fcn16s.caffemodel'),
}


def list_weights(name: str) -> dict[str, str]:
    """List the weight files of an experiment or classifier, with what each is for.

    An experiment has those it starts from and, if the release publishes them, the trained
    ones, to score and to label images without training.
    """
    if name in CLASSIFIERS:
        return {CLASSIFIERS[name]: 'the classifier'}
    found = dict.fromkeys(EXPERIMENTS[name].start, 'weights to start from')
    trained = f'data/{name.replace("_", "-")}.caffemodel'
    return {**found, trained: 'trained weights'} if trained in WEIGHTS else found


def weight_row(place: str, what: str, root: Path) -> Row:
    """Look at a weight file: is it there, can it be read, is it the published one?"""
    path, published = root / place, WEIGHTS[place]
    size = '' if published.nbytes is None else format_size(published.nbytes)
    if not path.is_file():
        part = path.with_name(f'{path.name}.part')
        remark = published.checksum or ''
        if part.is_file():
            remark = f'{format_size(part.stat().st_size)} of it are in {part.name}'
        return Row(what, 'missing', size, path, remark, published.url)
    size = format_size(path.stat().st_size)
    try:
        caffemodel.read(path)
    except CaffeError as error:
        return Row(what, 'broken', size, path, str(error), published.url)
    remark = ''
    if published.checksum:
        algorithm = published.checksum.partition(':')[0]
        same = compute_checksum(path, published.checksum) == published.checksum
        remark = f'{algorithm} as published' if same else f'{algorithm} is not the published one'
    return Row(what, 'there', size, path, remark)


def data_rows(split: ImageSplit, places: Mapping[str, Path]) -> list[Row]:
    """Look at a split: its list, and a file of every kind for each of its images."""
    path = split.list_path(places)
    try:
        ids = open_layer(split, places).ids
    except CaffeError as error:
        if not path.is_file():
            return [Row(f'{split.name}, list', 'missing', '', path, url=split.source)]
        return [Row(f'{split.name}, list', 'broken', '', path, str(error), split.source)]
    differs = split.images not in (None, len(ids))
    remark = f'{split.images} images are published' if differs else ''
    rows = [Row(f'{split.name}, list', 'there', f'{len(ids)} images', path, remark)]
    for kind, pattern in split.files.items():
        parent, name = os.path.split(pattern)
        folder = Path(parent.format(**places))
        found = _sizes(folder)
        wanted = [name.format(id=each) for each in ids]
        there = [found[each] for each in wanted if each in found]
        missing = next((each for each in wanted if each not in found), None)
        state = 'there' if missing is None else 'part' if there else 'missing'
        rows.append(
            Row(
                f'{split.name}, {kind}',
                state,
                format_size(sum(there)) if there else '',
                folder,
                ''
                if missing is None
                else f'{len(wanted) - len(there)} of {len(wanted)} files are not there, '
                f'first {missing}',
                '' if missing is None else split.source,
            )
        )
    return rows


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of a folder by name; nothing if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError:
        return {}


def open_layer(split: ImageSplit, places: Mapping[str, Path]) -> SegDataLayer:
    """Set up a split's data layer with the folders of `places`, without a net.

    Raises CaffeError as the layer does, for a list or table that is missing or broken.
    """
    layer = split.layer()
    own = {place: str(path) for place, path in places.items() if f'{{{place}}}' in str(split)}
    params = {
        key: value.format(**places) if isinstance(value, str) else value
        for key, value in split.params.items()
    }
    layer.param_str = repr({**own, **params, 'seed': 1337})
    layer.setup([], [None] * len(split.params.get('tops', split.layer.top_names)))
    return layer


def format_size(nbytes: float) -> str:
    """Return a number of bytes as text: 553.4 MB."""
    if nbytes < 1000:
        return f'{nbytes:.0f} bytes'
    for unit in ('kB', 'MB', 'GB'):
        nbytes /= 1000
        if nbytes < 1000:
            return f'{nbytes:.1f} {unit}'
    return f'{nbytes / 1000:.1f} TB'
