"""Entry point of the console command; it knows the names of the command groups and nothing of their work."""

import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

import click

from sglang_layered import __version__
from sglang_layered.errors import LayeredPrefillError

INTERRUPTED = 130  # 128 and the number of SIGINT

GROUP = "sglang_layered.commands"  # entry points: tables like this one, of packages beside the runtime
COMMANDS = {
    "patch": ("sglang_layered.cli.patch:patch", "Apply, revert, inspect or verify the patch set."),
    "doctor": ("sglang_layered.cli.doctor:doctor", "Say what is installed, patched and possible here."),
}


@cache
def commands() -> dict[str, tuple[str, str]]:
    """Every command by name: `module:attribute` and a line of help."""
    found = dict(COMMANDS)
    for point in entry_points(group=GROUP):
        found |= point.load()
    return found


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the tables."""
        return list(commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None for an unknown name.

        Raises:
            LayeredPrefillError: a package that it needs is not installed.
        """
        if cmd_name not in commands():
            return None
        module, attribute = commands()[cmd_name][0].split(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise LayeredPrefillError(
                f"{cmd_name} needs the package {error.name}: pip install 'sglang-layered[lab]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in commands().items()])


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
