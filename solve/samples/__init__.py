"""Drawn data sets, and what a sample changes in its experiment."""
