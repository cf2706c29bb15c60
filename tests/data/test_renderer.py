"""Pictures of the synthetic set say what their captions say."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from videomv_jax.data.synthetic import (
    CATEGORIES,
    Description,
    build_scene,
    parse,
    render_orbit,
    stack_scenes,
)
from videomv_jax.data.synthetic.vocabulary import COLORS
from videomv_jax.splat.cameras import orbit

GOLDEN = Path(__file__).parents[1] / "golden" / "synthetic_render.npz"
SIZE, BATCH = 64, 40
CAMERAS = orbit(6, size=SIZE)
NAMES = list(CATEGORIES)


def render_scenes(scenes, background=0.5):
    """Orbits of any number of scenes by one compiled program."""
    padded = scenes + scenes[:1] * (-len(scenes) % BATCH)
    parts = [
        render_orbit(stack_scenes(padded[i : i + BATCH]), CAMERAS, background)
        for i in range(0, len(padded), BATCH)
    ]
    rgb, alpha = zip(*parts, strict=True)
    return np.concatenate(rgb)[: len(scenes)], np.concatenate(alpha)[: len(scenes)]


def render(descriptions, background=0.5):
    return render_scenes([build_scene(one) for one in descriptions], background)


@pytest.fixture(scope="module")
def plain():
    return render([Description(name) for name in NAMES])


def test_golden(plain):
    """The look of the set, so that trained weights stay good for it."""
    rgb, _ = plain
    small = rgb[:, ::3].reshape(-1, 2, 16, 4, 16, 4, 3).mean((3, 5))
    want = np.load(GOLDEN)
    assert list(want["names"]) == NAMES
    np.testing.assert_allclose(small, want["rgb"] / 255, atol=0.02)


def test_ranges_and_frame(plain):
    rgb, alpha = plain
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert alpha.min() >= 0 and alpha.max() <= 1
    np.testing.assert_allclose(rgb[alpha == 0], 0.5)
    big, big_alpha = render([Description(name, sizes=("big",)) for name in NAMES])
    for border in (big_alpha[..., 0, :], big_alpha[..., -1, :]):
        assert border.max() == 0
    for border in (big_alpha[..., 0], big_alpha[..., -1]):
        assert border.max() == 0


def test_every_category_is_seen_and_differs(plain):
    _, alpha = plain
    covered = alpha.mean((2, 3))
    assert covered.min() > 0.015, NAMES[covered.min(1).argmin()]
    shapes = alpha.reshape(len(alpha), -1)
    for i in range(len(shapes)):
        for j in range(i):
            both = np.minimum(shapes[i], shapes[j]).sum()
            either = np.maximum(shapes[i], shapes[j]).sum()
            assert both / either < 0.93, (NAMES[i], NAMES[j])


def assert_blue_became_purple(blue, purple, least, what):
    """Enough pixels differ, by the difference of the two colours, blended or not."""
    change = blue - purple
    assert (np.abs(change).sum(-1) > 0.1).sum() >= least, what
    change = change.reshape(-1, 3).sum(0)
    want = np.subtract(COLORS["blue"], COLORS["purple"])
    likeness = change @ want / np.linalg.norm(change) / np.linalg.norm(want)
    assert likeness > 0.99, (what, likeness)


def test_main_color_shows():
    # No default is blue or purple first, so nothing else changes.
    blue, _ = render([Description(n, "blue") for n in NAMES], 0.0)
    purple, _ = render([Description(n, "purple") for n in NAMES], 0.0)
    for i, name in enumerate(NAMES):
        assert_blue_became_purple(blue[i], purple[i], 300, name)


def test_every_named_part_shows_its_color():
    named = [(n, part) for n, kind in CATEGORIES.items() for part in kind.parts]

    def colored(color):
        return render(
            [Description(n, "black", parts=((part, color),)) for n, part in named], 0.0
        )[0]

    blue, purple = colored("blue"), colored("purple")
    for i, part in enumerate(named):
        assert_blue_became_purple(blue[i], purple[i], 8, part)


def test_patterns_show_both_colors():
    kinds = ("striped", "dotted", "checkered")
    rgb, alpha = render([parse(f"a {k} yellow and blue gift") for k in kinds])
    solid = alpha > 0.99
    blue = (rgb[..., 2] > rgb[..., 0] + 0.2) & solid
    yellow = (rgb[..., 0] > rgb[..., 2] + 0.2) & solid
    for i in range(3):
        assert blue[i].sum() > 0.15 * solid[i].sum()
        assert yellow[i].sum() > 0.15 * solid[i].sum()
    assert np.abs(rgb[0] - rgb[1]).mean() > 0.01
    assert np.abs(rgb[1] - rgb[2]).mean() > 0.01


def test_front_faces_the_first_view():
    """The clock's white face is seen from view 0 and not from behind."""
    rgb, alpha = render([parse("a red clock")])
    white = (rgb[0].min(-1) > 0.6) & (alpha[0] > 0.99)
    assert white[0].sum() > 100 and white[3].sum() == 0
    # +y is on the right there, and a mug's handle is.
    rgb, _ = render([parse("a white mug with a blue handle")])
    _, columns = np.nonzero(rgb[0, 0, ..., 2] > rgb[0, 0, ..., 0] + 0.2)
    assert columns.min() > SIZE // 2


