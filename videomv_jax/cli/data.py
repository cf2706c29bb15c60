"""`videomv data`: look at the synthetic set or write it out; real data."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from videomv_jax.cli.data_encode import encode
from videomv_jax.cli.data_inspect import inspect
from videomv_jax.cli.data_render import render
from videomv_jax.types import InputError

data = typer.Typer(help="The synthetic set, and real data.", no_args_is_help=True)
data.command()(encode)
data.command()(inspect)
data.command()(render)

Count = Annotated[int, typer.Option(min=1, help="How many objects.")]
Seed = Annotated[int, typer.Option(min=0, help="Which stream of objects.")]
SplitName = Annotated[str, typer.Option(help="train or heldout.")]
Size = Annotated[int, typer.Option(min=8, help="Height and width in pixels.")]

_BATCH = 4


@data.command()
def preview(
    out: Annotated[Path, typer.Option(help="The picture to write, .png.")],
    count: Count = 24,
    seed: Seed = 0,
    split: SplitName = "train",
    caption: Annotated[
        list[str] | None, typer.Option(help="Show this instead; repeatable.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Views of each object.")] = 3,
    size: Size = 128,
) -> None:
    """Write a contact sheet of objects with their captions."""
    import jax.numpy as jnp
    import numpy as np

    from videomv_jax import media
    from videomv_jax.data import synthetic
    from videomv_jax.splat.cameras import orbit

    if out.suffix != ".png" or not out.parent.is_dir():
        raise InputError(f"out: {out} is not a .png file in a folder that exists")
    if caption:
        objects = [synthetic.parse(text) for text in caption]
    else:
        objects = synthetic.sample_descriptions(count, seed, _split(split))
    # A little past the front, where most things show best.
    cameras = orbit(views, size=size, azimuth=20.0)
    tiles = []
    for start in track(range(0, len(objects), _BATCH), "rendering", transient=True):
        part = objects[start : start + _BATCH]
        scenes = synthetic.stack_scenes([synthetic.build_scene(one) for one in part])
        rgb, _ = synthetic.render_orbit(scenes, cameras)
        for one in np.asarray(jnp.clip(rgb, 0.0, 1.0)):
            tiles.append(media.contact_sheet(one, columns=min(views, 6)))
    columns = max(1, 1536 // tiles[0].shape[1])
    texts = [one.text for one in objects]
    sheet = media.contact_sheet(np.stack(tiles), columns=columns, captions=texts)
    media.write_png(out, sheet)
    Console().print(f"wrote {out}", markup=False)


@data.command()
def write(
    out: Annotated[Path, typer.Option(help="The data set's folder.")],
    count: Count = 24,
    seed: Seed = 0,
    split: SplitName = "train",
    views: Annotated[int, typer.Option(min=1, help="Views of an orbit.")] = 24,
    size: Size = 128,
) -> None:
    """Write rendered orbits in the layout of G-Objaverse."""
    import numpy as np

    from videomv_jax.data import synthetic
    from videomv_jax.data.orbit_folder import write_orbit_folder
    from videomv_jax.splat.cameras import orbit

    cameras = orbit(views, size=size)
    objects = synthetic.sample_descriptions(count, seed, _split(split))
    for number, one in enumerate(track(objects, "rendering", transient=True)):
        scenes = synthetic.stack_scenes([synthetic.build_scene(one)])
        # Over black, colours of partly covered pixels come back exactly.
        rgb, alpha = map(np.asarray, synthetic.render_orbit(scenes, cameras, 0.0))
        name = f"synthetic-{split}-{seed}/{number:06d}"
        write_orbit_folder(
            out, name, rgb[0], alpha[0], cameras, one.text, background=0.0
        )
    Console().print(f"wrote {count} objects to {out}", markup=False)


def _split(name: str):
    from videomv_jax.data.synthetic.sampling import SPLITS

    if name not in SPLITS:
        raise InputError.unknown("split", name, SPLITS)
    return name
