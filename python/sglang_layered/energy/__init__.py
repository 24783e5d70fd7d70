"""Energy of GPUs (NVML) and CPU packages (RAPL): where it is read, how it adds up, what is said of it.

It knows no request, tensor, torch or sglang, and loads pynvml only to look for GPUs.
"""
