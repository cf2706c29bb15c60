"""The colour of surface points: blended parts, patterns and light."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_jax.data.synthetic.scene import Point, Scene, distance, to_local

LIGHT = (0.48, -0.32, 0.82)
"""Where the light comes from, in the world: above, in front, to the left."""

AMBIENT, DIFFUSE = 0.58, 0.46
"""A face away from the light keeps 0.58 of its colour; one towards it, 1.04."""

PROBE = 0.004
"""Distance of the samples that give the normal."""

BLEND = 0.5
"""Pixels over which the colours of two primitives blend: less than what parts stand
out from each other by, or they would show through."""

DOT = 0.33
"""Radius of dots in cells."""


def by_slot(scene: Scene) -> Scene:
    """Leaves `[k, slots, ...]` -> `[slots, k, 1, ...]`, to go with points `[k, m]`."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0)[:, :, None], scene)


def separation(shape: Scene, point: Point) -> Array:
    """Signed distance from a world point to one primitive."""
    return distance(shape, to_local(shape, point), jnp)


def shade(
    scene: Scene, point: Point, pixel: Float[Array, "k m"]
) -> Float[Array, "k m 3"]:
    """Colours in [0, 1] of points on the surface.

    Args:
        scene: leaves `[k, slots, ...]`.
        point: world coordinates `[k, m]`.
        pixel: size of a pixel there; detail is blurred over it.
    """
    apart = jax.lax.map(lambda shape: separation(shape, point), by_slot(scene))
    which = jnp.argmin(apart, 0)

    # Colours blend where primitives meet.
    excess = (apart - apart.min(0)[None]) / (BLEND * pixel[None])
    share = jnp.clip(1.0 - excess, 0.0, 1.0)
    share = share / share.sum(0)[None]
    colors = jnp.einsum("skm,ksic->kmic", share, scene.colors, precision="highest")

    def take(leaf):
        index = which.reshape(which.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, axis=1)

    shape = jax.tree.map(take, scene)
    local = to_local(shape, point)
    normal = _normal(shape, local)
    second = _pattern(shape, local, normal, pixel)[..., None]
    color = colors[..., 0, :] * (1 - second) + colors[..., 1, :] * second
    return jnp.clip(color * _light(shape, point, normal)[..., None], 0.0, 1.0)


def _normal(shape: Scene, local: Point) -> Point:
    """Unit normal in the local frame, from samples at the corners of a tetrahedron.

    A loop, because XLA's CPU backend would otherwise fuse the look-up of the primitive
    into every use of it.
    """
    corners = jnp.asarray(
        [(1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)], jnp.float32
    )
    x, y, z = local

    def sample(i, total: Point) -> Point:
        dx, dy, dz = corners[i]
        probe = (x + PROBE * dx, y + PROBE * dy, z + PROBE * dz)
        d = distance(shape, probe, jnp)
        return total[0] + d * dx, total[1] + d * dy, total[2] + d * dz

    zero = 0.0 * x  # not a constant: shard_map asks for the mesh axes of x
    nx, ny, nz = jax.lax.fori_loop(0, 4, sample, (zero, zero, zero))
    scale = jax.lax.rsqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    return nx * scale, ny * scale, nz * scale


def _light(shape: Scene, point: Point, normal: Point) -> Array:
    """Light on a surface, softly falling off around the object."""
    norm = math.sqrt(sum(v * v for v in LIGHT))
    facing = jnp.zeros_like(point[0])
    for i, toward in enumerate(LIGHT):
        world = sum(shape.rotation[..., j, i] * normal[j] for j in range(3))
        if i < 2:  # the side that is a mirror image
            mirrored = (shape.mirror[..., i] > 0) & (point[i] < 0)
            world = jnp.where(mirrored, -world, world)
        facing = facing + world * (toward / norm)
    return AMBIENT + DIFFUSE * (0.5 + 0.5 * facing)


def _pattern(
    shape: Scene, local: Point, normal: Point, pixel: Float[Array, "k m"]
) -> Array:
    """How much of the second colour shows at a point, 0 to 1."""
    x, y, z = local
    cells, around = shape.repeats[..., 0], shape.repeats[..., 1]
    # Two coordinates on the surface: around and along turned solids, else the two
    # axes the surface faces least.
    angle = jnp.arctan2(y, x) * around / (2 * math.pi)
    ax, ay, az = (abs(n) for n in normal)
    flat = around == 0.0
    u = jnp.where(flat, jnp.where((ax > ay) & (ax > az), y, x) * cells, angle)
    v = jnp.where(flat, jnp.where((az > ax) & (az > ay), y, z) * cells, z * cells)
    s = shape.stripes
    across = (s[..., 0] * x + s[..., 1] * y + s[..., 2] * z) * cells
    soft = pixel * cells

    def square(a):
        """A wave of -1 and 1 with unit half-period, blurred over a pixel."""
        wave = abs(jnp.mod(a, 2.0) - 1.0) - 0.5
        return jnp.clip(wave / jnp.maximum(soft, 1e-3) * 2, -1.0, 1.0)

    striped = 0.5 + 0.5 * square(across)
    checkered = 0.5 + 0.5 * square(u) * square(v)
    du, dv = jnp.mod(u, 1.0) - 0.5, jnp.mod(v, 1.0) - 0.5
    dotted = jnp.clip((DOT - jnp.sqrt(du * du + dv * dv)) / soft + 0.5, 0.0, 1.0)
    kind = shape.pattern
    return jnp.where(
        kind == 1,
        striped,
        jnp.where(kind == 2, dotted, jnp.where(kind == 3, checkered, 0.0)),
    )
