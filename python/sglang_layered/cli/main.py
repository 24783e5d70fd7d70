"""Entry point of the console command; it knows the names of the command groups and nothing of their work."""

import sys
from importlib import import_module

import click

from sglang_layered import __version__
from sglang_layered.errors import LayeredPrefillError

INTERRUPTED = 130  # 128 and the number of SIGINT

COMMANDS = {
    "patch": ("sglang_layered.cli.patch", "patch", "Apply, revert, inspect or verify the patch set."),
    "doctor": ("sglang_layered.cli.doctor", "doctor", "Say what is installed, patched and possible here."),
    "make-model": (
        "sglang_layered.cli.make_model",
        "make_model",
        "Write a model with random weights to serve offline.",
    ),
    "calibrate-router": (
        "sglang_layered.cli.calibrate_router",
        "calibrate_router",
        "Make a random model's routers touch as many experts as real text does.",
    ),
    "quickstart": (
        "sglang_layered.cli.quickstart",
        "quickstart",
        "Serve one model in three modes and compare them.",
    ),
    "top": ("sglang_layered.top.cli", "top", "Watch a running server in the terminal."),
    "dashboard": (
        "sglang_layered.dashboard.cli",
        "dashboard",
        "Write, draw or check the Grafana dashboard.",
    ),
    "bench": ("sglang_layered.cli.bench", "bench", "Load servers and measure them; time kernels."),
    "reproduce": (
        "sglang_layered.cli.reproduce",
        "reproduce",
        "Measure the paper's tables and figures, and write a report.",
    ),
    "explain": (
        "sglang_layered.cli.traces",
        "explain",
        "Print what policy auto decided in each step of a trace.",
    ),
    "replay": (
        "sglang_layered.cli.traces",
        "replay",
        "Predict TTFT and TBT of another policy from a recorded trace.",
    ),
    "paper-duel": (
        "sglang_layered.cli.traces",
        "paper_duel",
        "Policy auto against fixed settings on the step times of a trace.",
    ),
    "cost": ("sglang_layered.cli.cost", "cost", "Fit step times to records, and predict prompts by them."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sglang-layered")
def cli() -> None:
    """Layered prefill for SGLang."""


def main() -> None:
    """Run the console command.

    Our own errors become text on stderr and exit status 1, Ctrl-C one line and 130, as shells have it.
    """
    try:
        sys.exit(cli.main(prog_name="sglang-layered", standalone_mode=False))
    except LayeredPrefillError as error:
        click.echo(f"sglang-layered: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # click makes it of KeyboardInterrupt
        click.echo("sglang-layered: stopped", err=True)
        sys.exit(INTERRUPTED)
