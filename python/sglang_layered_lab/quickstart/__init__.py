"""The quickstart: one model served in three modes, the same requests in each; a table, records, a picture.

`quickstart.toml` is the sweep, sent by the benchmark's client; `machine` fits it to this machine, `run` plays
it one server after another, `figures` turns raw times into figures and shows them.
"""

MODES = ("whole", "mixed", "layered")
SIZES = {"full": 2048, "half": 1024}  # tokens of the long prompt; half is for slow CPUs
