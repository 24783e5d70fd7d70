"""Many replicas of a layered server in simulated time: the policies' own classes, step times from records.

It starts no server and knows no KV pressure, no prefix cache and no aborted request.
"""
