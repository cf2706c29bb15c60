"""`videomv`: the command line. One command per file of this room.

Command modules import what they run only when they run it, so that `--help` and a
misspelt option answer at once.
"""

import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from videomv_jax import __version__
from videomv_jax.cli.bench import bench
from videomv_jax.cli.convert import convert
from videomv_jax.cli.data import data
from videomv_jax.cli.evaluate import evaluate
from videomv_jax.cli.generate import generate
from videomv_jax.cli.info import info
from videomv_jax.cli.plan import plan
from videomv_jax.cli.prepare import prepare
from videomv_jax.cli.train import train
from videomv_jax.types import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Commands(TyperGroup):
    """Ends bad input and Ctrl-C without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            # Not markup: prompts and paths may hold brackets.
            Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(
                f"error: {error}"
            )
            raise typer.Exit(EXIT_BAD_INPUT) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="A prompt becomes 24 consistent views and a 3D Gaussian asset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(generate)
app.command()(train)
app.command()(plan)
app.command()(evaluate)
app.command()(convert)
app.command()(info)
app.command()(prepare)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"videomv {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print and exit."
        ),
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line of this process."""
    # Its tokenizers are all we take of it: a note that torch is missing helps nobody.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        app()
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            # A thread may be compiling, which nothing stops and exit would wait for.
            sys.stdout.flush()
            os._exit(EXIT_INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
