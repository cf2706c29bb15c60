"""`videomv evaluate`: the table of a model on held-out objects."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

SHOWN = 8  # objects of the sheet


def evaluate(
    model: Annotated[str, typer.Argument(help="Embedded model or folder.")] = "tiny",
    count: Annotated[int, typer.Option(min=1, help="Held-out objects.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Objects sampled at once.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of objects and noise.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    fit: Annotated[
        int, typer.Option(min=0, help="Iterations of the consistency fit; 0: none.")
    ] = 400,
    lpips: Annotated[
        Path | None, typer.Option(help="lpips.safetensors: adds that column.")
    ] = None,
    captions: Annotated[
        bool,
        typer.Option("--captions", help="Tell a model for photos captions as well."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for the table.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="JPEG to write: 8 objects, truth and views.")
    ] = None,
) -> None:
    """Compare generated views with the truth of objects never trained on.

    A text model gets their captions, a model for photos their first views.
    """
    import jax
    import numpy as np
    from PIL import Image

    from videomv_jax.convert.lpips import read
    from videomv_jax.evaluation import held_out
    from videomv_jax.media import contact_sheet
    from videomv_jax.pipeline import VideoMV

    console = Console()
    metric = read(lpips) if lpips else None
    made: dict[str, np.ndarray] = {}
    loaded = VideoMV.from_pretrained(model)
    with console.status("rendering the truth") as status:
        data = held_out.held_out(loaded, count, seed)
        rows = dict(
            held_out.table(
                loaded,
                data,
                batch=batch,
                seed=seed,
                fit={"iterations": fit} if fit else None,
                lpips=metric,
                captions=captions,
                told=status.update,
                made_views=made.__setitem__,
                steps=steps,
                guidance=guidance,
            )
        )
    names = list(rows["plain"])
    shown = Table("sampling", *names)
    for name, row in rows.items():
        shown.add_row(name, *(f"{row[n]:.3f}" if n in row else "" for n in names))
    console.print(shown)
    about = {
        "model": loaded.config.name,
        "objects": count,
        "captions": captions or not loaded.takes_photos,
        "seed": seed,
        "steps": steps or loaded.config.sampling.steps,
        "guidance": guidance or loaded.config.sampling.guidance,
        "fit_iterations": fit,
        "lpips": str(lpips) if lpips else None,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    console.print(about)
    if out is not None:
        out.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")
    if sheet is not None:
        *_, views = made.values()
        some = np.arange(4) * (views.shape[1] // 4)
        pairs = np.concatenate([data.views[:SHOWN, some], views[:SHOWN, some]], 1)
        images = pairs.reshape(-1, *pairs.shape[2:])
        Image.fromarray(contact_sheet(images, columns=8)).save(sheet, quality=85)
