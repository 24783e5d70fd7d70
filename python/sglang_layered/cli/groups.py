"""Groups of commands: whole summaries in `--help`, and commands that are imported only when they run."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

import click
from click.shell_completion import CompletionItem

from sglang_layered.errors import LayeredPrefillError

GROUP = "sglang_layered.commands"  # entry points: tables like this one, of packages beside the runtime
# Heading, then name: `module:attribute` and a line of help.
Table = Mapping[str, Mapping[str, tuple[str, str]]]
COMMANDS: Table = {
    "Install": {
        "patch": ("sglang_layered.cli.patch:patch", "Apply, revert, inspect or verify the patch set."),
        "doctor": ("sglang_layered.cli.doctor:doctor", "Say what is installed, patched and possible here."),
    },
}


@cache
def headings() -> Table:
    """Every command under its heading, of all tables."""
    found = {heading: dict(commands) for heading, commands in COMMANDS.items()}
    for point in entry_points(group=GROUP):
        for heading, commands in point.load().items():
            found.setdefault(heading, {}).update(commands)
    return found


@cache
def commands() -> Mapping[str, tuple[str, str]]:
    """Every command by name: `module:attribute` and a line of help."""
    return {name: entry for table in headings().values() for name, entry in table.items()}


class WholeGroup(click.Group):
    """A group whose `--help` wraps the first sentence of each command, where click cuts it to a line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the order in which they were added."""
        rows = [(name, command.get_short_help_str(sys.maxsize)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class LazyGroup(click.Group):
    """The commands of the tables: a command's module is imported when that command runs."""

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
            if ctx.resilient_parsing:  # a shell asks for completions, and has no use for a reason
                return None
            raise LayeredPrefillError(
                f"{cmd_name} needs the package {error.name}: pip install 'sglang-layered[lab]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands under their headings, without importing them."""
        width = max(map(len, commands()))
        for heading, table in headings().items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), summary) for name, (_, summary) in table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names and options from the tables: to import every command would take seconds."""
        found = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in commands().items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]
