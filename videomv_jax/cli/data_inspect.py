"""`videomv data inspect`: what a source holds, and what looks wrong with it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from videomv_jax.cli.data_encode import (
    Captions,
    Elevations,
    Index,
    Layout,
    Objects,
    Source,
    one_spec,
)
from videomv_jax.types import InputError


def inspect(
    source: Source,
    layout: Layout = "",
    captions: Captions = "",
    index: Index = "",
    objects: Objects = "",
    elevations: Elevations = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Samples to look at, evenly spread; 0: all.")
    ] = 64,
    views: Annotated[
        int, typer.Option(min=0, help="Views of a sample; 0: all there are.")
    ] = 0,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet, .png.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="That read files.")] = 2,
) -> None:
    """Count samples, look at some, and check that their cameras fit their views."""
    from videomv_jax.data.inspection import inspect as look
    from videomv_jax.data.shards import ShardSource
    from videomv_jax.data.sources import open_source

    if sheet and (sheet.suffix != ".png" or not sheet.parent.is_dir()):
        raise InputError(f"sheet: {sheet} is not a .png file in a folder that exists")
    spec = one_spec(source, layout, captions, index, objects, elevations)
    console = Console(highlight=False)
    with console.status("reading"):
        opened = open_source(spec, views or None, least=1)
        report = look(opened, limit or None, threads=threads)
        if isinstance(opened, ShardSource):
            opened.verify()
    table = Table(show_header=False, box=None)
    tried = report.read + len(report.problems)

    def say(name: str, text: str) -> None:
        table.add_row(name, text)

    say("layout", opened.layout)
    say("samples", f"{report.samples}, looked at {tried}")
    say("unreadable", f"{len(report.problems)} samples, {report.lost} views of others")
    say("views", "{} to {}".format(*report.views))
    for (height, width), count in report.sizes.items():
        say("size", f"{width} x {height}: {count}")
    say("captions", f"{report.with_caption} of {report.read}, {report.words:.1f} words")
    for text in report.texts:
        say("", repr(text))
    for name, span in (
        ("elevation", report.elevation),
        ("radius", report.radius),
        ("field of view", report.fov),
    ):
        if span is not None:
            say(name, "{:.2f} to {:.2f}".format(*span))
    for name, agreement in report.readings.items():
        say("silhouettes", f"{agreement:.2f} as {name}")
    if report.readings:
        say("extent", f"{report.extent:.2f} from the origin")
    elif report.elevation:
        say("silhouettes", "the views have no coverage: the cameras are not checked")
    if isinstance(opened, ShardSource):
        say("sums", "right")
    per_core = 1 / report.seconds if report.seconds else 0.0
    say("read", f"{per_core:.1f} samples/s a core, {tried / report.wall:.1f}/s here")
    console.print(table)
    for name, problem in list(report.problems.items())[:5]:
        console.print(f"unreadable: {name}: {problem}", markup=False, soft_wrap=True)
    for text in report.warnings():
        console.print(f"warning: {text}", markup=False, soft_wrap=True)
    if sheet:
        _write(sheet, report.pictures)
        console.print(f"wrote {sheet}", markup=False, soft_wrap=True)


def _write(path: Path, pictures: list) -> None:
    """Pictures of any sizes as one sheet, over grey."""
    import numpy as np
    from PIL import Image

    from videomv_jax import media
    from videomv_jax.data.samples import over

    if not pictures:
        raise InputError("sheet: no sample could be read")
    small = [np.asarray(Image.fromarray(p).resize((128, 128))) for p in pictures]
    media.write_png(path, media.contact_sheet(over(np.stack(small), 0.5), columns=8))
