"""The benchmark: a spec in, one record out, metrics from raw times only. It knows servers by HTTP alone."""
