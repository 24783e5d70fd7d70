"""The laboratory's commands; `sglang-layered` finds this table by its entry point.

Each command is in the module that it names, imported only when it runs. A summary is one line of `--help`.
"""

_CLI = "sglang_layered_lab.cli"
COMMANDS = {
    "Try": {
        "quickstart": (f"{_CLI}.quickstart:quickstart", "Serve one model in three modes and compare them."),
        "make-model": (
            f"{_CLI}.make_model:make_model",
            "Write a model with random weights to serve offline.",
        ),
        "make-draft": (f"{_CLI}.make_draft:make_draft", "Write a draft that guesses for such a model."),
        "calibrate-router": (
            f"{_CLI}.calibrate_router:calibrate_router",
            "Make such a model touch as many experts as real text.",
        ),
    },
    "Watch": {
        "top": ("sglang_layered_lab.watch.cli:top", "Watch a running server in the terminal."),
        "monitoring": (
            f"{_CLI}.monitoring:monitoring",
            "Write Prometheus' and Grafana's files; draw the dashboard.",
        ),
        "dashboard": ("sglang_layered_lab.dashboard.cli:dashboard", "Make or check the Grafana dashboard."),
        "explain": (f"{_CLI}.traces:explain", "Print what policy auto decided in each step of a trace."),
    },
    "Measure": {
        "bench": (f"{_CLI}.bench:bench", "Load servers and measure them; time kernels."),
        "report": (f"{_CLI}.bench_report:report", "Write one HTML page of measurements."),
        "reproduce": (f"{_CLI}.reproduce:reproduce", "Measure the paper's tables and figures."),
    },
    "Predict": {
        "replay": (f"{_CLI}.traces:replay", "Predict the times of another policy from a trace."),
        "paper-duel": (f"{_CLI}.traces:paper_duel", "Set policy auto against fixed settings on a trace."),
        "cost": (f"{_CLI}.cost:cost", "Fit step times to records, and predict prompts by them."),
        "simulate": (f"{_CLI}.simulate:simulate", "Run policies, routers and replicas in simulated time."),
    },
}
