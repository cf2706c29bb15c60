"""`videomv prepare`: what a network would see of a photo, to look at."""

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def prepare(
    photo: Annotated[Path, typer.Argument(help="Image file with one object.")],
    out: Annotated[
        Path | None, typer.Option(help="PNG to write; else beside the photo.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Whose size, background and fill: a name or a folder."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Height and width. Default: 256.")
    ] = None,
    background: Annotated[
        float | None,
        typer.Option(help="Grey behind the object, 0 to 1. Default: 1."),
    ] = None,
    fill: Annotated[
        float | None,
        typer.Option(
            help="Longest side of the object over the image's. Default: 0.78125."
        ),
    ] = None,
) -> None:
    """Cut the object out of PHOTO, centre it and write what comes out."""
    from videomv_jax import media
    from videomv_jax.data import photo as photos
    from videomv_jax.model_folder import CameraConfig, read_config
    from videomv_jax.types import InputError

    notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = photos.cut_out(photos.read(photo))
    for warning in caught:
        notes.print(f"warning: {warning.message}")
    trained = CameraConfig(size=256, background=1.0)
    if model is not None:
        from videomv_jax.embedded import find_model

        trained = read_config(find_model(model)).cameras
    image = photos.frame(
        found.image,
        trained.size if size is None else size,
        background=trained.background if background is None else background,
        fill=trained.fill if fill is None else fill,
    )
    target = out or photo.with_name(f"{photo.stem}.prepared.png")
    try:
        media.write_png(target, image)
    except OSError as error:
        raise InputError(f"out: cannot write {target} ({error.strerror})") from error
    Console(highlight=False).print(f"{target} (cut out by {found.how})", markup=False)
