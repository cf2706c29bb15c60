"""3D Gaussians as the rest of the project sees them: activated, in the world frame."""

import dataclasses

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """A set (or batch of sets) of n coloured 3D Gaussians.

    Attributes:
        means: `[..., n, 3]` centres.
        quats: `[..., n, 4]` rotations (w, x, y, z), normalised.
        scales: `[..., n, 3]` standard deviations along the rotated axes, > 0.
        opacities: `[..., n]` in (0, 1).
        colors: `[..., n, 3]` rgb in [0, 1].
    """

    means: Float[Array, "*b n 3"]
    quats: Float[Array, "*b n 4"]
    scales: Float[Array, "*b n 3"]
    opacities: Float[Array, "*b n"]
    colors: Float[Array, "*b n 3"]
