"""Layered mode over pipeline stages: a cohort stays in a stage for one group a tick, then moves on."""
