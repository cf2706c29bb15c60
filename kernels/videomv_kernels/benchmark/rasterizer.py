"""Time the rasterizer, forward and with all gradients, and compare it with gsplat.

Both are timed alike, see `queue`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomv_kernels.benchmark import peer
from videomv_kernels.benchmark.profile import kernel_ms
from videomv_kernels.benchmark.queue import queue_ms
from videomv_kernels.benchmark.scenes import Work, shell
from videomv_kernels.rasterize import RasterConfig, rasterize

TRAINED = ("means", "quats", "scales", "opacities", "colors")
# Room for pairs beyond what the scene needs.
_SLACK = 1.02
# The limits of gsplat, for the columns that compare with it.
_GSPLAT = RasterConfig(stop_rule="drop", alpha_max=0.999)


def describe() -> dict[str, str]:
    """Where this runs."""
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "gsplat": peer.version() or "not installed",
    }


def run(
    works: Sequence[Work],
    implementations: Sequence[str | None] = (None,),
    tiles: Sequence[tuple[int, int] | None] = (None,),
    *,
    calls: int = 20,
    scene_of: Callable[[Work], dict[str, np.ndarray]] = shell,
) -> Iterator[dict[str, Any]]:
    """A row for each case, implementation and tile, and one of gsplat's for each case.

    Args:
        works: what to render.
        implementations: as `rasterize` takes them.
        tiles: height and width; None for the tuned one.
        calls: length of a queue.
        scene_of: the arrays of a case.

    Yields:
        Times in milliseconds, those of every kernel on a GPU too, and memory in MiB,
        beside what was run. Rows of ours have `rgb_error` (mean absolute difference
        from gsplat) and `cosine` (the least of the gradients' cosines) where gsplat is
        installed.
    """
    for work in works:
        scene = scene_of(work)
        weights = _weights(work)
        theirs = None
        if peer.version():
            row, theirs = peer.measure(work, scene, weights, calls)
            yield _row(work, "gsplat") | row
        for implementation in implementations:
            for tile in tiles:
                name = implementation or "automatic"
                config = RasterConfig(tile=tile)
                row = _row(work, name) | {"tile": tile and f"{tile[0]}x{tile[1]}"}
                yield row | _measure(
                    work, scene, weights, config, implementation, calls, theirs
                )


def _row(work: Work, name: str) -> dict[str, Any]:
    return {"case": str(work), "implementation": name}


def _weights(work: Work) -> np.ndarray:
    """Factors of a loss that looks at rgb, depth and alpha everywhere."""
    shape = (work.scenes, work.views, work.size, work.size, 5)
    return np.random.default_rng(1).uniform(size=shape).astype(np.float32)


def _render(trained, rest, work: Work, config: RasterConfig, implementation):
    out = rasterize(
        **trained,
        **rest,
        height=work.size,
        width=work.size,
        config=config,
        implementation=implementation,
    )
    channels = (out.rgb, out.depth[..., None], out.alpha[..., None])
    return jnp.concatenate(channels, -1), out.overflow


def pairs_needed(scene, work: Work, config: RasterConfig, implementation) -> int:
    """The most pairs of any view: each view as a scene with room for one."""
    config = RasterConfig(tile=config.tile, pairs_per_view=1)
    first = {name: scene[name] for name in TRAINED}
    cameras = {name: x for name, x in scene.items() if name not in TRAINED}

    @jax.jit
    def view(trained, camera):
        camera = {name: x[:, None] for name, x in camera.items()}
        return _render(trained, camera, work, config, implementation)[1]

    overflow = [
        view(first, {name: x[:, k] for name, x in cameras.items()})
        for k in range(work.views)
    ]
    return 1 + int(np.max(jax.device_get(overflow)))


def _measure(work, scene, weights, config, implementation, calls, theirs):
    needed = pairs_needed(scene, work, config, implementation)
    trained = {name: jnp.asarray(scene[name]) for name in TRAINED}
    # Arguments, all of them: the compiler would spend seconds on large constants.
    rest = {n: jnp.asarray(x) for n, x in scene.items() if n not in TRAINED}
    weights = jnp.asarray(weights)

    def render(trained, rest, weights, config):
        return _render(trained, rest, work, config, implementation)

    def loss(trained, rest, weights, config):
        return (render(trained, rest, weights, config)[0] * weights).sum()

    def settled(config):
        return dataclasses.replace(config, pairs_per_view=int(_SLACK * needed))

    bound = settled(config)
    row: dict[str, Any] = {"pairs_per_view": needed}
    for name, function in (("forward", render), ("both", jax.grad(loss))):
        start = time.perf_counter()
        program = jax.jit(function, static_argnums=3)
        compiled = program.lower(trained, rest, weights, bound).compile()
        row[f"{name}_compile_s"] = time.perf_counter() - start
        call = functools.partial(compiled, trained, rest, weights)
        row[f"{name}_ms"] = queue_ms(call, jax.block_until_ready, calls)
        row[f"{name}_kernels"] = kernel_ms(call)
        if function is render:
            row["overflow"] = int(call()[1].sum())
        memory = compiled.memory_analysis()
        row[f"{name}_mib"] = memory.temp_size_in_bytes / 2**20 if memory else None
    if theirs is not None:
        bound = settled(dataclasses.replace(_GSPLAT, tile=config.tile))

        def alike(trained, rest, weights, config):
            # gsplat normalises quaternions, and takes the gradient through that.
            quats = trained["quats"]
            quats = quats / jnp.linalg.norm(quats, axis=-1, keepdims=True)
            trained = trained | {"quats": quats}
            image = render(trained, rest, weights, config)[0]
            return (image * weights).sum(), image

        both = jax.jit(jax.value_and_grad(alike, has_aux=True), static_argnums=3)
        (_, image), grads = both(trained, rest, weights, bound)
        row["rgb_error"] = float(np.abs(image[..., :3] - theirs.image[..., :3]).mean())
        row["cosine"] = min(
            _cosine(np.asarray(grads[name]), theirs.grads[name]) for name in TRAINED
        )
    return row


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x.astype(np.float64).ravel() for x in (a, b))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
