"""`videomv data render`: own meshes to a data set."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def render(
    models: Annotated[
        Path, typer.Argument(help="A folder of .glb, .gltf, .obj, .ply and .stl.")
    ],
    out: Annotated[Path, typer.Option(help="The data set's folder.")],
    python: Annotated[
        str, typer.Option(help="A Python with bpy, Blender's module.")
    ] = sys.executable,
    captions: Annotated[
        str, typer.Option(help="Captions by name; by default file names.")
    ] = "",
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 512,
    views: Annotated[int, typer.Option(help="Views of the orbit.")] = 24,
    others: Annotated[int, typer.Option(help="Further views, from anywhere.")] = 8,
    elevation: Annotated[float, typer.Option(help="Of the orbit, degrees.")] = 15.0,
    radius: Annotated[float, typer.Option(help="The cameras' distance.")] = 2.0,
    extent: Annotated[
        float, typer.Option(help="The farthest corner's distance from the origin.")
    ] = 0.65,
    samples: Annotated[int, typer.Option(help="Light paths per pixel.")] = 16,
    engine: Annotated[
        str, typer.Option(help="cycles, or eevee, which wants a GPU.")
    ] = "cycles",
    geometry: Annotated[
        bool, typer.Option("--geometry", help="Write depth and normals too, .exr.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=0, help="Objects at the same time; 0: one a core.")
    ] = 0,
) -> None:
    """Render meshes as orbits, in the layout of G-Objaverse.

    The same command goes on where it was stopped. A mesh that cannot be rendered is
    told and left out.
    """
    from rich.progress import Progress

    from videomv_jax.data.captions import read_captions
    from videomv_jax.data.meshes import RenderSettings, find_meshes, render_meshes

    settings = RenderSettings(
        size=size,
        orbit=views,
        others=others,
        elevation=elevation,
        radius=radius,
        extent=extent,
        samples=samples,
        engine=engine,
        geometry=geometry,
    )
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    found = find_meshes(models)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("rendering")
        problems = render_meshes(
            found,
            out,
            settings,
            captions=read_captions(captions) if captions else None,
            python=python,
            processes=processes or os.cpu_count() or 1,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for name, problem in problems.items():
        console.print(f"left out {name}: {problem}")
    done = len(found) - len(problems)
    Console().print(f"{done} of {len(found)} objects are in {out}", markup=False)
