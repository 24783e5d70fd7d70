"""What a step costs: work counted from sizes, seconds from rates that are physical or fitted to records.

`shape`, `coverage`, `step`, `costs`, `model`, `ways`, `predict` and `devices` need the standard library only
and know no clock, file or tensor: a scheduler can ask them. `fit` and `paper` need numpy and scipy, `duel`,
`records` and `report` read the benchmark's records. docs/cost-model.md defines all of it in symbols.
"""
