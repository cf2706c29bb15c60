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
        round: whether "wide" and "narrow" mean depth as well as width.
        build: puts the parts together.
    """

    name: str
    parts: Mapping[str, str | tuple[str, ...]]
    details: Mapping[str, tuple[str, ...]]
    color: str
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
        CATEGORIES[name] = Category(
            name, dict(parts), dict(details or {}), color, round, build
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


@dataclasses.dataclass
class Solid:
    """One primitive before colours; fields as in `scene.Scene`, plus its part."""

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
    turning: bool = False
    stripes: tuple[float, float, float] = (0.0, 0.0, 1.0)


class Assembly:
    """Collects the solids of one object.

    Args:
        width, depth, height: factors along world y, x and z ("wide", "tall", ...).
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0, height: float = 1.0):
        self.factors = np.array([depth, width, height])
        self.solids: list[Solid] = []

    def _add(self, solid: Solid, keep: tuple[Vector, float] | None, rigid: bool):
        """Stretch a solid by the size words, attach its cut, and store it."""
        factors = np.linalg.norm(solid.rotation * self.factors, axis=1)
        if rigid:
            factors = np.ones(3)
        solid.center = np.asarray(solid.center, np.float64) * self.factors
        if solid.bevel >= solid.half.min():  # balls and pills
            solid.stretch = solid.stretch * factors
        else:
            tube = solid.half[2]
            solid.half = solid.half * factors
            solid.corner *= min(factors[0], factors[1])
            if solid.ring < SOLID:
                solid.half[2] = tube
            solid.bevel = min(solid.bevel, 0.999 * solid.half.min())
        if keep is not None:
            normal, offset = np.asarray(keep[0], np.float64), keep[1]
            normal = normal / self.factors
            length = np.linalg.norm(normal)
            solid.plane = np.append(-solid.rotation @ normal / length, -offset / length)
        self._store(solid)

    def _store(self, solid: Solid) -> None:
        if len(self.solids) == SLOTS:
            raise ValueError(f"an object has more than {SLOTS} solids")
        self.solids.append(solid)

    def box(
        self,
        part: str,
        center: Vector,
        half: Vector,
        *,
        turn: Turn | None = None,
        axis: str = "z",
        bevel: float = 0.02,
        corner: float = 0.0,
        taper: tuple[float, float] = (0.0, 0.0),
        mirror: str = "",
        keep: tuple[Vector, float] | None = None,
        stripes: tuple[float, float, float] | None = None,
        rigid: bool = False,
    ) -> None:
        """A block, prism, wedge or pyramid.

        Args:
            part: the part it belongs to.
            center: world position.
            half: half extents along world x, y, z (before `turn`).
            turn: rotation about its centre.
            axis: world axis along which it tapers.
            bevel: edge radius at the two ends of `axis`.
            corner: edge radius around `axis`.
            taper: growth of the cross-section from middle to the +end; (-1, -1) over
                a base of equal mean makes a pyramid, (-1, 0) a gable.
            mirror: world axes ("x", "y", "xy") across which it is repeated.
            keep: `n, c`: only what has `n·(p - center) >= c` stays, world frame.
            stripes: local direction across which stripes alternate; by default the
                longest half extent.
            rigid: keep its shape under size words.
        """
        frame = _FRAMES[axis]
        local = frame @ np.asarray(half, np.float64)
        if stripes is None:
            longest = int(np.argmax(local))
            stripes = tuple(float(i == longest) for i in range(3))  # type: ignore
        solid = Solid(
            part,
            np.asarray(center),
            frame if turn is None else frame @ rotation(turn).T,
            np.abs(local),
            max(corner, 1e-3),
            min(bevel, 0.999 * np.abs(local).min()),
            taper=taper,
            mirror=mirror,
            stripes=stripes,  # type: ignore
        )
        self._add(solid, keep, rigid)

    def tube(
        self,
        part: str,
        center: Vector,
        radius: float | tuple[float, float],
        height: float,
        *,
        axis: str = "z",
        turn: Turn | None = None,
        bevel: float = 0.015,
        hole: float | None = None,
        wall: float | None = None,
        mirror: str = "",
        keep: tuple[Vector, float] | None = None,
        rigid: bool = False,
    ) -> None:
        """A cylinder, cone, pipe or cup.

        Args:
            radius: one, or (bottom, top).
            height: half of its length along `axis`.
            hole: wall thickness of an open pipe.
            wall: wall thickness of a closed hollow (open it with `keep`).

        Other arguments as `box`.
        """
        bottom, top = (radius, radius) if isinstance(radius, float | int) else radius
        middle = (bottom + top) / 2
        growth = (top - bottom) / (top + bottom)
        frame = _FRAMES[axis]
        solid = Solid(
            part,
            np.asarray(center),
            frame if turn is None else frame @ rotation(turn).T,
            np.array([middle, middle, height]),
            middle,
            min(bevel, 0.99 * height, 0.99 * middle),
            ring=SOLID if hole is None else hole / 2,
            wall=SOLID if wall is None else wall / 2,
            taper=(growth, growth),
            mirror=mirror,
            turning=True,
        )
        self._add(solid, keep, rigid)

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
        """An ellipsoid, dome or bowl; `radii` along world axes before `turn`."""
        radii = np.broadcast_to(np.asarray(radii, np.float64), (3,)).copy()
        solid = Solid(
            part,
            np.asarray(center),
            np.eye(3) if turn is None else rotation(turn).T,
            np.ones(3),
            1.0,
            1.0,
            stretch=radii,
            wall=SOLID if wall is None else wall / 2,
            mirror=mirror,
            turning=True,
        )
        self._add(solid, keep, rigid=False)

    def rod(
        self,
        part: str,
        start: Vector,
        end: Vector,
        radius: float | tuple[float, float],
        *,
        mirror: str = "",
        flat: bool = False,
    ) -> None:
        """A stick between two points, round-ended unless `flat` or tapered."""
        a = np.asarray(start, np.float64) * self.factors
        b = np.asarray(end, np.float64) * self.factors
        first, last = (radius, radius) if isinstance(radius, float | int) else radius
        middle = (first + last) / 2
        growth = (last - first) / (first + last)
        along = (b - a) / np.linalg.norm(b - a)
        side = np.cross(along, np.eye(3)[int(np.argmin(np.abs(along)))])
        side /= np.linalg.norm(side)
        frame = np.stack([side, np.cross(along, side), along])
        pill = not flat and first == last
        half = np.linalg.norm(b - a) / 2 + (middle if pill else 0.0)
        self._store(
            Solid(
                part,
                (a + b) / 2,
                frame,
                np.array([middle, middle, half]),
                middle,
                0.999 * middle if pill else min(0.01, 0.5 * min(first, last) + 1e-3),
                taper=(growth, growth),
                mirror=mirror,
                turning=True,
            )
        )

    def ring(
        self,
        part: str,
        center: Vector,
        radius: float,
        tube: float,
        *,
        axis: str = "z",
        turn: Turn | None = None,
        mirror: str = "",
        keep: tuple[Vector, float] | None = None,
        rigid: bool = False,
    ) -> None:
        """A torus of ring radius `radius` and tube radius `tube` around `axis`."""
        frame = _FRAMES[axis]
        solid = Solid(
            part,
            np.asarray(center),
            frame if turn is None else frame @ rotation(turn).T,
            np.array([radius + tube, radius + tube, tube]),
            radius + tube,
            0.999 * tube,
            ring=tube,
            mirror=mirror,
            turning=True,
            stripes=(1.0, 0.0, 0.0),
        )
        self._add(solid, keep, rigid)