def test_edges_are_antialiased(plain):
    """Close to pictures of four times the size, averaged."""
    chosen = [NAMES.index(n) for n in ("chair", "boat", "umbrella", "cactus")]
    scenes = stack_scenes([build_scene(Description(NAMES[i])) for i in chosen])
    _, fine = render_orbit(scenes, CAMERAS[np.array([1])].resize(4 * SIZE, 4 * SIZE))
    fine = np.asarray(fine).reshape(4, SIZE, 4, SIZE, 4).mean((2, 4))
    error = plain[1][chosen, 1] - fine
    assert np.sqrt((error**2).mean()) < 0.03
    assert abs(error.mean()) < 0.005


def test_thin_parts_do_not_vanish():
    scene = build_scene(Description("lamp"))
    pole = np.argmax(scene.half[:, 2] * (scene.center[:, 0] < 100))
    radius = 0.003
    half, corner, bevel = scene.half.copy(), scene.corner.copy(), scene.bevel.copy()
    half[pole, :2] = corner[pole] = radius
    bevel[pole] = 0.9 * radius
    thin = dataclasses.replace(scene, half=half, corner=corner, bevel=bevel)
    _, alpha = render_scenes([thin])
    width = 2 * radius / 2.0 * float(CAMERAS.intrinsics[0, 0])  # in pixels, 2 away
    assert width < 0.3
    rows = alpha[0, :, SIZE // 2 + 6 : SIZE // 2 + 14].sum(-1)
    assert rows.min() > 0.5 * width
    assert rows.max() < 3 * width


def test_cameras_of_each_scene_and_odd_sizes():
    scenes = stack_scenes([build_scene(parse(t)) for t in ("a car", "a tree")])
    views = [
        dataclasses.replace(orbit(2, elevation=e, size=20), width=21)
        for e in (0.0, 40.0)
    ]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *views)
    rgb, alpha = render_orbit(scenes, both)
    assert rgb.shape == (2, 2, 20, 21, 3) and alpha.shape == (2, 2, 20, 21)
    for i, cameras in enumerate(views):
        shared, _ = render_orbit(scenes, cameras)
        np.testing.assert_allclose(shared[i], rgb[i], atol=1e-4)
        assert np.abs(shared[1 - i] - rgb[1 - i]).max() > 0.1


def test_background_shows_through_by_coverage(plain):
    objects = [Description(name) for name in NAMES]
    color = np.asarray([1.0, 0.5, 0.0], np.float32)
    rgb, alpha = render(objects, color)
    black, _ = render(objects, 0.0)
    np.testing.assert_allclose(rgb, black + (1 - alpha[..., None]) * color, atol=1e-5)
    np.testing.assert_array_equal(alpha, plain[1])


def test_scenes_split_over_devices():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    scenes = stack_scenes([build_scene(parse(t)) for t in ("a car", "a tree")])
    cameras = orbit(2, size=16)
    split = jax.shard_map(
        render_orbit, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=1e-6),
        jax.jit(split)(scenes, cameras),
        render_orbit(scenes, cameras),
    )
