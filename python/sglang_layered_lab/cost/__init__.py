"""What a step costs: the least by a device's rates, and what records showed by the scheduler's own model.

`cost`, `paper` and `gpu` ask it; a server never does. docs/cost-model.md defines all of it in symbols.
"""
