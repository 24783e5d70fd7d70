"""Recorded steps: what policy `auto` decided in each, and what another policy would have done."""
