"""Kernels of the layered-prefill runtime: one folder each, with wrapper, reference, test and benchmark."""
