"""The experiments: solving, scoring and inference."""
