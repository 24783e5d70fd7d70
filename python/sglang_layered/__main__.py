"""`python -m sglang_layered` is the console command `sglang-layered`."""

from sglang_layered.cli.main import main

main()
