"""`videomv convert`: checkpoints of others to a model folder, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from videomv_jax.types import InputError

if TYPE_CHECKING:
    from videomv_jax.exchange.plan import Plan

_SHOWN = 6  # names per reason


def convert(
    source: Annotated[
        list[Path],
        typer.Argument(help="Checkpoints: files, diffusers or our own folders."),
    ],
    to: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    format: Annotated[
        str,
        typer.Option("--as", help="folder (ours), or back to: torch, diffusers."),
    ] = "folder",
    listing: Annotated[
        bool,
        typer.Option("--list", help="Tell what would be made; write nothing."),
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: source, float32, bfloat16, float16.")
    ] = "source",
    part: Annotated[
        list[str] | None, typer.Option(help="Take this part only; repeatable.")
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Leave out tensors whose whole name matches; repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A value of config.json: unet.head_dim=8."),
    ] = None,
    lora: Annotated[
        list[Path] | None,
        typer.Option(help="Low-rank updates to add to the UNet; repeatable."),
    ] = None,
    lora_scale: Annotated[float, typer.Option(help="Of those updates.")] = 1.0,
    name: Annotated[str | None, typer.Option(help="Default: the folder's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights.")] = None,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="Gigabytes a file.")] = 4.0,
) -> None:
    """Make a model folder of released checkpoints, or the files of others of one."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if to is None and not listing:
        raise InputError("to: say which folder to write, or ask for --list")
    if format != "folder":
        if lora:
            raise InputError(f"lora: --as {format} takes none; merge it into a folder")
        _back(console, source, to, format, listing)
        return
    from videomv_jax.exchange import folder
    from videomv_jax.exchange.lora import merge
    from videomv_jax.exchange.plan import plan

    made = plan(
        source,
        name=name or (to.name if to else "listed"),
        licence=licence,
        drop=drop or (),
        parts=part or (),
        settings=set_ or (),
    )
    for path in lora or ():
        made = merge(made, path, lora_scale)
    _tell(console, made)
    if faults := made.faults():
        raise InputError("this cannot be converted\n  " + "\n  ".join(faults))
    if listing or to is None:
        return
    count = sum(len(part.shapes) for part in made.parts)
    with _progress() as progress:
        task = progress.add_task("", total=count)

        def told(tensor: str) -> None:
            progress.update(task, advance=1, description=tensor.split(":")[0])

        shard = int(shard_gb * 1e9)
        folder.write(made, to, dtype=dtype, shard=shard, told=told)
    console.print(f"wrote {to}")


def _back(
    console: Console, source: list[Path], to: Path | None, format: str, listing: bool
) -> None:
    from videomv_jax.exchange import foreign

    if len(source) != 1 or listing or to is None:
        raise InputError(f"--as {format} takes one model folder and --to")
    left_out = foreign.write(source[0], to, cast(Any, format))
    for reason in sorted(set(left_out.values())):
        names = [name for name, why in left_out.items() if why == reason]
        console.print(f"left out, {reason}: {_some(names)}")
    console.print(f"wrote {to}")


def _tell(console: Console, made: "Plan") -> None:
    for part in made.parts:
        used = len(part.tensors) - len(part.unexpected)
        console.print(f"{part.name}: {' + '.join(part.origins)}")
        console.print(f"  {used} tensors used")
        for word in ("missing", "unexpected", "mis_shaped"):
            if names := getattr(part, word):
                told = word.replace("_", "-")
                console.print(f"  {len(names)} {told}: {_some(names)}")
        if part.filled:
            console.print(f"  {len(part.filled)} start afresh: {_some([*part.filled])}")
        _dropped(console, part.dropped)
    for path, dropped in made.dropped.items():
        console.print(path)
        _dropped(console, dropped)
    for note in made.notes:
        console.print(f"note: {note}")


def _dropped(console: Console, dropped: dict[str, str]) -> None:
    for reason in dict.fromkeys(dropped.values()):
        names = [name for name, why in dropped.items() if why == reason and name]
        told = f": {_some(names)}" if names else ""
        console.print(f"  {len(names) or 'all'} dropped, {reason}{told}")


def _some(names: list[str]) -> str:
    from videomv_jax.exchange.plan import some

    return some(names, _SHOWN)


def _progress():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=Console(stderr=True))
