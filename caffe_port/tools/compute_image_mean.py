"""compute_image_mean: the mean image of a database of Datum records.

Source of flags and lines: Caffe's tools/compute_image_mean.cpp.
"""

from __future__ import annotations

import logging
import sys

import numpy as np

from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError, replacing
from caffe_port.ops.databases import Records, pixels_of
from caffe_port.proto.caffe_pb2 import BlobProto, DataParameter
from caffe_port.tools import flags, glog_command
from caffe_port.tools.new_database import BACKENDS

LOG = logging.getLogger('caffe_port')
FLAGS: dict[str, flags.Value] = dict(backend='lmdb')
USAGE = """Compute the mean_image of a set of images given by a leveldb/lmdb
usage: compute_image_mean [FLAGS] INPUT_DB [OUTPUT_FILE]
"""


def main(arguments: list[str]) -> int:
    """Log each channel's mean and write the mean image, a .binaryproto, if a file is named.

    Returns 0, or 1 for another number of arguments.
    """
    values, plain = flags.parse(arguments, dict(FLAGS, help=False))
    if values['help'] or len(plain) not in (1, 2):
        print(flags.usage(USAGE, FLAGS))
        return 1
    if values['backend'] not in BACKENDS:
        raise CaffeError(
            f'Unknown database backend "{values["backend"]}"; there are {", ".join(BACKENDS)}'
        )
    mean = mean_image(Records(DataParameter.DB.Value(values['backend'].upper()), plain[0]))
    if len(plain) == 2:
        LOG.info('Write to %s', plain[1])
        channels, height, width = mean.shape
        blob = BlobProto(num=1, channels=channels, height=height, width=width)
        blob.data.extend(mean.ravel().tolist())
        with replacing(plain[1]) as temporary:
            temporary.write_bytes(blob.SerializeToString())
    LOG.info('Number of channels: %d', len(mean))
    for channel, values_of in enumerate(mean):
        LOG.info('mean_value channel [%d]:%.6g', channel, values_of.mean(dtype=np.float64))
    return 0


def mean_image(records: Records) -> np.ndarray:
    """Return the mean of all images, channels x H x W, added up in float32 as in Caffe.

    Raises CaffeError, naming file and key, for a record that has no image of the first's size.
    """
    total, count = np.empty(0, np.float32), 0
    for datum in records.walk():
        where = records.where()
        image = pixels_of(datum, None, where)
        if not count:
            if datum.encoded:
                LOG.info('Decoding Datum')
            total = np.zeros(image.shape, np.float32)
            LOG.info('Starting Iteration')
        if image.shape != total.shape:
            raise CaffeError(
                f'{where}: Incorrect data field size: expected {format_shape(total.shape)} as the '
                f'first record has, found {format_shape(image.shape)}'
            )
        total += image
        count += 1
        if count % 10000 == 0:
            LOG.info('Processed %d files.', count)
    if count % 10000:
        LOG.info('Processed %d files.', count)
    return total / np.float32(count)


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
