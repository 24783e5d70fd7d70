"""The `sglang-layered` console command: one module per command group, loaded when used."""
