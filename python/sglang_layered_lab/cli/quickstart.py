"""`sglang-layered quickstart`: reads options, calls the quickstart, and nothing more."""

from pathlib import Path

import click
from rich.console import Console

from sglang_layered_lab.quickstart import MODES, SIZES


@click.command()
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(MODES), help="Only this mode; may be repeated."
)
@click.option("--keep", is_flag=True, help="Leave the last server running and say how to use and stop it.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/quickstart"), show_default=True)
@click.option("--repetitions", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option(
    "--model-path", type=click.Path(path_type=Path, exists=True), help="Default: a demo model, made here."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the servers; default: any free one.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="auto: float32 on a CPU without bfloat16 products, where it is several times faster.",
)
@click.option(
    "--size",
    type=click.Choice(["auto", *SIZES]),
    default="auto",
    show_default=True,
    help="auto: prompts half as long on a CPU without bfloat16 products.",
)
@click.option(
    "--page", type=click.Path(path_type=Path), help="Also write a page that plays the tokens in a browser."
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, exists=True),
    help="Serve nothing: write --page of an earlier quickstart, from its folder.",
)
def quickstart(
    modes: tuple[str, ...],
    keep: bool,
    out: Path,
    repetitions: int,
    model_path: Path | None,
    port: int | None,
    dtype: str,
    size: str,
    page: Path | None,
    record: Path | None,
) -> None:
    """Serve one model in three modes, one after another, and compare them.

    Four conversations are running when a prompt of 2048 tokens arrives (1024 on a slow CPU). Each mode gets
    the same model, seeds and prompts; servers are bound to loopback and are stopped at the end. Writes
    records, tokens.png and the servers' logs to the folder OUT, which `bench report` reads too.
    """
    from sglang_layered.files import check_output
    from sglang_layered_lab.quickstart.replay import write_replay
    from sglang_layered_lab.quickstart.run import Plan, chosen, run, scenario  # imports matplotlib
    from sglang_layered_lab.serving import end_servers_on_signals

    if record is not None:
        click.echo(f"wrote {write_replay(record, _checked(page))}")
        return
    check_output(out / "tokens.png")
    page = _checked(page) if page else None
    end_servers_on_signals()
    console = Console()
    dtype, size = chosen(dtype, size, console)
    spec = scenario(modes, repetitions=repetitions, dtype=dtype, size=size, model_path=model_path)
    run(Plan(spec, out, port, keep, page), console)


def _checked(page: Path | None) -> Path:
    """The page's file, tried; a folder gets it as index.html."""
    from sglang_layered.files import check_output
    from sglang_layered_lab.bench.pages import page_path

    if page is None:
        raise click.UsageError("--record needs --page FILE, the page to write")
    check_output(page_path(page), "--page")
    return page_path(page)
