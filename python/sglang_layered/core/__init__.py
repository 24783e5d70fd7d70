"""The pure core: plans, policies, cohorts and the KV ledger. It imports neither torch nor sglang."""
