"""The Python data layers of the official nets.

Official prototxts name them by the release's modules, as voc_layers: entry points of setup.cfg
(group caffe_port.python_layers) say where those are, unless the path has modules of these names.
"""
