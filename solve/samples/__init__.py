"""Drawn data sets, and what a sample changes of its experiment."""
