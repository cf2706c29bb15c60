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
    per_device: Annotated[
        int, typer.Option(min=0, help="Objects per device; 0: batch_size for all.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 10,
    out: Annotated[Path | None, typer.Option(help="A .csv file to write.")] = None,
) -> None:
    """Time training steps under each strategy, with random weights and data.

    On one device all strategies are the same and run once. A strategy whose memory
    does not suffice is told and left out; the file is written after each.
    """
    import jax

    from videomv_jax.cli.environment import use_compilation_cache
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
    numbers = [int(count) or jax.local_device_count() for count in counts]
    cases = [(names[0], 1)] if 1 in numbers else []
    cases += [(name, number) for name in names for number in numbers if number > 1]
    console, found = Console(), []
    use_compilation_cache(console)
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(text, markup=False, highlight=False)

        for name, number in cases:
            changes: dict[str, str | int] = {"strategy": name}
            if per_device:
                changes["batch_size"] = per_device * number
            chosen = freeze(dataclasses.asdict(run) | changes)
            try:
                found.append(measure.measure(chosen, number, steps, say))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                console.print(f"{name} on {number}: out of memory", style="red")
                continue
            if out is not None:
                rows = measure.rows_of(found)
                with out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
    if found:
        console.print(measure.table(found))
    if out is not None:
        console.print(f"wrote {out}", markup=False)


@bench.command()
def data(
    config: Annotated[
        Path, typer.Option(help="A Python file with get_config(), see configs/.")
    ],
    set: Annotated[
        list[str] | None,
        typer.Option(help="Override a field of the config: name=value; repeatable."),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Timed batches.")] = 200,
) -> None:
    """Time what a run's steps read, without steps: batches and objects a second.

    While training, metrics.csv has the share of the time that steps waited for it.
    """
    import numpy as np

    from videomv_jax.scale import throughput
    from videomv_jax.training import feed
    from videomv_jax.training.config import load_config
    from videomv_jax.training.stages import make_task

    run = load_config(config, set or ())
    console = Console()
    with console.status("reading"):
        source = make_task(run).feed if run.source else feed.Numbers(run.objects)
        data = feed.batches(source, run, np.arange(run.batch_size))
        found = throughput.measure(data, batches, run.batch_size)
    console.print(found.text(), highlight=False)


def _cell(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
