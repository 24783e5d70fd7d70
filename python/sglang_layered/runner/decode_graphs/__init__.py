"""Decode rows of a layered step by CUDA graphs: layers below and above the group, for any cut."""
