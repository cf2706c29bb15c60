"""`videomv bench`: how fast this installation is on this machine."""

import csv
import dataclasses
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


@bench.command()
def sharding(
    config: Annotated[
        Path, typer.Option(help="A Python file with get_config(), see configs/.")
    ],
    strategies: Annotated[
        str, typer.Option(help="Names in sharding.STRATEGIES, with commas.")
    ] = "dp,fsdp,tp,fsdp_tp,view,fsdp_view",
    devices: Annotated[
        str, typer.Option(help="How many devices, with commas; 0: all.")
    ] = "0",
    set: Annotated[
        list[str] | None,
        typer.Option(help="Override a field of the config: name=value; repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 10,
    out: Annotated[Path | None, typer.Option(help="A .csv file to write.")] = None,
) -> None:
    """Time training steps under each strategy, with random weights and data."""
    import jax

    from videomv_jax.scale import measure
    from videomv_jax.sharding import STRATEGIES
    from videomv_jax.training.config import freeze, load_config

    run = load_config(config, set or ())
    names = strategies.split(",")
    for name in names:
        if name not in STRATEGIES:
            raise InputError.unknown("strategy", name, STRATEGIES)
    counts = devices.split(",")
    if not all(count.isdigit() for count in counts):
        raise InputError(f"devices: got {devices!r}, want numbers with commas")
    console, found = Console(), []
    with console.status("") as status:
        for name in names:
            for count in counts:
                chosen = freeze(dataclasses.asdict(run) | {"strategy": name})
                number = int(count) or jax.local_device_count()
                found.append(measure.measure(chosen, number, steps, status.update))
    console.print(measure.table(found))
    if out is not None:
        rows = [measure.row(one) for one in found]
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        console.print(f"wrote {out}", markup=False)


def _cell(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
