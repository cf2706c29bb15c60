"""The one solid everything is made of, and the objects made from it."""

import dataclasses

import jax
import numpy as np
import pytest

from videomv_jax.data.synthetic import (
    CATEGORIES,
    Description,
    build_scene,
    parse,
    stack_scenes,
)
from videomv_jax.data.synthetic.assembly import Assembly
from videomv_jax.data.synthetic.build import _extent, _pack
from videomv_jax.data.synthetic.scene import BOUND, SLOTS, distance, to_local
from videomv_jax.data.synthetic.vocabulary import COLORS, SIZES

POINTS = np.random.default_rng(0).uniform(-1.5, 1.5, (4000, 3))


def signed(build, points=POINTS):
    """Distance to the first solid that `build` adds to an assembly."""
    assembly = Assembly()
    build(assembly)
    shape = jax.tree.map(
        lambda leaf: leaf[0].astype(np.float64), _pack(assembly.solids)
    )
    return distance(shape, to_local(shape, tuple(points.T)), np)


def box_distance(p, half):
    q = np.abs(p) - half
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def test_ball():
    got = signed(lambda a: a.ball("", (0.2, 0, 0.1), 0.5))
    want = np.linalg.norm(POINTS - [0.2, 0, 0.1], axis=1) - 0.5
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_box():
    # Its edges around the axis are rounded by a millimetre.
    got = signed(lambda a: a.box("", (0, 0.1, 0), (0.3, 0.5, 0.2), bevel=0.0))
    want = box_distance(POINTS - [0, 0.1, 0], [0.3, 0.5, 0.2])
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_cylinder_along_x():
    got = signed(lambda a: a.tube("", (0, 0, 0), 0.3, 0.6, axis="x", bevel=0.0))
    radius = np.linalg.norm(POINTS[:, 1:], axis=1)
    flat = np.stack([radius, POINTS[:, 0]], 1)
    np.testing.assert_allclose(got, box_distance(flat, [0.3, 0.6]), atol=1e-5)


def test_torus():
    got = signed(lambda a: a.ring("", (0, 0, 0), 0.6, 0.2))
    around = np.linalg.norm(POINTS[:, :2], axis=1) - 0.6
    want = np.hypot(around, POINTS[:, 2]) - 0.2
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_pill():
    start, end = np.array([0.1, 0.2, -0.5]), np.array([0.4, -0.3, 0.6])
    got = signed(lambda a: a.rod("", start, end, 0.15))
    along = end - start
    share = np.clip((POINTS - start) @ along / (along @ along), 0, 1)
    want = np.linalg.norm(POINTS - start - share[:, None] * along, axis=1) - 0.15
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_cone_sides():
    got = signed(lambda a: a.tube("", (0, 0, 0), (0.6, 0.2), 0.5, bevel=0.0))
    radius = np.linalg.norm(POINTS[:, :2], axis=1)
    side = (radius - (0.4 - 0.4 * POINTS[:, 2])) * np.cos(np.arctan(0.4))
    near = (np.abs(POINTS[:, 2]) < 0.4) & (np.abs(side) < 0.1)
    assert near.sum() > 50
    np.testing.assert_allclose(got[near], side[near], atol=1e-5)


def test_ellipsoid_surface():
    """Zero on the surface and true to first order near it."""
    radii = np.array([0.8, 0.3, 0.5])
    onto = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True) * radii
    normal = onto / radii**2
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    got = signed(lambda a: a.ball("", (0, 0, 0), radii), onto + 0.01 * normal)
    np.testing.assert_allclose(got, 0.01, atol=1e-3)


def test_hollow_and_cut():
    probes = np.array([[0, 0, -0.5], [0, 0, 0.0], [0, 0, 0.5], [0.45, 0, -0.2]])
    bowl = signed(
        lambda a: a.ball("", (0, 0, 0), 0.55, wall=0.1, keep=((0, 0, -1), 0)), probes
    )
    # In the bottom, in the empty middle, above the cut, outside the wall.
    assert (bowl < 0).tolist() == [True, False, False, True]


def test_mirrored_solids_appear_on_both_sides():
    both = signed(lambda a: a.ball("", (0.5, 0.4, 0), 0.2, mirror="xy"))
    single = [
        np.linalg.norm(POINTS - [x, y, 0], axis=1) - 0.2
        for x in (-0.5, 0.5)
        for y in (-0.4, 0.4)
    ]
    np.testing.assert_allclose(both, np.min(single, axis=0), atol=1e-5)


@pytest.mark.parametrize("name", CATEGORIES)
def test_objects_fit_and_fill(name):
    for sizes in ((), *((word,) for word in SIZES), ("big", "tall", "wide")):
        scene = build_scene(Description(name, sizes=sizes))
        middle, radius = _extent(scene)
        # Grid points just outside round edges count.
        assert radius < BOUND * 1.05, sizes
        assert radius > 0.3, sizes
        np.testing.assert_allclose(middle, 0, atol=0.03)


def test_size_words_change_the_extent():
    def extent(*sizes):
        return build_scene(Description("gift", sizes=sizes)).half[0]

    plain = extent()
    assert np.all(extent("big") > plain * 1.1)
    assert np.all(extent("small") < plain * 0.75)
    tall, short = extent("tall"), extent("short")
    assert tall[2] / tall[1] > 1.2 * plain[2] / plain[1]
    assert short[2] / short[1] < 0.8 * plain[2] / plain[1]
    wide, narrow = extent("wide"), extent("narrow")
    assert wide[1] / wide[0] > 1.2 * plain[1] / plain[0]
    assert narrow[1] / narrow[0] < 0.8 * plain[1] / plain[0]


def test_colors_and_patterns_reach_the_slots():
    scene = build_scene(parse("a dotted red and white chair with blue legs"))
    used = {tuple(c) for c in scene.colors[scene.center[:, 0] < 100, 0].tolist()}
    float32 = {name: tuple(np.float32(c).tolist()) for name, c in COLORS.items()}
    assert used == {float32["red"], float32["blue"]}
    dotted = scene.pattern == 2
    assert dotted.sum() == 2
    assert {tuple(c) for c in scene.colors[dotted, 1].tolist()} == {float32["white"]}


def test_scenes_are_arrays_of_one_shape():
    scenes = [build_scene(Description(name)) for name in CATEGORIES]
    stacked = stack_scenes(scenes)
    for field in dataclasses.fields(stacked):
        leaf = getattr(stacked, field.name)
        assert isinstance(leaf, np.ndarray) and leaf.shape[:2] == (len(scenes), SLOTS)
        assert leaf.dtype == (np.int32 if field.name == "pattern" else np.float32)
        assert np.isfinite(leaf).all()


def test_building_twice_gives_the_same():
    one, two = (build_scene(parse("a tall blue robot")) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
