"""The laboratory's commands; `sglang-layered` finds this table by its entry point.

Each command is in the module that it names, imported only when it runs.
"""

COMMANDS = {
    "make-model": (
        "sglang_layered_lab.cli.make_model:make_model",
        "Write a model with random weights to serve offline.",
    ),
    "make-draft": (
        "sglang_layered_lab.cli.make_draft:make_draft",
        "Write a draft for speculative decoding of such a model.",
    ),
    "calibrate-router": (
        "sglang_layered_lab.cli.calibrate_router:calibrate_router",
        "Make a random model's routers touch as many experts as real text does.",
    ),
    "quickstart": (
        "sglang_layered_lab.cli.quickstart:quickstart",
        "Serve one model in three modes and compare them.",
    ),
    "top": ("sglang_layered_lab.watch.cli:top", "Watch a running server in the terminal."),
    "dashboard": (
        "sglang_layered_lab.dashboard.cli:dashboard",
        "Write or check the Grafana dashboard.",
    ),
    "bench": ("sglang_layered_lab.cli.bench:bench", "Load servers and measure them; time kernels."),
    "report": (
        "sglang_layered_lab.cli.bench_report:report",
        "Write one HTML page of measurements.",
    ),
    "reproduce": (
        "sglang_layered_lab.cli.reproduce:reproduce",
        "Measure the paper's tables and figures, and write a report.",
    ),
    "explain": (
        "sglang_layered_lab.cli.traces:explain",
        "Print what policy auto decided in each step of a trace.",
    ),
    "replay": (
        "sglang_layered_lab.cli.traces:replay",
        "Predict TTFT and TBT of another policy from a recorded trace.",
    ),
    "paper-duel": (
        "sglang_layered_lab.cli.traces:paper_duel",
        "Policy auto against fixed settings on the step times of a trace.",
    ),
    "cost": (
        "sglang_layered_lab.cli.cost:cost",
        "Fit step times to records, and predict prompts by them.",
    ),
    "simulate": (
        "sglang_layered_lab.cli.simulate:simulate",
        "Policies, routers and many replicas in simulated time.",
    ),
}
