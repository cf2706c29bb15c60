"""Sphere tracing of many scenes from many cameras in one jitted function.

Coarse to fine: a cone per block of pixels is marched until it may touch something;
blocks that never do are done. The others, from all scenes and views, form one list
that is traced in chunks of fixed size, so the work follows the covered area while
all shapes stay static.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from videomv_jax import compat
from videomv_jax.data.synthetic.scene import BOUND, SLOTS, Scene, distance, to_local
from videomv_jax.splat.cameras import Cameras

BLOCK = 8
CHUNK, CUDA_CHUNK = 512, 16384
"""Blocks traced together: what stays in a CPU's cache, what fills a GPU."""

CONE_STEPS = 24
RAY_STEPS = 24
STRIDE = 1.5
LIGHT = (0.48, -0.32, 0.82)
AMBIENT, DIFFUSE = 0.58, 0.46
_FAR = 1e3


def render_orbit(
    scenes: Scene, cameras: Cameras, background: float = 0.5
) -> tuple[Float[Array, "b f h w 3"], Float[Array, "b f h w"]]:
    """Render every scene from every camera.

    Args:
        scenes: leaves `[b, slots, ...]`.
        cameras: `[f]`, the same for all scenes, or `[b, f]`.
        background: grey level or rgb behind the object.

    Returns:
        rgb in [0, 1] composited over the background, and coverage in [0, 1].
    """
    premultiplied, alpha = _render(scenes, cameras)
    behind = jnp.broadcast_to(jnp.asarray(background, jnp.float32), (3,))
    behind = behind.reshape((1,) * (premultiplied.ndim - 1) + (3,))
    return premultiplied + (1 - alpha[..., None]) * behind, alpha


@jax.jit
def _render(scenes: Scene, cameras: Cameras):
    b = scenes.center.shape[0]
    f = cameras.intrinsics.shape[-2]
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

    images = jnp.zeros((total + chunk, BLOCK, BLOCK, 4))
    _, images = jax.lax.while_loop(lambda s: s[0] < count, trace, (0, images))
    images = images[jnp.where(active, rank, total + chunk - 1)]
    images = jnp.where(active[:, None, None, None], images, 0.0)
    images = images.reshape(b, f, rows, columns, BLOCK, BLOCK, 4)
    images = images.transpose(0, 1, 2, 4, 3, 5, 6)
    images = images.reshape(b, f, rows * BLOCK, columns * BLOCK, 4)[:, :, :h, :w]
    return images[..., :3], images[..., 3]


