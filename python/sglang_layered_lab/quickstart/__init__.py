"""The quickstart: one model served in three modes, the same requests in each; a table, a record, a picture.

`scenario` says what is sent and which flags each server gets, `client` sends it and notes raw arrival times,
`metrics` turns raw times into figures, `record` keeps everything, `report` and `plot` show it, `run` wires
them together.
"""
