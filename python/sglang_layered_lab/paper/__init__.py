"""The paper's tables and figures, run again: studies, the comparison with its numbers, one report."""
