"""`videomv generate`: prompts or photos become folders of views and an asset."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from videomv_jax.cli.stages import Stages
from videomv_jax.types import InputError

if TYPE_CHECKING:
    import numpy as np

    from videomv_jax.pipeline import VideoMV


@dataclasses.dataclass(frozen=True)
class Job:
    """What becomes one folder.

    Attributes:
        target: the folder.
        prompt: may be empty where there is a photo.
        photo: what the model sees of the photo, if there is one.
        about: what meta.json tells of the photo.
    """

    target: Path
    prompt: str
    photo: "np.ndarray | None" = None
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT]...",
            help="What to make; each gets a folder. Or what the photo shows.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(help="A photo of one object, or a folder of such photos."),
    ] = None,
    elevation: Annotated[
        float | None,
        typer.Option(help="Degrees of the photo's camera above the object's equator."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results' folders.")] = Path(
        "outputs"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            help="An embedded model or a model folder. Default: tiny, and tiny_image "
            "with --image."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another object.")] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps, 1 to 1000.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, dpmpp or dpmpp_karras.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strictly to follow the prompt.")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="0 to 1, against over-exposure.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    no_3d: Annotated[
        bool, typer.Option("--no-3d", help="Sample without 3D-aware steps.")
    ] = False,
    mode: Annotated[
        str, typer.Option(help="guided, or reference: sample as the original code.")
    ] = "guided",
) -> None:
    """Make 24 views and a 3D Gaussian asset of each PROMPT, or of a photo.

    Of a folder of photos those that are finished are left alone.
    """
    console = Console(highlight=False)
    notes = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    settings = {
        "seed": seed,
        "steps": steps,
        "sampler": sampler,
        "guidance": guidance,
        "guidance_rescale": guidance_rescale,
        "negative_prompt": negative_prompt,
        "steps_3d": () if no_3d else None,
        "mode": mode,
    }
    prompts = prompts or []
    if image is None and not prompts:
        raise InputError("prompt: got none; say what to make, or give --image")
    if image is not None and len(prompts) > 1:
        raise InputError(f"prompt: got {len(prompts)}; want one at most with --image")
    if image is None and elevation is not None:
        raise InputError("elevation: it is that of a photo's camera; give --image")
    if image is not None:
        settings["elevation"] = elevation
    files = [] if image is None else _files(image)
    with Stages(console) as stages:
        stages("loading", 0, 1)
        from videomv_jax.cli.environment import use_compilation_cache
        from videomv_jax.pipeline import VideoMV

        use_compilation_cache(notes)
        default = "tiny" if image is None else "tiny_image"
        loaded = VideoMV.from_pretrained(model or default)
        if image is not None and not loaded.takes_photos:
            raise InputError(f"image: {loaded.config.name!r} takes no photos")
        if prompts:
            _comment(loaded, prompts, notes)

    def make(job: Job, told: Callable[[str], Any] | None = None) -> None:
        _generate(loaded, job, settings, stages.seconds, console, told)
        console.print(f"{job.target}/", markup=False, soft_wrap=True)

    from videomv_jax import outputs

    if image is None:
        for prompt in prompts:
            make(Job(outputs.free_folder(out, prompt), prompt))
        return
    prompt = prompts[0] if prompts else ""
    if image.is_dir():
        _batch(loaded, files, prompt, out, make, console, notes)
    else:
        target = outputs.free_folder(out, prompt or image.stem)
        make(_photo(loaded, image, prompt, target, notes))


def _files(image: Path) -> list[Path]:
    """The photo, or those of a folder."""
    if not image.is_dir():
        return [image]
    found = [p for p in image.iterdir() if p.is_file() and p.name[0] != "."]
    if not found:
        raise InputError(f"image: the folder {str(image)!r} has no files")
    return sorted(found)


def _photo(
    model: "VideoMV", path: Path, prompt: str, target: Path, notes: Console
) -> Job:
    """Read a photo and say what might be wrong with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        image, how = model.prepare(path)
    for warning in caught:
        notes.print(f"warning: {path.name}: {warning.message}")
    return Job(target, prompt, image, {"image": path.name, "cut_out": how})


def _batch(
    model: "VideoMV",
    files: list[Path],
    prompt: str,
    out: Path,
    make: Callable[..., None],
    console: Console,
    notes: Console,
) -> None:
    """Make what is not made yet; a file that cannot be used does not stop the others.

    Raises:
        InputError: at the end, where there were such files.
    """
    from videomv_jax import outputs

    folders = outputs.photo_folders(out, files)
    done = [path for path in files if (folders[path] / outputs.META).is_file()]
    if done:
        notes.print(f"{len(done)} of {len(files)} are finished already")
    bad = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(files), completed=len(done))
        for path in files:
            if path in done:
                continue
            try:
                job = _photo(model, path, prompt, folders[path], notes)
            except InputError as error:
                notes.print(f"error: {error}")
                bad.append(path.name)
            else:

                def told(stage: str, name: str = path.name) -> None:
                    bar.update(task, description=f"{name}: {stage}")

                make(job, told)
            bar.advance(task)
    if bad:
        raise InputError(
            f"image: {len(bad)} of {len(files)} files cannot be used: {', '.join(bad)}"
        )


def _comment(model: "VideoMV", prompts: list[str], notes: Console) -> None:
    """Say beforehand what the model will not see or does not know."""
    from videomv_jax.data import synthetic

    _, cut = model.tokenize(prompts)
    for prompt, rest in zip(prompts, cut, strict=True):
        if rest:
            notes.print(f"warning: the prompt is too long; cut before {rest!r}")
        if model.config.caption_grammar == "synthetic":
            try:
                synthetic.parse(prompt)
            except InputError as error:
                notes.print(
                    f"note: {model.config.name} knows only its small world, the "
                    f"captions of `videomv data preview`; {error}"
                )


def _generate(
    model: "VideoMV",
    job: Job,
    settings: dict[str, Any],
    before: dict[str, float],
    console: Console,
    told: Callable[[str], Any] | None,
) -> None:
    """One folder; it appears when all is in it."""
    import jax

    from videomv_jax import atomic, media, outputs

    photo = {} if job.photo is None else {"images": [job.photo]}
    with (
        atomic.replacing(job.target, outputs.META) as folder,
        Stages(console, told) as stages,
    ):
        result = model.generate(job.prompt, **photo, **settings, progress=stages)
        dropped = {"sampling": result.dropped}
        turntable = None
        if result.gaussians is not None:
            films, dropped["turntable"] = model.turntable(
                result.gaussians, progress=stages
            )
            turntable = films[0]
        stages("writing", 0, 1)
        if job.photo is not None:
            media.write_png(folder / "input.png", job.photo)
        outputs.write_views(folder, result.views[0])
        if turntable is not None:
            first = jax.tree.map(lambda x: x[0], result.gaussians)
            outputs.write_asset(folder, first, turntable)
        stages.end()
        if any(dropped.values()):
            console.print(f"warning: the rasterizer dropped {dropped} pairs")
        timings = before | stages.seconds
        outputs.write_meta(
            folder,
            {
                "prompt": job.prompt,
                **job.about,
                "seed": settings["seed"],
                "model": model.config.name,
                "config": {
                    **result.settings,
                    "cameras": dataclasses.asdict(model.config.cameras),
                },
                "overflow": dropped,
                "timings": {k: round(s, 3) for k, s in timings.items()},
            },
        )
