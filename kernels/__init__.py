"""Kernels of the layered-prefill runtime: one folder a kernel, with wrapper, reference, test and benchmark."""
