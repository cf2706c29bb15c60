"""`videomv info`: what a model folder holds, and what this installation is."""

import platform
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from videomv_jax import __version__
from videomv_jax.types import InputError


def info(
    model: Annotated[
        str | None, typer.Argument(help="An embedded model or a model folder.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare all files with SHA256SUMS.")
    ] = False,
) -> None:
    """Print a model's parts, licence and provenance; without MODEL, the versions."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if verify and not model:
        raise InputError("--verify: say which model")
    console.print(_describe(model) if model else _installation())
    if model and verify:
        _verify(model)
        console.print("every file is as it was written")


def _installation() -> Table:
    import jax

    from videomv_jax.embedded import embedded

    table = _rows()
    table.add_row("videomv_jax", __version__)
    for name in ("jax", "jaxlib", "flax"):
        table.add_row(name, metadata.version(name))
    table.add_row("python", platform.python_version())
    table.add_row("devices", ", ".join(d.device_kind for d in jax.devices()))
    table.add_row("models", ", ".join(embedded()) or "none embedded")
    return table


def _verify(name: str) -> None:
    from videomv_jax import weights
    from videomv_jax.embedded import find_model
    from videomv_jax.model_folder import read_config

    folder = find_model(name)
    shared_with = read_config(folder).shared_with
    folders = [folder] if shared_with is None else [folder, folder.parent / shared_with]
    for one in folders:
        if faults := weights.verify(one):
            raise InputError(f"{one.name}: {'; '.join(faults)}")


def _describe(name: str) -> Table:
    from videomv_jax import weights
    from videomv_jax.embedded import find_model
    from videomv_jax.model_folder import (
        PARTS,
        TOKENIZER,
        count_weights,
        folder_of,
        read_config,
    )

    folder = find_model(name)
    config = read_config(folder)
    cameras, sampling = config.cameras, config.sampling
    table = _rows()
    table.add_row("name", config.name)
    table.add_row("folder", str(folder))
    table.add_row("licence", config.licence)
    table.add_row("provenance", config.provenance)
    parts = {part: getattr(config, part) is not None for part in PARTS}
    if (folder / "lpips.safetensors").is_file():
        parts["lpips"] = True
    for part, there in parts.items():
        if not there:
            table.add_row(part, "none")
            continue
        home = folder_of(folder, config, part)
        count, dtypes = count_weights(home, part)
        size = sum(path.stat().st_size for path in weights.files(home, part))
        place = "" if home == folder else f", in {home.name}"
        table.add_row(
            part,
            f"{count:,} weights, {', '.join(sorted(dtypes))}, {size / 1e6:.1f} MB"
            f"{place}",
        )
    home = folder_of(folder, config, TOKENIZER)
    there = "yes" if home == folder else f"yes, in {home.name}"
    table.add_row("tokenizer", there if (home / TOKENIZER).is_dir() else "none")
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
