"""The nets of the official FCN release, one file each, and the classifiers they start from.

Each fcn(split, ...) takes the places of its data, and for narrow nets `width` (channels of
the first convolution), `fc` (channels of fc6 and fc7) and `drop` (the share they drop; so few
channels learn little with the official half). PASCAL VOC's take `classes` too, for other data.

load(name, weights) returns one of them, as deployed, as a torch module in eval mode.
"""

from caffe_port.zoo import load as load
