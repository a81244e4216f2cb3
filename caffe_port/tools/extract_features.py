"""extract_features: write blobs of a net, row by row, to databases of Datum records.

Source of arguments, keys and lines: Caffe's tools/extract_features.cpp.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack

import numpy as np
import torch

from caffe_port import mode
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import Datum
from caffe_port.tools import glog_command
from caffe_port.tools.new_database import NewDatabase, create_database

LOG = logging.getLogger('caffe_port')
USAGE = """This program takes in a trained network and an input data layer, and then extracts \
features of the input data produced by the net.
usage: extract_features  pretrained_net_param  feature_extraction_proto_file  \
extract_feature_blob_name1[,name2,...]  save_feature_dataset_name1[,name2,...]  \
num_mini_batches  db_type  [CPU/GPU] [DEVICE_ID=0]
Note: several blobs may be extracted in one pass, to as many datasets; names are separated by \
commas and hold no white space."""


def main(arguments: list[str]) -> int:
    """Write the databases; return 0, or 1 where there are too few arguments."""
    if len(arguments) < 6:
        print(USAGE)
        return 1
    weights, proto, blobs, datasets, count, backend, *device = arguments
    _choose_device(device)
    net = Net(proto, mode.TEST)
    net.copy_from(weights)
    names, targets = blobs.split(','), datasets.split(',')
    if len(names) != len(targets):
        raise CaffeError(
            'the number of blob names and dataset names must be equal, found '
            f'{len(names)} and {len(targets)}'
        )
    for name in names:
        if name not in net.blobs:
            raise CaffeError(f'Unknown feature blob name {name} in the network {proto}')
    batches = _number('num_mini_batches', count)
    with ExitStack() as stack:
        opened = {}
        for name, target in zip(names, targets):
            LOG.info('Opening dataset %s', target)
            opened[target] = name, stack.enter_context(create_database(backend, target))
        LOG.info('Extracting Features')
        for _ in range(batches):
            with torch.no_grad():
                net.forward_range()
            for name, database in opened.values():
                _put_rows(net.blobs[name].data, name, database)
    for name, database in opened.values():
        if database.count % 1000:
            _log_count(name, database)
    LOG.info('Successfully extracted the features!')
    return 0


def _choose_device(device: list[str]) -> None:
    if device[:1] == ['GPU']:
        number = _number('DEVICE_ID', device[1]) if device[1:] else 0
        LOG.info('Using GPU')
        LOG.info('Using Device_id=%d', number)
        mode.set_device(number)
        mode.set_mode_gpu()
    else:
        LOG.info('Using CPU')
        mode.set_mode_cpu()


def _number(what: str, text: str) -> int:
    if not text.isdecimal():
        raise CaffeError(f'{what}: expected a number, found "{text}"')
    return int(text)


def _put_rows(values: np.ndarray, name: str, database: NewDatabase) -> None:
    """Put each row of a blob, which counts as N x channels x height x width, as a Datum."""
    if values.ndim > 4:
        raise CaffeError(f'{name}: expected at most 4 axes, found {format_shape(values.shape)}')
    rows = values.reshape(*values.shape, *(1,) * (4 - values.ndim))
    _, channels, height, width = rows.shape
    for row in rows:
        datum = Datum(
            channels=channels, height=height, width=width, float_data=row.ravel().tolist()
        )
        if database.put(f'{database.count:010d}'.encode(), datum.SerializeToString()):
            _log_count(name, database)


def _log_count(name: str, database: NewDatabase) -> None:
    LOG.info('Extracted features of %d query images for feature blob %s', database.count, name)


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
