"""Sphere tracing of many scenes from many cameras in one jitted function.

Coarse to fine: a cone per block of pixels is marched until it may touch something;
blocks that never do are done. The others, from all scenes and views, form one list
that is traced in chunks of fixed size, so the work follows the covered area while
all shapes stay static.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videomv_jax import compat
from videomv_jax.data.synthetic.scene import BOUND, SLOTS, Point, Scene
from videomv_jax.data.synthetic.shading import by_slot, separation, shade
from videomv_jax.splat.cameras import Cameras

BLOCK = 8
"""Pixels along the side of a block."""

CHUNK, CUDA_CHUNK = 512, 16384
"""Blocks traced together: what stays in a CPU's cache, what fills a GPU."""

CONE_STEPS, RAY_STEPS = 24, 24
"""More steps gain less than 0.1 dB against supersampled pictures."""

STRIDE, STRIDE_GROWTH = 0.5, 0.1
"""Shortest step in pixels, first and growth: short, not to miss how near a ray comes
to an edge; growing, so that rays along a surface get past it."""

_FAR = 1e3


class _Layer(NamedTuple):
    """A surface a ray meets: 0 at `outside` covers the pixel, 1 misses it."""

    outside: Array
    at: Array


def render_orbit(
    scenes: Scene, cameras: Cameras, background: float | Float[Array, "3"] = 0.5
) -> tuple[Float[Array, "b f h w 3"], Float[Array, "b f h w"]]:
    """Render every scene from every camera.

    The blocks of all scenes share one list: to split scenes over devices without
    moving them, call it inside `shard_map`.

    Args:
        scenes: leaves `[b, slots, ...]`.
        cameras: `[f]`, the same for all scenes, or `[b, f]`.
        background: grey level or rgb behind the object.

    Returns:
        rgb in [0, 1] composited over the background, and coverage in [0, 1].
    """
    behind = jnp.broadcast_to(jnp.asarray(background, jnp.float32), (3,))
    return _render(scenes, cameras, behind)


