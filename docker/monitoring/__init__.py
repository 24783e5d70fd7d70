"""What compose.yaml, the Kubernetes objects and `sglang-layered monitoring` read; no code."""
