"""From a `Description` to the arrays the renderer takes."""

import dataclasses
import functools

import jax
import numpy as np

from videomv_jax.data.synthetic.assembly import Assembly, Solid
from videomv_jax.data.synthetic.catalogue import CATEGORIES
from videomv_jax.data.synthetic.grammar import Description, Paint
from videomv_jax.data.synthetic.scene import BOUND, SLOTS, Scene, distance
from videomv_jax.data.synthetic.vocabulary import COLORS, PATTERNS, SIZES

FILL = 0.54
"""Radius of an object without size words."""

CELL = 0.17
"""Size of pattern cells in world units on an object of no special size."""


def build_scene(description: Description) -> Scene:
    """The object a description determines, as numpy arrays `[slots, ...]`."""
    scene, parts = _geometry(description.category, description.sizes)
    paints = description.paints()
    colors = np.zeros((SLOTS, 2, 3), np.float32)
    pattern = np.zeros(SLOTS, np.int32)
    for i, part in enumerate(parts):
        paint: Paint = paints[part]
        colors[i] = COLORS[paint.color], COLORS[paint.second or paint.color]
        pattern[i] = PATTERNS.index(paint.pattern) + 1 if paint.pattern else 0
    return dataclasses.replace(scene, colors=colors, pattern=pattern)


@functools.cache
def _geometry(category: str, sizes: tuple[str, ...]) -> tuple[Scene, tuple[str, ...]]:
    """Shapes without colours, and the part each slot belongs to."""
    kind = CATEGORIES[category]
    width, height, overall = np.prod([SIZES[s] for s in sizes] or [(1.0,) * 3], axis=0)
    plain = Assembly()
    kind.build(plain)
    scale = FILL / _extent(_pack(plain.solids))[1]

    assembly = Assembly(width, width if kind.round else 1.0, height)
    kind.build(assembly)
    scene = _pack(assembly.solids)
    middle, radius = _extent(scene)
    scale = min(scale * overall, BOUND / radius)
    parts = tuple(solid.part for solid in assembly.solids)
    return _place(scene, middle, scale, CELL * overall), parts


def _pack(solids: list[Solid]) -> Scene:
    """Solids as arrays; the slots left over are specks far away."""
    empty = Solid("", np.full(3, 1e3), np.eye(3), np.full(3, 1e-3), 1e-3, 0.0)
    rows = (solids + [empty] * SLOTS)[:SLOTS]
    halves = np.stack([s.half for s in rows])
    tapers = np.array([s.taper for s in rows])
    corners = np.array([s.corner for s in rows])
    stretches = np.stack([s.stretch for s in rows])
    round_ = corners >= halves[:, :2].min(1)
    across, around = _pattern_axes(halves * stretches, round_)
    lean = np.max(halves[:, :2] * np.abs(tapers), axis=1) / halves[:, 2]
    arrays = dict(
        center=np.stack([s.center for s in rows]),
        rotation=np.stack([s.rotation for s in rows]),
        half=halves,
        stretch=stretches,
        corner=corners,
        bevel=np.array([s.bevel for s in rows]),
        ring=np.array([s.ring for s in rows]),
        wall=np.array([s.wall for s in rows]),
        taper=tapers,
        slope=1 / np.sqrt(1 + lean**2),
        plane=np.stack([s.plane for s in rows]),
        mirror=np.array([[float(a in s.mirror) for a in "xy"] for s in rows]),
        colors=np.zeros((SLOTS, 2, 3)),
        repeats=np.stack([np.ones(SLOTS), around], 1),
        stripes=across,
    )
    return Scene(
        pattern=np.zeros(SLOTS, np.int32),
        **{name: value.astype(np.float32) for name, value in arrays.items()},
    )


def _pattern_axes(
    extents: np.ndarray, round_: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How patterns lie on solids.

    Args:
        extents: `[slots, 3]` half extents along the local axes.
        round_: `[slots]` whether the cross-section is round.

    Returns:
        The direction across which stripes alternate, local z unless the solid is flat
        along z; and whether patterns wrap around z, as on solids that are round and
        not flat.
    """
    upright = extents[:, 2] >= 0.6 * extents.max(1)
    across = np.where(upright, 2, np.argmax(extents[:, :2], axis=1))
    sides = np.sort(extents[:, :2], axis=1)
    return np.eye(3)[across], upright & round_ & (sides[:, 1] < 1.5 * sides[:, 0])


def _extent(scene: Scene) -> tuple[np.ndarray, float]:
    """Middle of the bounding box and radius of the ball around it.

    Measured on a grid of points in every solid's own box: cuts and holes count.
    """
    grid = np.linspace(-1.0, 1.0, 13)
    points = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    found = []
    for i in range(SLOTS):
        shape = jax.tree.map(lambda leaf: leaf[i], scene)  # noqa: B023
        if shape.center[0] > 100:
            continue
        grow = 1 + np.abs(np.append(shape.taper, 0.0))
        local = points * (shape.half * shape.stretch * grow)
        inside = distance(shape, tuple(local.T), np) <= 0.01
        world = local[inside] @ shape.rotation + shape.center
        for axis in np.flatnonzero(shape.mirror):
            flip = np.where(np.arange(3) == axis, -1.0, 1.0)
            world = np.concatenate([world, world * flip])
        found.append(world)
    cloud = np.concatenate(found)
    middle = (cloud.min(0) + cloud.max(0)) / 2
    # Mirrored solids need the mirror planes to stay where they are.
    middle[:2][scene.mirror.any(0)] = 0.0
    return middle, float(np.linalg.norm(cloud - middle, axis=1).max())


def _place(scene: Scene, middle: np.ndarray, scale: float, cell: float) -> Scene:
    """Move `middle` to the origin, scale all lengths, set the pattern repeats."""
    lengths = ("half", "corner", "bevel", "ring", "wall")
    scaled = {name: getattr(scene, name) * np.float32(scale) for name in lengths}
    center = (scene.center - middle) * scale
    plane = scene.plane * np.array([1, 1, 1, scale])
    radius = np.min(scaled["half"][:, :2] * scene.stretch[:, :2], axis=1)
    around = np.maximum(np.round(2 * np.pi * radius / cell), 4.0)
    repeats = np.stack([np.full(SLOTS, 1 / cell), scene.repeats[:, 1] * around], 1)
    return dataclasses.replace(
        scene,
        center=center.astype(np.float32),
        plane=plane.astype(np.float32),
        repeats=repeats.astype(np.float32),
        **scaled,
    )
