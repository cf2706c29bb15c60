"""What a source holds, and whether its cameras mean what they are read as.

The test of the cameras needs no truth: silhouettes seen from the right cameras agree on
a solid. A grid of points is carved by all of them; from cameras that mean something
else little is left, and what is left does not fill the silhouettes.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int

from videomv_jax.data.samples import Sample, SampleSource, spread
from videomv_jax.splat.cameras import Cameras
from videomv_jax.types import InputError

_GRID = 48  # points along a side of what is carved
_MASK = 40  # pixels along a side of a silhouette
_VIEWS = 12  # that carve
_CLEAR = 0.03  # by how much another reading has to be better to be named

# What the cameras may mean instead: what their own axes would have to be multiplied by.
READINGS: dict[str, tuple[int, int, int]] = {
    "x right, y down, z forward": (1, 1, 1),
    "OpenGL's axes, x right, y up, z back": (1, -1, -1),
    "left-handed axes, y up": (1, -1, 1),
    "mirrored views or a left-handed world": (-1, 1, 1),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What was seen of some samples.

    Attributes:
        samples: that the source lists.
        read: that could be read of those tried.
        problems: what is wrong with the others, by name.
        lost: views that cannot be read of samples that can.
        views: smallest and largest number of views.
        sizes: height and width of views, and how many samples have them.
        with_caption: samples that have one.
        words: mean length of a caption.
        texts: some captions.
        elevation, radius, fov: smallest and largest: degrees above the equator,
            distance to the origin, degrees across; None without cameras.
        up: mean of the views' upward directions in the world.
        readings: how much of the silhouettes the carved solid fills, by what the
            cameras may mean; empty without cameras or coverage.
        extent: farthest point of a carved solid from the origin.
        seconds: that reading one sample took a core.
        wall: that reading took in all.
        pictures: the first view of some samples, 8 bits, with coverage.
    """

    samples: int
    read: int
    problems: dict[str, str]
    lost: int
    views: tuple[int, int]
    sizes: dict[tuple[int, int], int]
    with_caption: int
    words: float
    texts: tuple[str, ...]
    elevation: tuple[float, float] | None
    radius: tuple[float, float] | None
    fov: tuple[float, float] | None
    up: tuple[float, float, float] | None
    readings: dict[str, float]
    extent: float
    seconds: float
    wall: float
    pictures: list[np.ndarray]

    def warnings(self) -> list[str]:
        """What looks wrong, in words."""
        found = []
        if self.readings:
            ours, best = next(iter(READINGS)), max(self.readings, key=self.readings.get)  # type: ignore[arg-type]
            if self.readings[best] > self.readings[ours] + _CLEAR:
                found.append(
                    f"the cameras look like {best}: silhouettes agree to "
                    f"{self.readings[best]:.2f}, read as {ours} to "
                    f"{self.readings[ours]:.2f}"
                )
            elif self.readings[ours] < 0.5:
                found.append(
                    f"silhouettes agree to {self.readings[ours]:.2f} only: views and "
                    "cameras do not belong together, or objects leave the views"
                )
            if self.extent > 1.1:
                found.append(f"objects reach {self.extent:.2f} from the origin, not 1")
        if self.up is not None and self.up[2] < 0.5 * math.hypot(*self.up):
            axis = int(np.argmax(np.abs(self.up)))
            sign = "-" if self.up[axis] < 0 else ""
            found.append(f"up is {sign}{'xyz'[axis]} in the world, want z")
        if self.with_caption < self.read:
            found.append(f"{self.read - self.with_caption} samples have no caption")
        return found


def inspect(
    source: SampleSource, limit: int | None = 64, *, threads: int = 4
) -> Report:
    """Read some samples, evenly spread over the source, and look at them.

    Args:
        source: any.
        limit: how many; None: all.
        threads: that read.
    """
    places = spread(len(source), limit)
    problems: dict[str, str] = {}
    samples: list[Sample] = []
    spent, began = 0.0, time.perf_counter()
    for place, sample, seconds in _read(source, places, threads):
        spent += seconds
        if isinstance(sample, InputError):
            problems[source.names[place]] = str(sample)
        else:
            samples.append(sample)
    wall = time.perf_counter() - began
    counts = [len(s.views) for s in samples] or [0]
    shapes = [s.views.shape[1:3] for s in samples]
    captions = [s.caption for s in samples if s.caption]
    seen = [s for s in samples if s.cameras is not None]
    matrices = [np.asarray(s.cameras.world_to_camera, np.float64) for s in seen]  # type: ignore[union-attr]
    elevation = radius = fov = up = None
    if seen:
        at = np.concatenate([_positions(m) for m in matrices])
        distance = np.linalg.norm(at, axis=-1)
        height = np.rad2deg(np.arcsin(at[:, 2] / np.maximum(distance, 1e-9)))
        elevation, radius = _range(height), _range(distance)
        fov = _range(np.concatenate([_fov(s.cameras) for s in seen]))  # type: ignore[arg-type]
        mean = -np.concatenate([m[:, 1, :3] for m in matrices]).mean(0)
        up = (float(mean[0]), float(mean[1]), float(mean[2]))
    carved = [s for s in seen if (s.views[..., 3] == 0).any()][:8]
    readings, extent = _silhouettes(carved) if carved else ({}, 0.0)
    return Report(
        samples=len(source),
        read=len(samples),
        problems=problems,
        lost=sum(len(s.lost) for s in samples),
        views=(min(counts), max(counts)),
        sizes={shape: shapes.count(shape) for shape in sorted(set(shapes))},
        with_caption=len(captions),
        words=float(np.mean([len(c.split()) for c in captions])) if captions else 0.0,
        texts=tuple(captions[:3]),
        elevation=elevation,
        radius=radius,
        fov=fov,
        up=up,
        readings=readings,
        extent=extent,
        seconds=spent / max(len(places), 1),
        wall=wall,
        pictures=[s.views[k] for s in samples[:8] for k in spread(len(s.views), 4)],
    )


