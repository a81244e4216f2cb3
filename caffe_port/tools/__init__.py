"""Caffe's command line: `python -m caffe_port COMMAND`, with Caffe's own flags and log lines."""
