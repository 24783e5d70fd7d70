"""Runs one layered step on the model: layer ranges, rows, attention. It knows tensors and no requests."""
