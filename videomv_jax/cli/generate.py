"""`videomv generate`: prompts become folders of views and a Gaussian asset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from videomv_jax.cli.stages import Stages

if TYPE_CHECKING:
    from videomv_jax.pipeline import VideoMV


def generate(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT...", help="What to make; each gets a folder."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results' folders.")] = Path(
        "outputs"
    ),
    model: Annotated[
        str, typer.Option(help="An embedded model or a model folder.")
    ] = "tiny",
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
    """Make 24 views and a 3D Gaussian asset of each PROMPT."""
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
    with Stages(console) as stages:
        stages("loading", 0, 1)
        from videomv_jax.cli.environment import use_compilation_cache
        from videomv_jax.pipeline import VideoMV

        use_compilation_cache(notes)
        loaded = VideoMV.from_pretrained(model)
        _comment(loaded, prompts, notes)
    for prompt in prompts:
        folder = _generate(loaded, prompt, out, settings, stages.seconds, console)
        console.print(f"{folder}/", markup=False, soft_wrap=True)


def _comment(model: "VideoMV", prompts: list[str], notes: Console) -> None:
    """Say beforehand what the model will not see or does not know."""
    from videomv_jax.data import synthetic
    from videomv_jax.types import InputError

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
    prompt: str,
    out: Path,
    settings: dict[str, Any],
    before: dict[str, float],
    console: Console,
) -> Path:
    """One prompt's folder; it appears when all is in it."""
    import dataclasses

    import jax

    from videomv_jax import atomic, outputs

    target = outputs.free_folder(out, prompt)
    with atomic.replacing(target, outputs.META) as folder, Stages(console) as stages:
        result = model.generate(prompt, **settings, progress=stages)
        dropped = {"sampling": result.dropped}
        turntable = None
        if result.gaussians is not None:
            films, dropped["turntable"] = model.turntable(
                result.gaussians, progress=stages
            )
            turntable = films[0]
        stages("writing", 0, 1)
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
                "prompt": prompt,
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
    return target
