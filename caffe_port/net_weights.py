"""Copy, load, save and share the weights of a Net."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from caffe_port import lowered, mode
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, hdf5, weights
from caffe_port.files.stored import StoredBlob, StoredLayer, without_padding
from caffe_port.module import NetModule
from caffe_port.param_blob import ParamBlob

LOG = logging.getLogger('caffe_port')


@dataclass
class LayerFace:
    """A layer as pycaffe shows it: its type and its parameter blobs."""

    type: str
    blobs: list[ParamBlob]


class NetWeights:
    """What Net does with weights: copy, load, save and share them.

    `layers` are the layers in order, `layer_dict` has them by name, and `params` has the blobs
    of those that have any.
    """

    module: NetModule
    layers: list[LayerFace]
    layer_dict: OrderedDict[str, LayerFace]
    params: OrderedDict[str, list[ParamBlob]]
    _layer_names: list[str]

    def load_layers(self, layers: Iterable[StoredLayer]) -> None:
        """Read the blobs of layers that have been fitted to this net straight into place."""
        for layer in layers:
            for stored, blob in zip(layer.blobs, self.params[layer.name]):
                blob.load(stored)

    def copy_from(self, file: str | os.PathLike) -> None:
        """Copy parameters by layer name from a weight file of any kind; nothing on error.

        The suffixes .pth, .pt, .safetensors and .npz say what a file is; any other is Caffe's.
        Layers that only the net has stay as they are, those that only the file has are
        logged. Shapes must agree, except for the 1s with which old files pad shapes to
        4 axes.
        """
        self._copy(weights.read_layers(file), file)

    def load_hdf5(self, path: str | os.PathLike) -> None:
        """Copy parameters by layer name from an HDF5 file, whatever its suffix."""
        self._copy(hdf5.read(path), path)

    def _copy(self, layers: Iterable[StoredLayer], weights: str | os.PathLike) -> None:
        planned = []
        first: dict[str, list[ParamBlob]] = {}  # the first layer of a name gets them, as in Caffe
        for name, face in zip(self._layer_names, self.layers):
            if face.blobs:
                first.setdefault(name, face.blobs)
        for layer in layers:
            if layer.name not in self.layer_dict:
                LOG.info('Ignoring source layer %s', layer.name)
                continue
            target = first.get(layer.name, [])
            if len(layer.blobs) != len(target):
                raise CaffeError(
                    f'{weights}: {layer.name}: expected {len(target)} blobs, '
                    f'found {len(layer.blobs)}'
                )
            for i, (stored, blob) in enumerate(zip(layer.blobs, target)):
                if without_padding(stored.shape, len(blob.shape)) != blob.shape:
                    hint = '; to learn the layer from scratch, rename it in the net'
                    if stored.count == blob.count:
                        hint = (
                            '; the counts agree: run surgery.transplant from a net of the '
                            "file's shapes"
                        )
                    raise CaffeError(
                        f'{weights}: {layer.name}: blob {i}: expected {blob.shape}, '
                        f'found {stored.shape}{hint}'
                    )
                planned.append((stored, blob))
        for stored, blob in planned:
            blob.load(stored)

    def cast_weights(self) -> None:
        """Hold the blobs of layers that compute in 16 bits in these, where that is the precision.

        Otherwise every forward casts them anew, as training needs it. A blob that another kind
        of layer shares stays as it is. In fp32 and tf32 this does nothing.
        """
        dtype = mode.low_dtype()
        if dtype is None:
            return
        self.module.flush()
        casts = {id(blob): blob for node in self.module.nodes for blob in node.op.blobs()}
        for node in self.module.nodes:
            if node.type not in lowered.PRODUCTS or node.op.views:
                for blob in node.op.blobs():
                    casts.pop(id(blob), None)
        for parameter in casts.values():
            parameter.data = lowered.lower(parameter.data, dtype)

    def save(
        self, path: str | os.PathLike, diffs: Mapping[str, list[np.ndarray]] | None = None
    ) -> None:
        """Write the parameters in the kind of file that the suffix says, else as a .caffemodel.

        A .caffemodel and an .h5 hold the net too; `diffs`, by layer as `params`, are stored
        beside the values there. Raises CaffeError if two layers with parameters share a name.
        """
        if os.fspath(path).endswith(tuple(weights.WRITERS)):
            self._write_named(path)
        else:
            write = hdf5.write_hdf5 if os.fspath(path).endswith('.h5') else caffemodel.write
            self._write(write, path, diffs)

    def _write_named(self, path: str | os.PathLike) -> None:
        self.find_owners(f'{path}: not written')
        layers = [
            StoredLayer(name, '', [StoredBlob.of_array(name, blob.data) for blob in blobs])
            for name, blobs in self.params.items()
        ]
        names = {node.name: node.op.blob_names for node in self.module.nodes}
        weights.write(path, layers, names=names)

    def save_hdf5(self, path: str | os.PathLike) -> None:
        """Write net and parameters as HDF5, whatever the suffix."""
        self._write(hdf5.write_hdf5, path, None)

    def _write(self, write: Callable, path: str | os.PathLike, diffs) -> None:
        self.find_owners(f'{path}: not written')
        write(
            path,
            self.module.param,
            {name: [blob.data for blob in blobs] for name, blobs in self.params.items()},
            diffs,
        )

    def find_owners(self, where: str) -> dict[str, LayerFace]:
        """Return the layers with parameters by name, in the net's order.

        Raises CaffeError, which begins with `where`, if two of them share a name.
        """
        found: dict[str, LayerFace] = {}
        for name, layer in zip(self._layer_names, self.layers):
            if layer.blobs and name in found:
                raise CaffeError(
                    f'{where}: two layers with parameters are named "{name}", and weights are '
                    'found by name'
                )
            if layer.blobs:
                found[name] = layer
        return found

    def share_with(self, net: NetWeights) -> None:
        """Use the memory of `net`'s parameters for layers of the same name.

        Raises CaffeError, and shares nothing, if such layers differ in their blobs.
        """
        for name, others in net.params.items():
            own = self.params.get(name, [])
            if name in self.layer_dict and len(own) != len(others):
                raise CaffeError(
                    f'share_with: {name}: expected {len(own)} blobs, found {len(others)}'
                )
            for i, (blob, other) in enumerate(zip(own, others)):
                if blob.shape != other.shape:
                    raise CaffeError(
                        f'share_with: {name}: blob {i}: expected {blob.shape}, found {other.shape}'
                    )
        for name, own in self.params.items():
            for blob, other in zip(own, net.params.get(name, ())):
                blob.share(other)
