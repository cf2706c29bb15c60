"""Captions: text to `Description` and back.

a [size ...] [pattern] [color [and color]] object [with [a] color part and ...]
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable

from videomv_jax.data.synthetic.assembly import MAIN
from videomv_jax.data.synthetic.catalogue import CATEGORIES
from videomv_jax.data.synthetic.vocabulary import (
    COLORS,
    PATTERNS,
    SIZE_PAIRS,
    SIZES,
    SYNONYMS,
    article,
)
from videomv_jax.types import InputError

_FILLERS = ("a", "an", "the", "and", "with")


@dataclasses.dataclass(frozen=True)
class Paint:
    """Colour of one part; `second` and `pattern` are None when it is plain."""

    color: str
    second: str | None = None
    pattern: str | None = None


@dataclasses.dataclass(frozen=True)
class Description:
    """What a caption says; it determines the object.

    Attributes:
        category: a name in `CATEGORIES`.
        color: main colour, or None for the category's own.
        pattern, second: pattern on the main parts and its second colour; both or
            neither, and then `color` is given too.
        parts: (part, colour) pairs; kept in the category's order.
        sizes: words of `SIZES`, at most one of each pair; kept in their order.

    Raises:
        InputError: a word is unknown or the combination means nothing.
    """

    category: str
    color: str | None = None
    pattern: str | None = None
    second: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    sizes: tuple[str, ...] = ()

    def __post_init__(self):
        _known(self.category, CATEGORIES, "object")
        for color in (self.color, self.second, *(c for _, c in self.parts)):
            if color is not None:
                _known(color, COLORS, "color")
        if self.pattern is not None:
            _known(self.pattern, PATTERNS, "pattern")
            if not (self.color and self.second) or self.color == self.second:
                raise InputError(
                    f"caption: {self.pattern!r} wants two different colors"
                )
        elif self.second is not None:
            raise InputError(
                f"caption: two colors ({self.color}, {self.second}) want a pattern "
                f"word: {', '.join(PATTERNS)}"
            )
        nameable = list(CATEGORIES[self.category].parts)
        for part, _ in self.parts:
            _known(part, nameable, f"part of a {self.category}")
        if len(dict(self.parts)) < len(self.parts):
            raise InputError(f"caption: a part is named twice in {self.parts}")
        for word in self.sizes:
            _known(word, SIZES, "size word")
        for pair in SIZE_PAIRS:
            if sum(word in pair for word in self.sizes) > 1:
                raise InputError(f"caption: at most one of {' and '.join(pair)}")
        parts = tuple(sorted(self.parts, key=lambda pair: nameable.index(pair[0])))
        object.__setattr__(self, "parts", parts)
        object.__setattr__(
            self, "sizes", tuple(sorted(self.sizes, key=list(SIZES).index))
        )

    @property
    def text(self) -> str:
        """The caption, in its one canonical form."""
        colors = (self.color, "and", self.second) if self.second else (self.color,)
        slots = (*self.sizes, self.pattern, *colors, self.category)
        words = [word for word in slots if word is not None]
        text = f"{article(words[0])} {' '.join(words)}"
        phrases = [
            f"{color} {part}" if _plural(part) else f"{article(color)} {color} {part}"
            for part, color in self.parts
        ]
        if phrases:
            *first, last = phrases
            text += f" with {', '.join(first)} and {last}" if first else f" with {last}"
        return text

    def paints(self) -> dict[str, Paint]:
        """Every part's paint, defaults resolved; the body is the part ""."""
        kind = CATEGORIES[self.category]
        main = Paint(self.color or kind.color, self.second, self.pattern)
        named = dict(self.parts)
        paints = {"": main} if kind.body else {}
        for part, default in {**kind.parts, **kind.details}.items():
            if part in named:
                paints[part] = Paint(named[part])
            elif default == MAIN:
                paints[part] = main
            else:
                paints[part] = Paint(next(c for c in default if c != main.color))
        return paints


def parse(text: str) -> Description:
    """Read a caption; articles, case and the order of adjectives do not matter.

    Args:
        text: for example "a striped red and white mug with a blue handle".

    Raises:
        InputError: the text is outside the grammar; names the closest known word.
    """
    words = [SYNONYMS.get(w, str(w)) for w in re.findall(r"\w+", text.lower())]
    middle = words.index("with") if "with" in words else len(words)
    if middle == 0:
        raise InputError(f"caption: got {text!r}, want for example 'a red chair'")
    category, adjectives = _split_category(words[:middle])
    known = [*COLORS, *PATTERNS, *SIZES]
    for word in adjectives:
        _known(word, known, "adjective")
    colors = [word for word in adjectives if word in COLORS]
    patterns = [word for word in adjectives if word in PATTERNS]
    if len(colors) > 2 or len(patterns) > 1:
        raise InputError(
            f"caption: want at most two colors and one pattern, got {adjectives}"
        )
    color, second = (*colors, None, None)[:2]
    if patterns:
        color = color or CATEGORIES[category].color
        second = second or ("black" if color == "white" else "white")
    return Description(
        category,
        color,
        patterns[0] if patterns else None,
        second,
        tuple(_parts(words[middle:], category)),
        tuple(word for word in adjectives if word in SIZES),
    )


def _split_category(words: list[str]) -> tuple[str, list[str]]:
    """The object's name, which comes last, and the adjectives before it."""
    for length in (2, 1):
        name = " ".join(words[-length:])
        if name in CATEGORIES:
            rest = words[:-length]
            return name, [word for word in rest if word not in _FILLERS]
    two = " ".join(words[-2:])
    misspelt = two if difflib.get_close_matches(two, CATEGORIES, 1, 0.8) else words[-1]
    raise InputError.unknown("object in the caption", misspelt, CATEGORIES)


def _parts(words: list[str], category: str) -> Iterable[tuple[str, str]]:
    """(part, colour) pairs of the words after "with"."""
    words = [word for word in words if word not in _FILLERS]
    for color, part in zip(words[::2], words[1::2], strict=False):
        _known(color, COLORS, "color")
        _known(part, CATEGORIES[category].parts, f"part of a {category}")
        yield part, color
    if len(words) % 2:
        raise InputError(f"caption: want a color and a part, got {words[-1]!r} alone")


def _known(word: str, known: Iterable[str], what: str) -> None:
    if word not in known:
        raise InputError.unknown(f"{what} in the caption", word, known)


def _plural(part: str) -> bool:
    return part.endswith("s") or part in ("feet", "teeth")
