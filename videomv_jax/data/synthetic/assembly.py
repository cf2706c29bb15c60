"""How categories are declared: named parts put together from a few solids.

A category is one function that calls the methods of an `Assembly`; the decorator
`category` registers it with its parts and their default colours. Builders work in
units of their own choosing: objects are centred and scaled to fit afterwards.
Objects stand on z = up and face +x.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from videomv_jax.data.synthetic.scene import SLOTS, SOLID

MAIN = "main"
"""Default of parts that wear the caption's main colour and pattern."""

Vector = Sequence[float]
Turn = tuple[str, float]
_AXES = {"x": 0, "y": 1, "z": 2}
# Local z along the named world axis; local x, y stay as near to world x, y as can be.
_FRAMES = {
    "x": np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float64),
    "y": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64),
    "z": np.eye(3),
}


@dataclasses.dataclass(frozen=True)
class Category:
    """A kind of object.

    Attributes:
        name: as captions say it.
        parts: nameable parts -> `MAIN`, or default colours in order of preference
            (the first that differs from the main colour is worn).
        details: the same for parts captions cannot name.
        color: main colour of captions that name none.
        body: whether it has solids of no named part; they wear the main colour.
        round: whether "wide" and "narrow" mean depth as well as width.
        build: puts the parts together.
    """

    name: str
    parts: Mapping[str, str | tuple[str, ...]]
    details: Mapping[str, tuple[str, ...]]
    color: str
    body: bool
    round: bool
    build: Callable[["Assembly"], None]


CATEGORIES: dict[str, Category] = {}


def category(
    name: str,
    *,
    parts: Mapping[str, str | tuple[str, ...]],
    color: str,
    details: Mapping[str, tuple[str, ...]] | None = None,
    round: bool = False,
) -> Callable[[Callable[["Assembly"], None]], Callable[["Assembly"], None]]:
    """Register the decorated builder; arguments as `Category`'s attributes."""

    def register(build: Callable[["Assembly"], None]):
        declared = {**parts, **(details or {})}
        probe = Assembly()
        build(probe)
        used = {solid.part for solid in probe.solids}
        if used - {""} != set(declared):
            raise ValueError(f"{name}: parts {used}, declared {set(declared)}")
        CATEGORIES[name] = Category(
            name, dict(parts), dict(details or {}), color, "" in used, round, build
        )
        return build

    return register


def rotation(turn: Turn) -> np.ndarray:
    """World rotation by `(axis name, degrees)`."""
    axis, degrees = turn
    i, j = ((1, 2), (2, 0), (0, 1))[_AXES[axis]]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


@dataclasses.dataclass(frozen=True)
class Solid:
    """One primitive before colours: the part it belongs to, and fields of `Scene`."""

    part: str
    center: np.ndarray
    rotation: np.ndarray
    half: np.ndarray
    corner: float
    bevel: float
    stretch: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(3))
    ring: float = SOLID
    wall: float = SOLID
    taper: tuple[float, float] = (0.0, 0.0)
    plane: np.ndarray = dataclasses.field(
        default_factory=lambda: np.array([0.0, 0.0, 0.0, SOLID])
    )
    mirror: str = ""