def _read(
    source: SampleSource, places: list[int], threads: int
) -> Iterator[tuple[int, Sample | InputError, float]]:
    def read(place: int) -> tuple[int, Sample | InputError, float]:
        began = time.thread_time()
        try:
            found: Sample | InputError = source[place]
        except InputError as error:
            found = error
        return place, found, time.thread_time() - began

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(read, places)


def _positions(matrices: Float[np.ndarray, "f 4 4"]) -> Float[np.ndarray, "f 3"]:
    return -np.einsum("fij,fi->fj", matrices[:, :3, :3], matrices[:, :3, 3])


def _fov(cameras: Cameras) -> Float[np.ndarray, "f"]:
    focal = np.asarray(cameras.intrinsics)[:, 0]
    return np.rad2deg(2 * np.arctan(cameras.width / 2 / focal))


def _range(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _silhouettes(samples: list[Sample]) -> tuple[dict[str, float], float]:
    """Agreement for every reading, mean over samples; the largest solid's extent."""
    found, extent = np.zeros(len(READINGS)), 0.0
    for sample in samples:
        agreement, reach = _carve(sample)
        found += agreement / len(samples)
        extent = max(extent, reach)
    return dict(zip(READINGS, found.tolist(), strict=True)), extent


def _carve(sample: Sample) -> tuple[Float[np.ndarray, "r"], float]:
    """Share of the silhouettes that the solid of each reading fills, and how far that
    of the first reaches."""
    assert sample.cameras is not None
    matrices = np.asarray(sample.cameras.world_to_camera, np.float64)
    positions = _positions(matrices)
    center = _nearest_point(positions, matrices[:, 2, :3])
    focal = np.asarray(sample.cameras.intrinsics, np.float64)
    height, width = sample.views.shape[1:3]
    distance = np.linalg.norm(positions - center, axis=-1)
    half = np.median(distance * width / 2 / focal[:, 0])
    side = np.linspace(-half, half, _GRID)
    points = np.stack(np.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
    points = points + center
    views = spread(len(sample.views), _VIEWS)
    masks = [_mask(sample.views[k, ..., 3]) for k in views]
    agreement, reach = [], 0.0
    for number, signs in enumerate(READINGS.values()):
        inside, left, pixels = np.arange(len(points)), points, []
        for k, (loose, _) in zip(views, masks, strict=True):
            at = _pixels(left, matrices[k], focal[k], signs, height, width)
            stays = (at >= 0) & loose.reshape(-1)[at]
            inside, left = inside[stays], left[stays]
        for k, (_, core) in zip(views, masks, strict=True):
            drawn = np.zeros(_MASK * _MASK, bool)
            drawn[_pixels(left, matrices[k], focal[k], signs, height, width)] = True
            if core.any():
                pixels.append(drawn[core.reshape(-1)].mean())
        agreement.append(np.mean(pixels) if pixels else 0.0)
        if number == 0 and len(left):
            reach = float(np.linalg.norm(left, axis=-1).max())
    return np.array(agreement), reach


def _pixels(
    points: Float[np.ndarray, "n 3"],
    matrix: Float[np.ndarray, "4 4"],
    focal: Float[np.ndarray, "4"],
    signs: tuple[int, int, int],
    height: int,
    width: int,
) -> Int[np.ndarray, "n"]:
    """The mask's pixels that points fall on; -1 outside or behind."""
    x, y, z = ((points @ matrix[:3, :3].T + matrix[:3, 3]) * signs).T
    depth = np.where(z > 1e-6, z, np.inf)
    fx, fy, cx, cy = focal
    u = (fx * x / depth + cx) * _MASK / width
    v = (fy * y / depth + cy) * _MASK / height
    seen = np.isfinite(depth) & (u >= 0) & (u < _MASK) & (v >= 0) & (v < _MASK)
    u, v = np.where(seen, u, 0).astype(int), np.where(seen, v, 0).astype(int)
    return np.where(seen, v * _MASK + u, -1)


def _mask(alpha: np.ndarray) -> tuple[Bool[np.ndarray, "m m"], Bool[np.ndarray, "m m"]]:
    """A silhouette's pixels, small: those that it touches, and those it covers."""
    height, width = alpha.shape
    rows = np.arange(height) * _MASK // height
    columns = np.arange(width) * _MASK // width
    total, count = np.zeros((2, _MASK, _MASK))
    np.add.at(total, (rows[:, None], columns[None]), alpha > 127)
    np.add.at(count, (rows[:, None], columns[None]), 1)
    if not count.all():  # a view smaller than the mask
        near = np.arange(_MASK) * height // _MASK, np.arange(_MASK) * width // _MASK
        small = alpha[near[0][:, None], near[1][None]] > 127
        return small, small
    return total > 0, total > 0.9 * count


def _nearest_point(
    position: Float[np.ndarray, "f 3"], direction: Float[np.ndarray, "f 3"]
) -> Float[np.ndarray, "3"]:
    """The point nearest to all lines of sight; the origin if they are parallel."""
    across = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    matrix = across.sum(0)
    if np.linalg.cond(matrix) > 1e6:
        return np.zeros(3)
    return np.linalg.solve(matrix, np.einsum("fij,fj->i", across, position))
