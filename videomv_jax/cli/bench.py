"""`videomv bench`: measure training on the devices that are here."""

import csv
import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

bench = typer.Typer(help="Measure training on this machine.", no_args_is_help=True)


@bench.callback()
def options() -> None:
    """Measure training on this machine."""


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
    from videomv_jax.types import InputError

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
