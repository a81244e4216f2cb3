"""The version, in a file that imports nothing, so that building needs no dependency."""

__version__ = '1.1.0.dev0'
