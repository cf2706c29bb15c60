"""What is rendered: shells of Gaussians in an orbit, the same numbers everywhere."""

import dataclasses
import math

import numpy as np

_FIELD_OF_VIEW, _ELEVATION, _RADIUS = 49.1, 15.0, 1.5


@dataclasses.dataclass(frozen=True)
class Work:
    """One row of a table.

    Attributes:
        n: Gaussians of a scene.
        scenes: scenes at once; views: of each; size: of a square image, in pixels.
    """

    n: int
    scenes: int
    views: int
    size: int

    @classmethod
    def parse(cls, text: str) -> "Work":
        """From "n,scenes,views,size".

        Raises:
            ValueError: something else.
        """
        try:
            work = cls(*map(int, text.split(",")))
        except (TypeError, ValueError):
            work = None
        if work is None or min(dataclasses.astuple(work)) < 1:
            raise ValueError(f"case is {text!r}; wanted n,scenes,views,size above 0")
        return work

    def __str__(self) -> str:
        return f"{self.n:,} x {self.scenes} x {self.views} x {self.size}^2"


LARGE = (
    Work(65_536, 1, 24, 512),
    Work(65_536, 1, 24, 256),
    Work(16_384, 1, 24, 256),
    Work(65_536, 8, 4, 512),
)
SMALL = (Work(4_096, 1, 24, 64), Work(4_096, 1, 24, 128))


def shell(work: Work, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of `rasterize` by name, float32: a lumpy sphere for each scene."""
    rng = np.random.default_rng(seed)
    shape = (work.scenes, work.n)
    direction = rng.normal(size=(*shape, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    lumps = np.sin(6 * direction[..., :1]) * np.cos(5 * direction[..., 1:2])
    quats = rng.normal(size=(*shape, 4))
    scene = {
        "means": direction * (0.45 + 0.05 * lumps),
        "quats": quats / np.linalg.norm(quats, axis=-1, keepdims=True),
        "scales": 0.006 * np.exp(0.5 * rng.normal(size=(*shape, 3))),
        "opacities": rng.uniform(0.05, 1, size=shape),
        "colors": 0.5 + 0.5 * direction,
    }
    return {n: np.array(x, np.float32) for n, x in scene.items()} | cameras(work)


def cameras(work: Work) -> dict[str, np.ndarray]:
    """World to camera matrices and intrinsics of each scene's orbit."""
    matrices = _orbit(work.views)
    focal = 0.5 * work.size / math.tan(math.radians(_FIELD_OF_VIEW) / 2)
    lens = [focal, focal, work.size / 2, work.size / 2]
    shape = (work.scenes, work.views)
    return {
        "world_to_camera": np.tile(matrices, (work.scenes, 1, 1, 1)).astype(np.float32),
        "intrinsics": np.array(np.broadcast_to(lens, (*shape, 4)), np.float32),
    }


def _orbit(views: int) -> np.ndarray:
    """World to camera matrices around the z axis, OpenCV axes."""
    azimuth = 2 * np.pi * np.arange(views) / views
    elevation = np.radians(_ELEVATION)
    cos, sin = np.cos(azimuth), np.sin(azimuth)
    level, up = np.cos(elevation), np.full(views, np.sin(elevation))
    forward = -np.stack([level * cos, level * sin, up], -1)
    right = np.stack([-sin, cos, 0 * sin], -1)
    matrix = np.tile(np.eye(4), (views, 1, 1))
    matrix[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    matrix[:, 2, 3] = _RADIUS
    return matrix
