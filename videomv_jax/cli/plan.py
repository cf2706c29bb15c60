"""`videomv plan`: what a step needs of a TPU slice that is not there."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from videomv_jax.types import InputError


def plan(
    config: Annotated[
        Path, typer.Option(help="A Python file with get_config(), see configs/.")
    ],
    topology: Annotated[
        str, typer.Option(help="Chip and shape: v5e:16x16, v5p:4x4x8, v6e:16x16.")
    ],
    strategy: Annotated[
        str, typer.Option(help="A name in sharding.STRATEGIES; default: the config's.")
    ] = "",
    step: Annotated[
        str,
        typer.Option(
            help="train; or of the sampler: denoise, denoise_3d (with the projection)."
        ),
    ] = "train",
    slices: Annotated[int, typer.Option(help="How many slices of that shape.")] = 1,
    set: Annotated[
        list[str] | None,
        typer.Option(help="Override a field of the config: name=value; repeatable."),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Plan every strategy.")] = False,
    largest: Annotated[
        bool, typer.Option(help="Search the largest batch that fits.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for plan.csv and plan.svg.")
    ] = None,
) -> None:
    """Compile a step for a TPU topology and say what a chip does in it.

    Needs no TPU: libtpu (the extra 'tpu') compiles on this host's CPU, up to where it
    would write machine code. A step of the released size takes minutes and 10 GB;
    results are kept and found again.
    """
    # This host computes nothing; libtpu must not look for chips or a cloud's server.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    import jax

    jax.config.update("jax_platforms", "cpu")
    from videomv_jax.cli.environment import cache_folder
    from videomv_jax.scale import report
    from videomv_jax.scale.plan import largest_batch
    from videomv_jax.scale.plan import plan as make_plan
    from videomv_jax.sharding import STRATEGIES
    from videomv_jax.training.config import freeze, load_config

    if compare and strategy:
        raise InputError("strategy: --compare plans all of them; leave it away")
    run = load_config(config, set or ())
    names = list(STRATEGIES) if compare else [strategy or run.strategy]
    console = Console()
    found = []
    with console.status("") as status:
        for name in names:
            chosen = freeze(dataclasses.asdict(run) | {"strategy": name})

            def say(text: str) -> None:
                status.update(text)
                if not console.is_terminal:
                    console.print(text, markup=False, highlight=False)

            search = largest_batch if largest else make_plan
            best = search(chosen, topology, say, cache_folder("plans"), slices, step)
            if best is None:
                console.print(f"{name}: not even the smallest batch fits")
            else:
                found.append(best)
    if not found:
        return
    console.print(report.table(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        report.write_csv(out / "plan.csv", found)
        report.write_plot(out / "plan.svg", found)
        console.print(f"wrote {out / 'plan.csv'} and {out / 'plan.svg'}", markup=False)