@jax.jit
def _render(scenes: Scene, cameras: Cameras, behind: Float[Array, "3"]):
    b, f = scenes.center.shape[0], cameras.intrinsics.shape[-2]
    h, w = cameras.height, cameras.width
    rows, columns = -(-h // BLOCK), -(-w // BLOCK)
    total = b * f * rows * columns

    views = Cameras(
        jnp.broadcast_to(cameras.world_to_camera, (b, f, 4, 4)).reshape(-1, 4, 4),
        jnp.broadcast_to(cameras.intrinsics, (b, f, 4)).reshape(-1, 4),
        h,
        w,
    )
    start = _cone_pass(scenes, views, rows, columns).reshape(total)
    active = start < _FAR
    rank = jnp.cumsum(active) - 1
    count = rank[-1] + 1
    chunk = min(CUDA_CHUNK if compat.has_cuda() else CHUNK, total)
    # The list ends in repeats of the last block, which nobody reads.
    order = jnp.nonzero(active, size=total + chunk, fill_value=total - 1)[0]

    def trace(state):
        first, images = state
        index = jax.lax.dynamic_slice(order, (first,), (chunk,))
        view, block = index // (rows * columns), index % (rows * columns)
        scene = jax.tree.map(lambda leaf: leaf[view // f], scenes)
        camera = jax.tree.map(lambda leaf: leaf[view], views)
        corner = jnp.stack([block % columns, block // columns], -1) * BLOCK
        pixels = _trace_blocks(scene, camera, corner, start[index])
        return first + chunk, jax.lax.dynamic_update_slice(
            images, pixels, (first, 0, 0, 0)
        )

    images = jnp.zeros((total + chunk, BLOCK, BLOCK, 4)) + _fill(start[0], 0.0)
    _, images = jax.lax.while_loop(lambda s: s[0] < count, trace, (0, images))
    images = images[jnp.where(active, rank, total + chunk - 1)]
    images = jnp.where(active[:, None, None, None], images, 0.0)
    images = images.reshape(b, f, rows, columns, BLOCK, BLOCK, 4)
    images = images.transpose(0, 1, 2, 4, 3, 5, 6)
    images = images.reshape(b, f, rows * BLOCK, columns * BLOCK, 4)[:, :, :h, :w]
    rgb, alpha = images[..., :3], images[..., 3]
    return rgb + (1.0 - alpha[..., None]) * behind.reshape(1, 1, 1, 1, 3), alpha


def _nearest(slots: Scene, point: Point) -> Array:
    """Distance `[k, m]` to the scene. A loop: unrolled fully it compiles for long."""

    def body(i, best):
        shape = jax.tree.map(lambda leaf: leaf[i], slots)
        return jnp.minimum(best, separation(shape, point))

    return jax.lax.fori_loop(0, SLOTS, body, _fill(point[0], _FAR), unroll=4)


def _rays(camera: Cameras, px: Array, py: Array) -> tuple[Point, Point]:
    """World origins and unit directions through pixel positions `[k, m]`.

    Args:
        camera: leaves `[k, ...]`.
        px, py: in pixels.
    """
    fx, fy, cx, cy = (camera.intrinsics[:, i, None] for i in range(4))
    u, v = (px - cx) / fx, (py - cy) / fy
    scale = jax.lax.rsqrt(u * u + v * v + 1.0)
    matrix, position = camera.world_to_camera, camera.positions

    def toward(i):
        right, down, ahead = (matrix[:, j, i, None] for j in range(3))
        return (right * u + down * v + ahead) * scale

    origin = (position[:, 0, None], position[:, 1, None], position[:, 2, None])
    return origin, (toward(0), toward(1), toward(2))


def _along(origin: Point, direction: Point, t: Array) -> Point:
    ox, oy, oz = origin
    dx, dy, dz = direction
    return ox + t * dx, oy + t * dy, oz + t * dz


def _cone_pass(
    scenes: Scene, views: Cameras, rows: int, columns: int
) -> Float[Array, "views blocks"]:
    """Distance at which each block's cone may first touch something.

    Returns:
        `[b * f, rows * columns]`, `_FAR` where the cone touches nothing.
    """
    b, n = scenes.center.shape[0], views.intrinsics.shape[0]
    block = jnp.arange(rows * columns)
    px = (block % columns * BLOCK + BLOCK // 2).astype(jnp.float32)
    py = (block // columns * BLOCK + BLOCK // 2).astype(jnp.float32)
    px, py = (jnp.broadcast_to(v[None], (n, v.size)) for v in (px, py))
    # Half the diagonal and more: coverage reaches half a pixel outside.
    spread = (BLOCK / 2 + 0.5) * math.sqrt(2) / views.intrinsics[:, :1]
    # One row per scene, as the primitives are.
    origin, direction, spread = jax.tree.map(
        lambda v: jnp.broadcast_to(v, px.shape).reshape(b, -1),
        (*_rays(views, px, py), spread),
    )
    near, far = _ball(origin, direction, BOUND * 1.25)
    slots = by_slot(scenes)

    def step(_, t):
        d = _nearest(slots, _along(origin, direction, t))
        # The cone widens as it goes: stay where the next step could enter.
        ahead = (d - spread * t) / (1.0 + spread)
        return jnp.where(t < far, t + jnp.maximum(ahead, 0.0), t)

    t = near + _fill(jnp.asarray(scenes.slope)[:, :1], 0.0)
    t = jax.lax.fori_loop(0, CONE_STEPS, step, t)
    return jnp.where(t < far, t, _FAR).reshape(n, rows * columns)


def _ball(origin: Point, direction: Point, radius: float) -> tuple[Array, Array]:
    """Where rays enter and leave a ball around the world's origin."""
    middle = -sum(o * d for o, d in zip(origin, direction, strict=True))
    apart = sum(o * o for o in origin) - middle * middle
    half = jnp.sqrt(jnp.maximum(radius * radius - apart, 0.0))
    return jnp.maximum(middle - half, 1e-3), middle + half


def _trace_blocks(
    scene: Scene,
    camera: Cameras,
    corner: Int[Array, "k 2"],
    start: Float[Array, " k"],
) -> Float[Array, "k y x 4"]:
    """Trace the pixels of k blocks to premultiplied rgb and coverage.

    Args:
        scene, camera: leaves `[k, ...]`.
        corner: first pixel (x, y) of each block.
        start: distance at which to begin.
    """
    within = jnp.arange(BLOCK * BLOCK)
    px = (corner[:, :1] + (within % BLOCK)[None]).astype(jnp.float32) + 0.5
    py = (corner[:, 1:] + (within // BLOCK)[None]).astype(jnp.float32) + 0.5
    origin, direction = _rays(camera, px, py)
    footprint = 1.0 / camera.intrinsics[:, :1]
    slots = by_slot(scene)

    def step(i, state):
        t, before, back, front = state
        d = _nearest(slots, _along(origin, direction, t))
        pixel = footprint * t
        # 0 a half pixel inside, 1 a half pixel outside: thin parts fade, none vanish.
        outside = d / pixel + 0.5
        hit = back.outside <= 0.0
        # Passing an edge: keep it as a partly covered layer in front.
        passed = ~hit & (outside >= 1.0) & (back.outside < 1.0) & (front.outside >= 1.0)
        front = _choose(passed, back, front)
        back = _Layer(jnp.where(passed, 1.0, back.outside), back.at)
        # A step may end deep inside: the surface is where the line crosses zero.
        share = jnp.clip(outside / (outside - before.outside - 1e-6), 0.0, 1.0)
        at = jnp.where(outside < 0.0, t - share * (t - before.at), t)
        nearer = ~hit & (outside < back.outside)
        back = _choose(nearer, _Layer(outside, at), back)
        shortest = (STRIDE + STRIDE_GROWTH * i.astype(jnp.float32)) * pixel
        stride = jnp.maximum(d, shortest)
        return t + jnp.where(hit, 0.0, stride), _Layer(outside, t), back, front

    t = jnp.broadcast_to(start[:, None], px.shape)
    nothing = _Layer(_fill(t, 1.0), t)
    state = (t, nothing, nothing, nothing)
    *_, back, front = jax.lax.fori_loop(0, RAY_STEPS, step, state)

    def paint(layer):
        color = shade(scene, _along(origin, direction, layer.at), footprint * layer.at)
        return color, jnp.clip(1.0 - layer.outside, 0.0, 1.0)[..., None]

    back_color, back_cover = paint(back)
    front_color, front_cover = paint(front)
    back_cover = (1.0 - front_cover) * back_cover
    rgb = front_color * front_cover + back_color * back_cover
    rgba = jnp.concatenate([rgb, front_cover + back_cover], -1)
    return rgba.reshape(-1, BLOCK, BLOCK, 4)


def _fill(like: Array, value: float) -> Array:
    """`value` in the shape of `like`; its mesh axes too, which shard_map asks of
    what loops carry."""
    return 0.0 * like + value


def _choose(condition: Array, chosen: _Layer, other: _Layer) -> _Layer:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
