"""`videomv info`: what a model folder holds, and what this installation is."""

import platform
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from videomv_jax import __version__


def info(
    model: Annotated[
        str | None, typer.Argument(help="An embedded model or a model folder.")
    ] = None,
) -> None:
    """Print a model's parts, licence and provenance; without MODEL, the versions."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(_describe(model) if model else _installation())


def _installation() -> Table:
    import jax

    from videomv_jax.pipeline import embedded

    table = _rows()
    table.add_row("videomv_jax", __version__)
    for name in ("jax", "jaxlib", "flax"):
        table.add_row(name, metadata.version(name))
    table.add_row("python", platform.python_version())
    table.add_row("devices", ", ".join(d.device_kind for d in jax.devices()))
    table.add_row("models", ", ".join(embedded()) or "none embedded")
    return table


def _describe(name: str) -> Table:
    from videomv_jax.model_folder import PARTS, count_weights, read_config
    from videomv_jax.pipeline import find_model

    folder = find_model(name)
    config = read_config(folder)
    cameras, sampling = config.cameras, config.sampling
    table = _rows()
    table.add_row("name", config.name)
    table.add_row("folder", str(folder))
    table.add_row("licence", config.licence)
    table.add_row("provenance", config.provenance)
    for part in PARTS:
        if getattr(config, part) is None:
            table.add_row(part, "none")
            continue
        weights, dtypes = count_weights(folder, part)
        size = (folder / f"{part}.safetensors").stat().st_size
        table.add_row(
            part, f"{weights:,} weights, {', '.join(dtypes)}, {size / 1e6:.1f} MB"
        )
    table.add_row(
        "cameras",
        f"{cameras.views} views of {cameras.size} x {cameras.size}, elevation "
        f"{cameras.elevation:g}, radius {cameras.radius:g}, field of view "
        f"{cameras.fov:g}, background {cameras.background:g}",
    )
    table.add_row("diffusion", f"{config.schedule}, predicts {config.prediction}")
    steps = ", ".join(f"{fraction:g}" for fraction in sampling.steps_3d)
    table.add_row(
        "sampling",
        f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}, "
        f"3D-aware at {steps or 'none'}",
    )
    return table


def _rows() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
