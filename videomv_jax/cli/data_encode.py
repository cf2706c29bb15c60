"""`videomv data encode`: from a source to shards that a pod reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from videomv_jax.types import InputError

if TYPE_CHECKING:
    from videomv_jax.data.sources import SourceSpec

Source = Annotated[
    Path, typer.Argument(help="A folder in a known layout, or a .json with one.")
]
Layout = Annotated[str, typer.Option(help="The folder's layout; by default: look.")]
Captions = Annotated[str, typer.Option(help="Captions by name, .json or .csv.")]
Index = Annotated[
    str, typer.Option(help="From G-Objaverse's names to Objaverse's, for a .csv.")
]
Objects = Annotated[str, typer.Option(help="A .json list of the names to read.")]
Elevations = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Read views from cameras between these degrees."),
]


def encode(
    source: Source,
    out: Annotated[str, typer.Option(help="Folder of the shards, or gs://...")],
    model: Annotated[
        str, typer.Option(help="The run's model: embedded, or a model folder.")
    ] = "tiny",
    layout: Layout = "",
    captions: Captions = "",
    index: Index = "",
    objects: Objects = "",
    elevations: Elevations = None,
    per_shard: Annotated[int, typer.Option(help="Samples in a shard.")] = 256,
    shard: Annotated[
        str, typer.Option(help="i/n: write every n-th shard from the i-th.")
    ] = "",
    threads: Annotated[int, typer.Option(min=1, help="That read files.")] = 4,
    dtype: Annotated[str, typer.Option(help="Compute type of the networks.")] = "",
) -> None:
    """Encode views and captions once, instead of in every epoch.

    The same command goes on where it was stopped. Several processes, each with its
    part, may write into one folder.
    """
    import jax
    from rich.progress import Progress

    from videomv_jax.cli.environment import join_hosts, use_compilation_cache
    from videomv_jax.data.encode import Encoders
    from videomv_jax.data.encode import encode as run
    from videomv_jax.data.sources import open_source
    from videomv_jax.data.tokenizer import load_tokenizer
    from videomv_jax.embedded import find_model
    from videomv_jax.model_folder import load_model

    spec = one_spec(source, layout, captions, index, objects, elevations)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    join_hosts()
    part = _part(shard) if shard else (jax.process_index(), jax.process_count())
    use_compilation_cache(console)
    loaded = load_model(find_model(model), dtype=dtype or None)
    if loaded.vae is None:
        raise InputError(f"model: {model!r} has no vae")
    tokenizer = loaded.tokenizer_dir and load_tokenizer(loaded.tokenizer_dir)
    cameras = loaded.config.cameras
    encoders = Encoders(
        vae=loaded.vae,
        text=loaded.text_encoder if tokenizer else None,
        tokenizer=tokenizer or None,
        size=cameras.size,
        background=cameras.background,
        suffix=loaded.config.sampling.prompt_suffix,
    )
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("encoding")
        skipped = run(
            open_source(spec, cameras.views),
            out,
            encoders,
            where=str(source),
            views=cameras.views,
            per_shard=per_shard,
            part=part,
            threads=threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for name, problem in list(skipped.items())[:10]:
        console.print(f"skipped {name}: {problem}")
    rest = f", skipped {len(skipped)}" if skipped else ""
    Console().print(f"encoded part {part[0]}/{part[1]} to {out}{rest}", markup=False)


def one_spec(
    source: Path,
    layout: str,
    captions: str,
    index: str,
    objects: str,
    elevations: tuple[float, float] | None,
) -> "SourceSpec":
    """The source that a command's options mean.

    Raises:
        InputError: a file of several sources, or options beside a file.
    """
    import dataclasses

    from videomv_jax.data.sources import read_specs

    specs = read_specs(source)
    if len(specs) > 1:
        raise InputError(f"source: {source} lists {len(specs)}; want one at a time")
    options = {
        "layout": layout,
        "captions": captions,
        "index": index,
        "objects": objects,
        "elevations": elevations,
    }
    given = {name: value for name, value in options.items() if value}
    return dataclasses.replace(specs[0], **given)


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal():
        raise InputError(f"shard: got {text!r}, want i/n, such as 0/8")
    return int(index), int(count)
