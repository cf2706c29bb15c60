"""The denoising loop: any sampler, guidance, 3D-aware steps, one compilation.

These functions are traced, not jitted: call them inside a `jax.jit` whose arguments
are the networks' parameters, the `Steps`, the state, the guidance scale and the key.
None of these recompiles. The loop has no callback into Python, because JAX keeps no
program with one in its compilation cache; to show progress, jit `advance` and call it
with until = 1, 2, 3 ...: the same program runs any stretch of the loop.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomv_jax.diffusion.process import to_x0
from videomv_jax.sampling.guidance import guide
from videomv_jax.sampling.samplers import MAX_STEPS, Steps
from videomv_jax.types import InputError, PredictionKind, PRNGKey

# (x [b, ...], t [b]) -> the network's output [n, ...]. Under guidance n is 2 b: of each
# sample the conditional branch, then the unconditional one.
Denoise = Callable[[Float[Array, "b ..."], Int[Array, "b"]], Float[Array, "n ..."]]

# (x0, key or None) -> x0, and a count of what the projection had to drop (0: nothing).
Project = Callable[
    [Float[Array, "n ..."], PRNGKey | None],
    tuple[Float[Array, "n ..."], Float[Array, ""]],
]

Mode = Literal["guided", "reference"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingState:
    """Where a denoising loop stands.

    Attributes:
        x: noisy latents, float32.
        x0: clean latents as the latest step saw them; a preview, and the history of
            second-order samplers.
        index: steps done.
        dropped: what the projections so far had to drop, see `Project`; rounded from
            16 million on.
    """

    x: Float[Array, "b ..."]
    x0: Float[Array, "b ..."]
    index: Int[Array, ""]
    dropped: Float[Array, ""]


def start(noise: Float[Array, "b ..."]) -> SamplingState:
    """The state before the first step: unit Gaussian noise, from `sample_noise`."""
    x = noise.astype(jnp.float32)
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return SamplingState(x, jnp.zeros_like(x), none, zero)


def sample(
    denoise: Denoise,
    kind: PredictionKind,
    steps: Steps,
    noise: Float[Array, "b ..."],
    **options,
) -> SamplingState:
    """Denoise from noise to the end; `options` as in `advance`.

    Returns:
        The state after the last step, whose `x` are the latents.
    """
    return advance(denoise, kind, steps, start(noise), MAX_STEPS, **options)


def advance(
    denoise: Denoise,
    kind: PredictionKind,
    steps: Steps,
    state: SamplingState,
    until: int | Int[Array, ""],
    *,
    guidance: float | Float[Array, ""] | None = None,
    rescale: float | Float[Array, ""] = 0.0,
    project: Project | None = None,
    mode: Mode = "guided",
    key: PRNGKey | None = None,
) -> SamplingState:
    """Run the loop until `until` steps are done, or all of them.

    Args:
        denoise: the network; its closure holds texts and cameras.
        kind: what the network predicts.
        steps: the sampler's table, marked by `project_at` where x0 is projected.
        state: from `start`, or from an earlier call.
        until: number of steps done at the end.
        guidance: scale of classifier-free guidance; None: the network has one branch.
        rescale: see `guide`.
        project: the 3D projection of x0, a function the loop knows nothing about.
        mode: "guided" projects the guided x0, once. "reference" is the original: both
            branches' x0 are projected and guidance acts on the projections.
        key: for projections that draw noise; each step folds its index in.

    Raises:
        InputError: unknown kind or mode.
    """
    if mode not in get_args(Mode):
        raise InputError.unknown("sampling mode", mode, get_args(Mode))

    def projected(x0, index):
        if project is None:
            return x0, jnp.zeros((), jnp.float32)
        step_key = None if key is None else jax.random.fold_in(key, index)
        x0, dropped = project(x0, step_key)
        return x0.astype(jnp.float32), dropped.astype(jnp.float32)

    def estimate(x, index):
        """x0 at this step, and what its projection dropped."""
        times = jnp.broadcast_to(jnp.asarray(steps.t)[index], x.shape[:1])
        output = denoise(x, times).astype(jnp.float32)

        def merge(values):
            if guidance is None:
                return values
            branches = values.reshape(len(x), 2, *values.shape[1:])
            return guide(branches[:, 0], branches[:, 1], guidance, rescale)

        def plain():
            x0 = to_x0(steps, kind, x, merge(output), index)
            return x0, jnp.zeros((), jnp.float32)

        def aware():
            if mode == "guided":
                return projected(plain()[0], index)
            branches = jnp.repeat(x, len(output) // len(x), 0)
            x0 = to_x0(steps, kind, branches, output, index)
            x0, dropped = projected(x0, index)
            return merge(x0), dropped

        if project is None:
            return plain()
        return jax.lax.cond(jnp.asarray(steps.project)[index], aware, plain)

    def body(state):
        x0, dropped = estimate(state.x, state.index)
        a, b, c = (jnp.asarray(v)[state.index] for v in (steps.a, steps.b, steps.c))
        x = a * state.x + b * x0 + c * state.x0
        return SamplingState(x, x0, state.index + 1, state.dropped + dropped)

    last = jnp.minimum(jnp.asarray(until, jnp.int32), steps.count)
    return jax.lax.while_loop(lambda state: state.index < last, body, state)
