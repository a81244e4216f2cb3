"""convert_imageset: write the images of a list to an LMDB or a LevelDB, as Datum records.

Source of flags, keys and lines: Caffe's tools/convert_imageset.cpp and util/io.cpp.
"""

from __future__ import annotations

import logging
import sys
from io import BytesIO

import numpy as np
from PIL import Image

from caffe_port import rng
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from caffe_port.ops import images
from caffe_port.ops.image_data import read_entries, shuffle
from caffe_port.proto.caffe_pb2 import Datum
from caffe_port.tools import flags, glog_command
from caffe_port.tools.new_database import create_database

LOG = logging.getLogger('caffe_port')
FLAGS: dict[str, flags.Value] = dict(
    gray=False,
    shuffle=False,
    backend='lmdb',
    resize_width=0,
    resize_height=0,
    check_size=False,
    encoded=False,
    encode_type='',
)
USAGE = """Convert a set of images to the leveldb/lmdb format used as input for Caffe.
usage: convert_imageset [FLAGS] ROOTFOLDER/ LISTFILE DB_NAME

Each line of LISTFILE is the name of an image, which is put behind ROOTFOLDER/, and its label.
"""


def main(arguments: list[str]) -> int:
    """Write a database; return 0, or 1 where there are too few arguments.

    An image that cannot be read is left out and named in the log, as in Caffe.
    """
    values, plain = flags.parse(arguments, dict(FLAGS, help=False))
    if values['help'] or len(plain) < 3:
        print(flags.usage(USAGE, FLAGS))
        return 1
    root, listing, target = plain[:3]
    entries = read_entries(listing)
    if values['shuffle']:
        LOG.info('Shuffling data')
        shuffle(entries, rng.Stream())
    LOG.info('A total of %d images.', len(entries))
    if values['encode_type'] and not values['encoded']:
        LOG.info('encode_type specified, assuming encoded=true.')
    size = values['resize_height'], values['resize_width']
    first: tuple[int, ...] | None = None
    with create_database(values['backend'], target) as database:
        for number, (name, label) in enumerate(entries):
            try:
                pixels = images.read_image(
                    root + name, not values['gray'], size if min(size) > 0 else None
                )
            except CaffeError as error:
                LOG.error('Could not open or find file %s', error)
                continue
            first = first or pixels.shape
            if values['check_size'] and pixels.size != np.prod(first):
                raise CaffeError(
                    f'{root + name}: Incorrect data field size: expected that of '
                    f'{format_shape(first)}, found {format_shape(pixels.shape)}'
                )
            datum = _encoded(pixels, root + name, values) or _raw(pixels)
            datum.label = label
            key = f'{number:08d}_{name}'.encode(errors='surrogateescape')
            if database.put(key, datum.SerializeToString()):
                LOG.info('Processed %d files.', database.count)
    if database.count % 1000:
        LOG.info('Processed %d files.', database.count)
    return 0


def _raw(pixels: np.ndarray) -> Datum:
    height, width, channels = pixels.shape
    data = pixels.transpose(2, 0, 1).tobytes()
    return Datum(channels=channels, height=height, width=width, data=data, encoded=False)


def _encoded(pixels: np.ndarray, path: str, values: dict) -> Datum | None:
    """Return an image encoded as the flags ask for, None if they do not.

    An image that keeps its size and has the type already keeps its bytes.
    """
    suffix = path.rpartition('/')[2].rpartition('.')[2].lower()
    kind = values['encode_type'].lower() or (suffix if values['encoded'] else '')
    if not kind:
        return None
    resized = values['resize_height'] > 0 or values['resize_width'] > 0
    if not resized and (suffix == kind or (kind, suffix) == ('jpg', 'jpeg')):
        with open(path, 'rb') as file:
            return Datum(data=file.read(), encoded=True)
    form = Image.registered_extensions().get(f'.{kind}')
    if form not in Image.SAVE:
        raise CaffeError(f'{path}: no type "{kind}" to encode an image as')
    buffer = BytesIO()
    rgb = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., 0]
    # As OpenCV writes a JPEG.
    settings = dict(quality=95, subsampling='4:2:0') if form == 'JPEG' else {}
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, form, **settings)
    return Datum(data=buffer.getvalue(), encoded=True)


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
