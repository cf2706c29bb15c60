"""The table of a model on objects it never saw, whose truth is known.

A caption of the synthetic set determines its object, so the views sampled from the
text have a ground truth: their PSNR says whether the prompt was obeyed. A model for
photos gets the first view instead.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomv_jax.data import synthetic
from videomv_jax.evaluation.consistency import self_consistency
from videomv_jax.evaluation.metrics import mean_lpips, psnr, ssim
from videomv_jax.models.lpips import LPIPS
from videomv_jax.pipeline import VideoMV
from videomv_jax.splat.cameras import orbit
from videomv_jax.splat.renderer import render
from videomv_jax.types import InputError

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Held-out captions with the truth of their orbits.

    Attributes:
        captions: the prompts.
        views: `[n, f, h, w, 3]` on the model's own cameras.
        between: the same from cameras half a step further, for the Gaussians.
    """

    captions: list[str]
    views: np.ndarray
    between: np.ndarray


def cameras_between(model: VideoMV):
    """Cameras half-way between the model's."""
    c = model.config.cameras
    return orbit(
        c.views,
        elevation=c.elevation,
        radius=c.radius,
        fov=c.fov,
        size=c.size,
        azimuth=180 / c.views,
    )


def held_out(model: VideoMV, count: int, seed: int) -> HeldOut:
    """Render the truth of `count` held-out captions.

    Raises:
        InputError: the model does not speak the synthetic set's grammar.
    """
    if model.config.caption_grammar != "synthetic":
        raise InputError(
            f"model: {model.config.name!r} was not trained on the synthetic set, so "
            "what it makes has no ground truth"
        )
    objects = synthetic.sample_descriptions(count, seed, "heldout")
    background = model.config.cameras.background
    truth: list[list[np.ndarray]] = [[], []]
    for one in objects:
        scene = synthetic.stack_scenes([synthetic.build_scene(one)])
        for views, cameras in zip(
            truth, (model.config.cameras.orbit(), cameras_between(model)), strict=True
        ):
            rgb, _ = synthetic.render_orbit(scene, cameras, background)
            views.append(np.asarray(rgb[0]))
    views, between = map(np.stack, truth)
    return HeldOut([one.text for one in objects], views, between)


def table(
    model: VideoMV,
    data: HeldOut,
    *,
    batch: int,
    seed: int = 0,
    fit: dict[str, Any] | None = None,
    lpips: LPIPS | None = None,
    captions: bool = False,
    told: Callable[[str], Any] = lambda text: None,
    made_views: Callable[[str, np.ndarray], Any] = lambda name, views: None,
    **sampling: Any,
) -> Iterator[tuple[str, Row]]:
    """Rows "plain" and, of a model with a reconstructor, "3D-aware".

    Where views are fitted a row "truth" follows. Columns, means over objects:
    `psnr` and `ssim` of the views against the truth, and `lpips` where given, all
    without the first view where that is given to the model;
    `gaussians_psnr` and `gaussians_ssim` of renders of the final Gaussians, where
    there are any, from cameras between the views;
    `consistency` in dB, see `evaluation.consistency`, of the views alone.

    Args:
        model: to judge.
        data: from `held_out`.
        batch: prompts sampled at once; must divide their number.
        seed: of the first prompt; both rows share all seeds.
        fit: options of the fit, such as `count` and `iterations`; None leaves the
            consistency out.
        lpips: the perceptual metric.
        captions: tell a model for photos the captions as well.
        told: called with what goes on.
        made_views: called with a row's name and its views, `[n, f, h, w, 3]`.
        sampling: options of `VideoMV.generate`.

    Raises:
        InputError: a batch that does not divide the captions.
    """
    if len(data.captions) % batch:
        raise InputError(f"batch: {batch} does not divide {len(data.captions)}")
    background = model.config.cameras.background
    cameras = model.config.cameras.orbit()

    def consistency(views: np.ndarray, fit: dict[str, Any]) -> float:
        parts = [
            self_consistency(
                jnp.asarray(views[i : i + batch]),
                cameras,
                background,
                jax.random.key(0),
                **fit,
            )
            for i in range(0, len(views), batch)
        ]
        return float(np.concatenate(parts).mean())

    photos = model.config.image_encoder is not None
    between = cameras_between(model)
    ways: dict[str, Any] = {"plain": {"steps_3d": ()}}
    if model.config.reconstructor is not None:
        ways["3D-aware"] = {"steps_3d": model.config.sampling.steps_3d}
    for name, way in ways.items():
        views, turned = [], []
        for i in range(0, len(data.captions), batch):
            told(f"{name}: objects {i + 1} to {i + batch}")
            options, some = sampling | way, slice(i, i + batch)
            if photos:
                options["images"] = list(data.views[some, 0])
            prompts = None if photos and not captions else data.captions[some]
            made = model.generate(prompts, seed=seed + i, **options)
            views.append(made.views.clip(0, 1))
            if made.gaussians is not None:
                renders = render(made.gaussians, between, background=background)
                turned.append(np.asarray(renders.rgb).clip(0, 1))
        views = np.concatenate(views)
        made_views(name, views)
        new, truth = (x[:, 1:] if photos else x for x in (views, data.views))
        row = {"psnr": _mean(psnr, new, truth), "ssim": _mean(ssim, new, truth)}
        if lpips is not None:
            row["lpips"] = mean_lpips(lpips, new, truth)
        if turned:
            renders = np.concatenate(turned)
            row["gaussians_psnr"] = _mean(psnr, renders, data.between)
            row["gaussians_ssim"] = _mean(ssim, renders, data.between)
        if fit is not None:
            told(f"{name}: fitting Gaussians to the even views")
            row["consistency"] = consistency(views, fit)
        yield name, row
    if fit is not None:
        told("truth: fitting Gaussians to the even views")
        yield "truth", {"consistency": consistency(data.views, fit)}


def _mean(metric: Callable[..., Any], images: np.ndarray, truth: np.ndarray) -> float:
    return float(metric(jnp.asarray(images), jnp.asarray(truth)).mean())
