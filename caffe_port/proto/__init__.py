"""Caffe's messages: caffe.proto, and caffe_pb2 compiled from it."""

from caffe_port.proto import caffe_pb2

__all__ = ['caffe_pb2']
