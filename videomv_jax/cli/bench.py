"""`videomv bench`: how fast this installation is on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from videomv_jax.types import InputError

bench = typer.Typer(no_args_is_help=True, help="Measure this installation.")
_COLUMNS = {
    "case": "Gaussians x scenes x views x image",
    "implementation": "implementation",
    "forward_ms": "forward ms",
    "both_ms": "with gradients ms",
    "forward_mib": "MiB",
    "both_mib": "MiB with gradients",
    "rgb_error": "rgb off gsplat",
    "cosine": "gradients' cosine",
}


@bench.callback()
def _group() -> None:
    """Keep `raster` a command of its own."""


@bench.command()
def raster(
    case: Annotated[
        list[str] | None, typer.Option(help="N,SCENES,VIEWS,SIZE; repeatable.")
    ] = None,
    implementation: Annotated[
        list[str] | None, typer.Option(help="xla, gpu or tpu; repeatable.")
    ] = None,
    calls: Annotated[int, typer.Option(min=1, help="Calls queued at once.")] = 20,
    out: Annotated[Path | None, typer.Option(help="JSON file for the table.")] = None,
) -> None:
    """Time the rasterizer, beside gsplat where it is installed."""
    import jax
    from videomv_kernels import benchmark

    console = Console()
    large = jax.default_backend() == "gpu"
    works = benchmark.LARGE if large else benchmark.SMALL
    rows = []
    try:
        if case:
            works = [benchmark.Work.parse(text) for text in case]
        with console.status("compiling and timing"):
            for row in benchmark.run(works, implementation or [None], calls=calls):
                rows.append(row)
                console.print(f"{row['case']}, {row['implementation']}: done")
    except ValueError as error:
        raise InputError(str(error)) from error
    shown = Table(*_COLUMNS.values())
    for row in rows:
        shown.add_row(*(_cell(row.get(name)) for name in _COLUMNS))
    console.print(shown)
    about = benchmark.describe()
    console.print(about)
    if out is not None:
        out.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


def _cell(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
