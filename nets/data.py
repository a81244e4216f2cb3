"""The data layers the official nets begin with, and the input of a deployed one.

The Python layers themselves are looked up by name (`voc_layers` and so on) when a
net is built. Their `param_str` is a Python literal; split 'train' and the like
name the list file of a data set.
"""

from __future__ import annotations

from typing import Any

from caffe_port.net_spec import Top
from caffe_port.net_spec import layers as L

SEED = 1337
VOC_MEAN_BGR = (104.00699, 116.66877, 122.67892)


def image(channels: int = 3) -> Top:
    """The input of a deployed net, 1 x channels x 500 x 500 until it is reshaped."""
    return L.Input(shape=dict(dim=[1, channels, 500, 500]))


def voc(
    split: str, sbdd_dir: str, voc_dir: str, seg11valid_from: str | None = None
) -> tuple[Top, Top]:
    """Image and label: SBD's for the split 'train', PASCAL VOC's for any other.

    `seg11valid_from`, an SBD folder, lets the layer derive the list of the split
    'seg11valid' where VOC's folder has no such file.
    """
    params: dict[str, Any] = dict(split=split, mean=VOC_MEAN_BGR, seed=SEED)
    if split == 'train':
        return _python('voc_layers', 'SBDDSegDataLayer', 2, sbdd_dir=sbdd_dir, **params)
    if split == 'seg11valid' and seg11valid_from is not None:
        params['sbdd_dir'] = seg11valid_from
    return _python('voc_layers', 'VOCSegDataLayer', 2, voc_dir=voc_dir, **params)


def nyud(split: str, tops: list[str], nyud_dir: str) -> tuple[Top, ...]:
    """The named tops of NYUDv2, of 'color', 'depth', 'hha' and 'label', in that order."""
    return _python(
        'nyud_layers',
        'NYUDSegDataLayer',
        len(tops),
        nyud_dir=nyud_dir,
        split=split,
        tops=tops,
        seed=SEED,
    )


def siftflow(split: str, siftflow_dir: str) -> tuple[Top, Top, Top]:
    """Image, semantic label and geometric label of SIFT Flow."""
    return _python(
        'siftflow_layers',
        'SIFTFlowSegDataLayer',
        3,
        siftflow_dir=siftflow_dir,
        split=split,
        seed=SEED,
    )


def pascalcontext(split: str, voc_dir: str, context_dir: str) -> tuple[Top, Top]:
    """Image and label of PASCAL-Context, whose images are VOC 2010's."""
    return _python(
        'pascalcontext_layers',
        'PASCALContextSegDataLayer',
        2,
        voc_dir=voc_dir,
        context_dir=context_dir,
        split=split,
        seed=SEED,
    )


def _python(module: str, layer: str, ntop: int, **params: Any) -> tuple[Top, ...]:
    return L.Python(module=module, layer=layer, ntop=ntop, param_str=str(params))
