"""Grouping that adapts in every step: a step-time model learned online, budgets from deadlines, the policy.

Pure but for the files of calibrations and traces; the scheduler's side is `sglang_layered.scheduler.pacing`.
"""
