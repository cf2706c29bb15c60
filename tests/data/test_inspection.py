"""What is told of a source; cameras that mean something else are named."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from trees import COUNT, TREES
from typer.testing import CliRunner

from videomv_jax.cli.data import data
from videomv_jax.data.inspection import READINGS, inspect
from videomv_jax.data.samples import Sample, make_cameras
from videomv_jax.splat.cameras import orbit
from videomv_jax.types import InputError

SIZE = 64
CAMERAS = orbit(12, elevation=20.0, size=SIZE)
BALLS = (((0.4, 0.1, 0.3), 0.2), ((-0.2, -0.3, -0.3), 0.3))


def balls() -> np.ndarray:
    """Views of two balls, which look the same from nowhere else."""
    matrix = np.asarray(CAMERAS.world_to_camera, np.float64)
    fx = float(CAMERAS.intrinsics[0, 0])
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    views = np.zeros((12, SIZE, SIZE, 4), np.uint8)
    for center, radius in BALLS:
        for k in range(12):
            a, b, c = matrix[k, :3, :3] @ center + matrix[k, :3, 3]
            distance = np.hypot(x - fx * a / c - SIZE / 2, y - fx * b / c - SIZE / 2)
            views[k][distance < radius * fx / c] = 255
    return views


class Given:
    layout = "given"

    def __init__(self, *samples):
        self.samples = samples
        self.names = [s.name for s in samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def sample(flip=(1, 1, 1), views=None, world=None):
    """The balls, the cameras' axes multiplied by `flip`, the world turned."""
    flips, turn = np.diag([*flip, 1]), np.eye(4)
    if world is not None:
        turn[:3, :3] = world
    matrices = flips @ np.asarray(CAMERAS.world_to_camera) @ turn.T
    cameras = make_cameras(matrices, np.asarray(CAMERAS.intrinsics), SIZE, SIZE)
    return Sample("balls", "two balls", balls() if views is None else views, cameras)


def test_right_cameras():
    report = inspect(Given(sample()))
    assert report.warnings() == []
    agreement = list(report.readings.values())
    assert agreement[0] > 0.95 and max(agreement[1:]) < 0.8
    assert 0.5 < report.extent < 0.9
    np.testing.assert_allclose(report.elevation, 20, atol=1e-3)
    np.testing.assert_allclose(report.radius, 2, atol=1e-5)
    np.testing.assert_allclose(report.fov, 39.6, atol=1e-3)
    assert (report.with_caption, report.words) == (1, 2)


@pytest.mark.parametrize("reading", list(READINGS)[1:])
def test_another_meaning_is_named(reading):
    wrong = sample(flip=READINGS[reading])
    assert any(reading in text for text in inspect(Given(wrong)).warnings())


def test_mirrored_views_are_named():
    wrong = sample(views=balls()[:, :, ::-1])
    assert any("mirrored" in text for text in inspect(Given(wrong)).warnings())


def test_views_of_other_cameras():
    wrong = sample(views=balls()[np.random.default_rng(0).permutation(12)])
    assert any("do not belong" in text for text in inspect(Given(wrong)).warnings())


def test_a_world_with_y_up():
    # z to y, y to -z.
    turned = sample(world=np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]))
    (told,) = inspect(Given(turned)).warnings()
    assert told == "up is y in the world, want z"


def test_no_coverage_no_check():
    full = balls()
    full[..., 3] = 255
    report = inspect(Given(dataclasses.replace(sample(views=full), caption="")))
    assert not report.readings and report.warnings() == ["1 samples have no caption"]


@pytest.mark.parametrize("layout", sorted(TREES))
def test_command(layout, tmp_path):
    names = TREES[layout](tmp_path / "tree")
    sheet = tmp_path / "sheet.png"
    arguments = ["inspect", str(tmp_path / "tree"), "--sheet", str(sheet)]
    result = CliRunner().invoke(data, arguments)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert f"layout {layout}" in text and f"samples {len(names)}, looked" in text
    with Image.open(sheet) as image:
        assert image.size[0] >= 384
    if layout == "nerf":
        shutil.rmtree(tmp_path / "tree" / "scene1" / "train")
        result = CliRunner().invoke(data, arguments)
        assert "unreadable: scene1" in result.output
        assert f"captions {COUNT - 1} of {COUNT - 1}" in " ".join(result.output.split())


def test_bad_input(tmp_path):
    TREES["views"](tmp_path / "tree")
    arguments = ["inspect", str(tmp_path / "tree"), "--sheet", "sheet.jpg"]
    result = CliRunner().invoke(data, arguments)
    assert isinstance(result.exception, InputError) and "png" in str(result.exception)