class Assembly:
    """Collects the solids of one object.

    Arguments that all methods share:
        part: the part the solid belongs to; "" for the body.
        center: world position.
        axis: world axis of cylinders and rings, and along which boxes taper.
        turn: rotation about the centre, axis name and degrees.
        bevel: edge radius at both ends of `axis`.
        mirror: world axes ("x", "y", "xy") across which the solid is repeated.
        keep: `(n, c)`: only what has `n·(p - center) >= c` stays, world frame.
        rigid: size words move the solid but leave its shape.

    Args:
        width, depth, height: factors along world y, x and z ("wide", "tall", ...).
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0, height: float = 1.0):
        self.factors = np.array([depth, width, height])
        self.solids: list[Solid] = []

    def _store(self, solid: Solid) -> None:
        if len(self.solids) == SLOTS:
            raise ValueError(f"an object has more than {SLOTS} solids")
        self.solids.append(solid)

    def _along(self, frame: np.ndarray) -> np.ndarray:
        """Factors along the axes of a local frame."""
        return np.linalg.norm(frame * self.factors, axis=1)

    def _cut(self, frame: np.ndarray, keep: tuple[Vector, float] | None) -> np.ndarray:
        """`Scene.plane` of a `keep` argument, after stretching."""
        if keep is None:
            return np.array([0.0, 0.0, 0.0, SOLID])
        normal = np.asarray(keep[0]) / self.factors
        length = np.linalg.norm(normal)
        return np.append(-frame @ normal, -keep[1]) / length

    def box(
        self,
        part: str,
        center: Vector,
        half: Vector,
        *,
        axis: str = "z",
        turn: Turn | None = None,
        bevel: float = 0.02,
        corner: float = 0.0,
        taper: tuple[float, float] = (0.0, 0.0),
        mirror: str = "",
    ) -> None:
        """A block, prism, wedge or pyramid.

        Args:
            half: half extents along world x, y, z (before `turn`).
            corner: edge radius around `axis`.
            taper: growth of the cross-section from the middle to the + end of `axis`;
                -1 on both sides makes a pyramid of twice the given base, -1 on one
                side a gable.
        """
        frame = _FRAMES[axis] if turn is None else _FRAMES[axis] @ rotation(turn).T
        size = abs(_FRAMES[axis] @ np.asarray(half, np.float64)) * self._along(frame)
        self._store(
            Solid(
                part,
                center * self.factors,
                frame,
                size,
                corner=max(corner, 1e-3),
                bevel=min(bevel, 0.999 * size.min()),
                taper=taper,
                mirror=mirror,
            )
        )

    def tube(
        self,
        part: str,
        center: Vector,
        radius: float | tuple[float, float],
        height: float,
        *,
        axis: str = "z",
        bevel: float = 0.015,
        wall: float | None = None,
        mirror: str = "",
        keep: tuple[Vector, float] | None = None,
        rigid: bool = False,
    ) -> None:
        """A cylinder, cone or cup.

        Args:
            radius: one, or those at the - and + end of `axis`.
            height: half of its length.
            wall: thickness of the walls of a hollow one (open it with `keep`).
        """
        start, end = radius if isinstance(radius, tuple) else (radius, radius)
        middle, growth = (start + end) / 2, (end - start) / (end + start)
        frame = _FRAMES[axis]
        size = np.array([middle, middle, height])
        size = size if rigid else size * self._along(frame)
        self._store(
            Solid(
                part,
                center * self.factors,
                frame,
                size,
                corner=size[:2].min(),
                bevel=min(bevel, 0.99 * size.min()),
                wall=SOLID if wall is None else wall / 2,
                taper=(growth, growth),
                plane=self._cut(frame, keep),
                mirror=mirror,
            )
        )

    def ball(
        self,
        part: str,
        center: Vector,
        radii: float | Vector,
        *,
        turn: Turn | None = None,
        wall: float | None = None,
        mirror: str = "",
        keep: tuple[Vector, float] | None = None,
    ) -> None:
        """An ellipsoid, dome or bowl.

        Args:
            radii: one, or those along world x, y, z (before `turn`).
            wall: thickness of a shell.
        """
        frame = np.eye(3) if turn is None else rotation(turn).T
        self._store(
            Solid(
                part,
                center * self.factors,
                frame,
                np.ones(3),
                corner=1.0,
                bevel=1.0,
                stretch=np.broadcast_to(radii, (3,)) * self._along(frame),
                wall=SOLID if wall is None else wall / 2,
                plane=self._cut(frame, keep),
                mirror=mirror,
            )
        )

    def rod(
        self,
        part: str,
        start: Vector,
        end: Vector,
        radius: float | tuple[float, float],
        *,
        flat: bool = False,
        mirror: str = "",
    ) -> None:
        """A stick from `start` to `end`, round-ended unless `flat` or tapered."""
        a, b = start * self.factors, end * self.factors
        first, last = radius if isinstance(radius, tuple) else (radius, radius)
        middle, growth = (first + last) / 2, (last - first) / (first + last)
        length = np.linalg.norm(b - a)
        along = (b - a) / length
        side = np.cross(along, np.eye(3)[np.argmin(abs(along))])
        side /= np.linalg.norm(side)
        pill = not flat and first == last
        self._store(
            Solid(
                part,
                (a + b) / 2,
                np.stack([side, np.cross(along, side), along]),
                np.array([middle, middle, length / 2 + (middle if pill else 0.0)]),
                corner=middle,
                bevel=0.999 * middle if pill else 0.2 * middle,
                taper=(growth, growth),
                mirror=mirror,
            )
        )

    def ring(
        self,
        part: str,
        center: Vector,
        radius: float,
        thickness: float,
        *,
        axis: str = "z",
        mirror: str = "",
        keep: tuple[Vector, float] | None = None,
    ) -> None:
        """A torus around `axis`.

        Args:
            radius: of the circle in the middle of the tube.
            thickness: radius of the tube.
        """
        frame = _FRAMES[axis]
        size = (radius + thickness) * self._along(frame)
        self._store(
            Solid(
                part,
                center * self.factors,
                frame,
                np.array([size[0], size[1], thickness]),
                corner=size[:2].min(),
                bevel=0.999 * thickness,
                ring=thickness,
                plane=self._cut(frame, keep),
                mirror=mirror,
            )
        )
