"""CPU reference kernels."""
