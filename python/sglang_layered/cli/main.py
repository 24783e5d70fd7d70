"""Entry point of the console command; it knows how a command ends and nothing of any command's work."""

import sys

import click

from sglang_layered import __version__
from sglang_layered.cli.groups import LazyGroup
from sglang_layered.errors import LayeredPrefillError

INTERRUPTED = 130  # 128 and the number of SIGINT


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sglang-layered")
def cli() -> None:
    """Layered prefill for SGLang."""


def main() -> None:
    """Run the console command. docs/commands.md lists the exit statuses.

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
