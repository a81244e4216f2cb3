"""The data layers of the official nets, and the input of a deployed one.

Caffe looks the Python layers up by name (`voc_layers` and so on) when it builds a net.
Their `param_str` is a Python literal; a split ('train', ...) is the name of a list file.
"""

from __future__ import annotations

from typing import Any

from caffe_port.net_spec import Top
from caffe_port.net_spec import layers as L

SEED = 1337
VOC_MEAN_BGR = (104.00699, 116.66877, 122.67892)


def image(channels: int = 3) -> Top:
    """Make the input of a deployed net, 1 x channels x 500 x 500 until it is reshaped."""
    return L.Input(shape=dict(dim=[1, channels, 500, 500]))


def voc(
    split: str, sbdd_dir: str, voc_dir: str, seg11valid_from: str | None = None
) -> tuple[Top, ...]:
    """Make image and label: SBD's for the split 'train', PASCAL VOC's for any other.

    If VOC's folder has no list 'seg11valid', the layer makes it with the help of
    `seg11valid_from`, an SBD folder.
    """
    params: dict[str, Any] = dict(split=split, mean=VOC_MEAN_BGR, seed=SEED)
    if split == 'train':
        return python_layer('voc_layers', 'SBDDSegDataLayer', 2, sbdd_dir=sbdd_dir, **params)
    if split == 'seg11valid' and seg11valid_from is not None:
        params['sbdd_dir'] = seg11valid_from
    return python_layer('voc_layers', 'VOCSegDataLayer', 2, voc_dir=voc_dir, **params)


def nyud(split: str, tops: list[str], nyud_dir: str) -> tuple[Top, ...]:
    """Make `tops` of NYUDv2, each one of 'color', 'depth', 'hha' and 'label'."""
    params = dict(nyud_dir=nyud_dir, split=split, tops=tops, seed=SEED)
    return python_layer('nyud_layers', 'NYUDSegDataLayer', len(tops), **params)


def siftflow(split: str, siftflow_dir: str) -> tuple[Top, ...]:
    """Make image, semantic label and geometric label of SIFT Flow."""
    params = dict(siftflow_dir=siftflow_dir, split=split, seed=SEED)
    return python_layer('siftflow_layers', 'SIFTFlowSegDataLayer', 3, **params)


def pascalcontext(split: str, voc_dir: str, context_dir: str) -> tuple[Top, ...]:
    """Make image and label of PASCAL-Context, whose images are VOC 2010's."""
    params = dict(voc_dir=voc_dir, context_dir=context_dir, split=split, seed=SEED)
    return python_layer('pascalcontext_layers', 'PASCALContextSegDataLayer', 2, **params)


def python_layer(module: str, layer: str, ntop: int, **params: Any) -> tuple[Top, ...]:
    """Make a Python layer of `ntop` tops, with `params` as its param_str."""
    return L.Python(module=module, layer=layer, ntop=ntop, param_str=str(params))
