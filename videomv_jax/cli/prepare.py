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
    size: Annotated[int, typer.Option(min=8, help="Height and width.")] = 256,
    background: Annotated[
        float, typer.Option(help="Grey behind the object, 0 to 1.")
    ] = 1.0,
    fill: Annotated[
        float, typer.Option(help="Longest side of the object over the image's.")
    ] = 200 / 256,
) -> None:
    """Cut the object out of PHOTO, centre it and write what comes out."""
    from videomv_jax import media
    from videomv_jax.data import photo as photos
    from videomv_jax.types import InputError

    notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = photos.cut_out(photos.read(photo))
    for warning in caught:
        notes.print(f"warning: {warning.message}")
    image = photos.frame(found.image, size, background=background, fill=fill)
    target = out or photo.with_name(f"{photo.stem}.prepared.png")
    try:
        media.write_png(target, image)
    except OSError as error:
        raise InputError(f"out: cannot write {target} ({error.strerror})") from error
    Console(highlight=False).print(f"{target} (cut out by {found.how})", markup=False)
