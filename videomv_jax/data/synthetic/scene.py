"""A scene: a fixed number of primitives, all of one parametrised solid.

The solid is a rounded rectangle swept along its local z axis, with per-axis taper,
bevelled edges, an optional hole along the axis, an optional inner hollow and one
optional planar cut. Boxes, prisms, pyramids, cylinders, cones, capsules, tubes,
tori, balls, domes and bowls are all settings of it, so every scene runs the same
program and the renderer has no branches.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int

Leaf: TypeAlias = jax.Array | np.ndarray
Point: TypeAlias = tuple[Any, Any, Any]
"""x, y, z, each of any shape, numpy or JAX: what vectorises best."""

SLOTS = 12
BOUND = 0.62
"""Objects fit in this ball around the origin: in frame for the default orbit."""

SOLID = 10.0
"""A wall thicker than any object: no hole, no hollow."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """Primitives of one scene, `[slots, ...]`, or of many, `[b, slots, ...]`.

    Lengths are in world units; "local" is the primitive's frame, centred on it.

    Attributes:
        center: world position.
        rotation: rows are the local axes in the world frame.
        half: half extents along the local axes.
        stretch: extra scale along the local axes; other than 1 for ellipsoids only.
        corner: corner radius of the cross-section (equal to `half` makes it round).
        bevel: radius of the edges at the two ends.
        ring: wall half-thickness of the cross-section; `SOLID` for no hole.
        wall: wall half-thickness of the whole solid; `SOLID` for no hollow.
        taper: relative growth of the cross-section's x and y from middle to end.
        slope: cosine of the steepest side's lean, which `taper` and `half` imply.
        plane: `n, c` with `n·p <= c` kept, local frame.
        mirror: 1 where the primitive is repeated mirrored in world x, y; else 0.
        colors: two rgb colours; the second one for the pattern.
        pattern: 0 plain, else 1 + index into `vocabulary.PATTERNS`.
        repeats: pattern cells per unit length, and around the axis (0 if flat).
        stripes: local direction across which stripes alternate.
    """

    center: Float[Leaf, "*b s 3"]
    rotation: Float[Leaf, "*b s 3 3"]
    half: Float[Leaf, "*b s 3"]
    stretch: Float[Leaf, "*b s 3"]
    corner: Float[Leaf, "*b s"]
    bevel: Float[Leaf, "*b s"]
    ring: Float[Leaf, "*b s"]
    wall: Float[Leaf, "*b s"]
    taper: Float[Leaf, "*b s 2"]
    slope: Float[Leaf, "*b s"]
    plane: Float[Leaf, "*b s 4"]
    mirror: Float[Leaf, "*b s 2"]
    colors: Float[Leaf, "*b s 2 3"]
    pattern: Int[Leaf, "*b s"]
    repeats: Float[Leaf, "*b s 2"]
    stripes: Float[Leaf, "*b s 3"]


def stack_scenes(scenes: Sequence[Scene]) -> Scene:
    """Scenes `[slots, ...]` -> one `Scene` of numpy leaves `[b, slots, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *scenes)


def to_local(shape: Scene, point: Point) -> Point:
    """A world point in a primitive's frame; mirrored primitives share a side."""
    x, y, z = point
    x = x + shape.mirror[..., 0] * (abs(x) - x) - shape.center[..., 0]
    y = y + shape.mirror[..., 1] * (abs(y) - y) - shape.center[..., 1]
    z = z - shape.center[..., 2]
    r = shape.rotation
    return (
        r[..., 0, 0] * x + r[..., 0, 1] * y + r[..., 0, 2] * z,
        r[..., 1, 0] * x + r[..., 1, 1] * y + r[..., 1, 2] * z,
        r[..., 2, 0] * x + r[..., 2, 1] * y + r[..., 2, 2] * z,
    )


def distance(shape: Scene, point: Point, xp: ModuleType) -> Any:
    """Signed distance from a local point to one primitive, negative inside.

    Exact on straight sides; a first-order estimate for ellipsoids; up to 40 % too
    long near the outer edges of strongly tapered solids.

    Args:
        shape: one primitive, leaves `[...]` that broadcast with the point.
        point: local coordinates.
        xp: `numpy` or `jax.numpy`.
    """
    x, y, z = point
    tiny = 1e-12
    planes = shape.plane
    cut = planes[..., 0] * x + planes[..., 1] * y + planes[..., 2] * z - planes[..., 3]
    x, y, z = (v / shape.stretch[..., i] for i, v in enumerate((x, y, z)))
    # First-order length of a unit step along the radius, undoing the stretch.
    sx, sy, sz = (v / shape.stretch[..., i] for i, v in enumerate((x, y, z)))
    unstretch = xp.sqrt(
        (x * x + y * y + z * z + tiny) / (sx * sx + sy * sy + sz * sz + tiny)
    )

    # Cross-section at this height: a rectangle with round corners.
    height = shape.half[..., 2]
    level = xp.clip(z / height, -1.0, 1.0)
    grow_x = 1.0 + shape.taper[..., 0] * level
    grow_y = 1.0 + shape.taper[..., 1] * level
    corner = shape.corner * xp.minimum(grow_x, grow_y)
    qx = abs(x) - shape.half[..., 0] * grow_x + corner
    qy = abs(y) - shape.half[..., 1] * grow_y + corner
    ox, oy = xp.maximum(qx, 0.0), xp.maximum(qy, 0.0)
    q = xp.sqrt(ox * ox + oy * oy) + xp.minimum(xp.maximum(qx, qy), 0.0) - corner
    q = (abs(q + shape.ring) - shape.ring) * shape.slope

    # Sweep along z with bevelled ends.
    u, v = q + shape.bevel, abs(z) - height + shape.bevel
    ou, ov = xp.maximum(u, 0.0), xp.maximum(v, 0.0)
    d = xp.sqrt(ou * ou + ov * ov) + xp.minimum(xp.maximum(u, v), 0.0) - shape.bevel
    d = d * unstretch
    d = abs(d + shape.wall) - shape.wall
    return xp.maximum(d, cut)
