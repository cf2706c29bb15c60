"""Do rendered views and their cameras belong together? Gaussians fitted to the orbit
are compared with the views from anywhere, which the fit never saw.

videomv data render models --out rendered --size 128 --samples 8
python benchmarks/mesh_views.py rendered [--orbit 24] [--count 4096] [--rounds 3]

The orbit does not look into every hole, where anything may stand. So coverage is fitted
too, opacity costs something, and between rounds Gaussians that no view of the orbit
sees go, and what it sees most is halved in their place.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videomv_jax.data.orbit_folder import OrbitFolderSource
from videomv_jax.data.samples import Sample, over
from videomv_jax.evaluation.consistency import fit
from videomv_jax.evaluation.metrics import psnr
from videomv_jax.splat.cameras import Cameras
from videomv_jax.splat.gaussians import Gaussians, rotation_matrices
from videomv_jax.splat.renderer import render

GREY = 0.5
FAINT = 0.02  # opacity that is none
HIDDEN = 0.2  # share of a Gaussian that has to arrive in some view
THINNING = 0.01


def reconstruct(sample: Sample, seen: int, options: argparse.Namespace) -> Gaussians:
    """One object's Gaussians, `[1, count]`, from its first views."""
    assert sample.cameras is not None
    views = jnp.asarray(over(sample.views[None, :seen], GREY), jnp.float32) / 255
    alpha = jnp.asarray(sample.views[None, :seen, ..., 3], jnp.float32) / 255
    cameras = jax.tree.map(jnp.asarray, sample.cameras)[:seen]
    gaussians = None
    for number in range(options.rounds):
        if gaussians is not None:
            gaussians = renew(gaussians, *arrives(gaussians, cameras))
        gaussians = fit(
            views,
            cameras,
            GREY,
            jax.random.key(number),
            count=options.count,
            iterations=options.iterations,
            alpha=alpha,
            thinning=THINNING,
            start=gaussians,
        )
    assert gaussians is not None
    return gaussians


@jax.jit
def arrives(
    gaussians: Gaussians, cameras: Cameras
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """The share of each of one object's Gaussians that arrives in the view that sees
    it best, and the pixels it colours in all views."""

    def one(view):
        def total(colors):
            colored = dataclasses.replace(gaussians, colors=colors)
            return render(colored, cameras[view[None]]).rgb[..., 0].sum()

        pixels = jax.grad(total)(gaussians.colors)[0, :, 0]
        toward = cameras.world_to_camera[view, 2]
        depth = gaussians.means[0] @ toward[:3] + toward[3]
        # At most: as if seen across its two longest axes, with nothing before it.
        sides = jnp.sort(gaussians.scales[0], -1) * cameras.intrinsics[view, :1]
        area = 2 * jnp.pi * sides[:, 1] * sides[:, 2] / jnp.square(depth)
        return pixels / (area * gaussians.opacities[0]), pixels

    share, pixels = jax.lax.map(one, jnp.arange(len(cameras.intrinsics)))
    return share.max(0), pixels.sum(0)


def renew(
    gaussians: Gaussians, share: Float[Array, "n"], pixels: Float[Array, "n"]
) -> Gaussians:
    """Put halves of the most seen Gaussians in the places of those that nobody sees."""
    fields = {f.name: getattr(gaussians, f.name) for f in dataclasses.fields(gaussians)}
    means, quats, scales, opacities, colors = (
        np.array(fields[name][0])
        for name in ("means", "quats", "scales", "opacities", "colors")
    )
    gone = (np.asarray(share) < HIDDEN) | (opacities < FAINT)
    order = np.argsort(-np.where(gone, -1, np.asarray(pixels)))
    places = np.flatnonzero(gone)[: (~gone).sum()]
    halved = order[: len(places)]
    opacities[gone] = 0
    longest = scales[halved].argmax(-1)
    axes = np.asarray(rotation_matrices(jnp.asarray(quats[halved])))
    rows = np.arange(len(halved))
    shift = 0.7 * axes[rows, :, longest] * scales[halved, longest][:, None]
    scales[halved, longest] /= 1.6
    for values in (quats, scales, opacities, colors):
        values[places] = values[halved]
    means[places], means[halved] = means[halved] - shift, means[halved] + shift
    parts = (means, quats, scales, opacities, colors)
    return Gaussians(*(jnp.asarray(x)[None] for x in parts))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--orbit", type=int, default=24, help="views that are fitted")
    parser.add_argument("--count", type=int, default=4096, help="Gaussians")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300, help="of a round")
    options = parser.parse_args()
    source, seen = OrbitFolderSource(options.folder, views=None), options.orbit
    means = []
    for index, name in enumerate(source.names):
        sample = source[index]
        began = time.perf_counter()
        gaussians = reconstruct(sample, seen, options)
        truth = jnp.asarray(over(sample.views[None], GREY), jnp.float32) / 255
        cameras = jax.tree.map(np.asarray, sample.cameras)
        renders = render(gaussians, cameras, background=GREY)
        if dropped := int(renders.overflow.sum()):
            raise RuntimeError(f"{name}: the rasterizer dropped {dropped} pairs")
        quality = np.asarray(psnr(renders.rgb, truth))[0]
        means.append(quality[seen:].mean())
        print(
            f"{means[-1]:6.2f} dB on the {len(quality) - seen} others "
            f"(least {quality[seen:].min():.2f}), {quality[:seen].mean():6.2f} dB on "
            f"the fitted, {time.perf_counter() - began:.0f} s  {name}",
            flush=True,
        )
    print(f"{np.mean(means):6.2f} dB on the others, mean of {len(means)} objects")
    print({"device": jax.devices()[0].device_kind, "jax": jax.__version__})


if __name__ == "__main__":
    main()