def _by_slot(scene: Scene) -> Scene:
    """Leaves `[k, slots, ...]` -> `[slots, k, 1, ...]`, to go with points `[k, m]`."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0)[:, :, None], scene)


def _distance(shape: Scene, point):
    return distance(shape, *to_local(shape, *point), jnp)


def _nearest(slots: Scene, point):
    """Distance `[k, m]` to the scene. A loop: unrolled fully it compiles for long."""

    def body(i, best):
        shape = jax.tree.map(lambda leaf: leaf[i], slots)
        return jnp.minimum(best, _distance(shape, point))

    return jax.lax.fori_loop(0, SLOTS, body, jnp.full_like(point[0], _FAR), unroll=4)


def _directions(camera: Cameras, px, py):
    """World directions through pixel positions `[k, m]`, camera leaves `[k, ...]`.

    Normalised, as separate components.
    """
    focal = camera.intrinsics
    u = (px - focal[:, 2:3]) / focal[:, 0:1]
    v = (py - focal[:, 3:4]) / focal[:, 1:2]
    length = jax.lax.rsqrt(u * u + v * v + 1.0)
    r = camera.world_to_camera
    return tuple(
        (r[:, 0, i, None] * u + r[:, 1, i, None] * v + r[:, 2, i, None]) * length
        for i in range(3)
    )


def _origin(camera: Cameras):
    return tuple(camera.positions[:, i, None] for i in range(3))


def _along(origin, direction, t):
    return tuple(o + t * d for o, d in zip(origin, direction, strict=True))


def _enter(origin, direction, radius: float):
    """Where rays enter and leave the ball all objects fit in."""
    middle = -sum(o * d for o, d in zip(origin, direction, strict=True))
    apart = sum(o * o for o in origin) - middle * middle
    half = jnp.sqrt(jnp.maximum(radius * radius - apart, 0.0))
    return jnp.maximum(middle - half, 0.0), middle + half


def _cone_pass(scenes: Scene, views: Cameras, rows: int, columns: int):
    """Distance at which each block's cone may first touch something, `_FAR` if never.

    Returns `[b * f, rows * columns]`.
    """
    n = views.intrinsics.shape[0]
    b = scenes.center.shape[0]
    corner = jnp.arange(rows * columns)
    px = (corner % columns * BLOCK + BLOCK / 2).astype(jnp.float32)
    py = (corner // columns * BLOCK + BLOCK / 2).astype(jnp.float32)
    px, py = (jnp.broadcast_to(v[None], (n, v.size)) for v in (px, py))
    origin, direction = _origin(views), _directions(views, px, py)
    # A pixel more than half the diagonal: coverage reaches half a pixel outside.
    spread = (BLOCK / 2 + 0.5) * math.sqrt(2) / views.intrinsics[:, :1]
    # One row per scene, as the primitives are.
    origin = tuple(jnp.broadcast_to(o, px.shape).reshape(b, -1) for o in origin)
    direction = tuple(d.reshape(b, -1) for d in direction)
    spread = jnp.broadcast_to(spread, px.shape).reshape(b, -1)
    near, far = _enter(origin, direction, BOUND * 1.25)
    slots = _by_slot(scenes)

    def step(_, t):
        d = _nearest(slots, _along(origin, direction, t))
        # The cone widens as it goes: stay where the next step could enter.
        ahead = (d - spread * t) / (1 + spread)
        return jnp.where(t < far, t + jnp.maximum(ahead, 0.0), t)

    t = jax.lax.fori_loop(0, CONE_STEPS, step, near)
    return jnp.where(t < far, t, _FAR).reshape(n, rows * columns)


def _trace_blocks(scene: Scene, camera: Cameras, corner, start):
    """Trace the pixels of k blocks; returns premultiplied rgb and alpha.

    Args:
        scene, camera: leaves `[k, ...]`.
        corner: `[k, 2]` first pixel (x, y) of each block.
        start: `[k]` distance at which to begin.
    """
    within = jnp.arange(BLOCK * BLOCK)
    px = (corner[:, :1] + (within % BLOCK)[None]).astype(jnp.float32) + 0.5
    py = (corner[:, 1:] + (within // BLOCK)[None]).astype(jnp.float32) + 0.5
    origin, direction = _origin(camera), _directions(camera, px, py)
    footprint = 1 / camera.intrinsics[:, :1]
    _, far = _enter(origin, direction, BOUND * 1.25)

    slots = _by_slot(scene)

    def step(_, state):
        t, before, back, front = state
        d = _nearest(slots, _along(origin, direction, t))
        pixel = footprint * t
        # 0 when a half pixel inside, 1 when a half pixel outside.
        outside = d / pixel + 0.5
        hit = back[0] <= 0.0
        # Passing an edge: keep it as a partly covered layer in front.
        leaving = ~hit & (outside >= 1.0) & (back[0] < 1.0) & (front[0] >= 1.0)
        front = _select(leaving, back, front)
        back = (jnp.where(leaving, 1.0, back[0]), *back[1:])
        # A step may end deep inside: the surface is where the line crosses zero.
        share = jnp.clip(outside / (outside - before[0] - 1e-6), 0.0, 1.0)
        at = jnp.where(outside < 0.0, t - share * (t - before[1]), t)
        back = _select(~hit & (outside < back[0]), (outside, at), back)
        before = (outside, t)
        t = t + jnp.where(hit, 0.0, jnp.maximum(d + 0.5 * pixel, STRIDE * pixel))
        return t, before, back, front

    t = jnp.broadcast_to(start[:, None], px.shape)
    nothing = (jnp.ones_like(px), t)
    state = (t, nothing, nothing, nothing)
    *_, back, front = jax.lax.fori_loop(0, RAY_STEPS, step, state)

    def layer(outside, at):
        color = _shade(scene, slots, _along(origin, direction, at), footprint * at)
        return jnp.clip(1.0 - outside, 0.0, 1.0)[..., None], color

    back_cover, back_color = layer(*back)
    front_cover, front_color = layer(*front)
    through = (1.0 - front_cover) * back_cover
    rgb = front_color * front_cover + back_color * through
    rgba = jnp.concatenate([rgb, front_cover + through], -1)
    return rgba.reshape(-1, BLOCK, BLOCK, 4)


def _select(condition, chosen, other):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _shade(scene: Scene, slots: Scene, point, pixel):
    """Colour `[k, m, 3]` of surface points; `pixel` is a pixel's size there."""
    apart = jax.lax.map(lambda shape: _distance(shape, point), slots)
    which = jnp.argmin(apart, 0)

    # Colours blend over a pixel where primitives meet.
    share = jnp.clip(1.0 - (apart - apart.min(0)[None]) / pixel[None], 0.0, 1.0)
    share = share / share.sum(0)[None]
    colors = jnp.einsum("skm,ksic->kmic", share, scene.colors, precision="highest")

    def take(leaf):
        index = which.reshape(which.shape + (1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, index, axis=1)

    shape = jax.tree.map(take, scene)
    local = to_local(shape, *point)

    # Gradient from the corners of a tetrahedron. A loop, because XLA's CPU backend
    # would otherwise fuse the look-up of the primitive into every use of it.
    corners = jnp.asarray(
        [(1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)], jnp.float32
    )

    def sample(i, normal):
        to = corners[i]
        d = distance(shape, *(v + 0.004 * to[j] for j, v in enumerate(local)), jnp)
        return tuple(n + d * to[j] for j, n in enumerate(normal))

    zero = jnp.zeros_like(pixel)
    normal = jax.lax.fori_loop(0, 4, sample, (zero, zero, zero))
    length = jax.lax.rsqrt(sum(n * n for n in normal) + 1e-12)
    normal = [n * length for n in normal]
    # Back to the world; mirrored primitives mirror their normals too.
    r = shape.rotation
    world = [sum(r[..., j, i] * normal[j] for j in range(3)) for i in range(3)]
    for i in range(2):
        flip = (shape.mirror[..., i] > 0) & (point[i] < 0)
        world[i] = jnp.where(flip, -world[i], world[i])
    norm = math.sqrt(sum(v * v for v in LIGHT))
    facing = sum(n * (v / norm) for n, v in zip(world, LIGHT, strict=True))
    light = AMBIENT + DIFFUSE * (0.5 + 0.5 * facing)

    second = _pattern(shape, local, normal, pixel)[..., None]
    color = colors[..., 0, :] * (1 - second) + colors[..., 1, :] * second
    return jnp.clip(color * light[..., None], 0.0, 1.0)


def _pattern(shape: Scene, local, normal, pixel):
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
    dotted = jnp.clip((0.33 - jnp.sqrt(du * du + dv * dv)) / soft + 0.5, 0.0, 1.0)
    kind = shape.pattern
    return jnp.where(
        kind == 1,
        striped,
        jnp.where(kind == 2, dotted, jnp.where(kind == 3, checkered, 0.0)),
    )
