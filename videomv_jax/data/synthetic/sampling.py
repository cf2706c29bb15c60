"""Random captions, and which of them training never sees.

Two captions that give the same look (sizes aside) share a split, whatever their words.
"""

import functools
import hashlib
import random
from collections.abc import Sequence
from typing import Literal, TypeVar

from videomv_jax.data.synthetic.assembly import MAIN
from videomv_jax.data.synthetic.catalogue import CATEGORIES
from videomv_jax.data.synthetic.grammar import Description, parse
from videomv_jax.data.synthetic.vocabulary import COLORS, PATTERNS, SIZES
from videomv_jax.types import InputError

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
HELDOUT_PERMILLE = 80
EXAMPLE = "a red chair with blue legs"
"""Always held out."""

_T = TypeVar("_T")


def composition(description: Description) -> str:
    """The look of an object as text: category and every part's resolved paint."""
    paints = sorted(description.paints().items())
    return f"{description.category}: {paints}"


def split_of(description: Description) -> Split:
    """The split a description belongs to, by the hash of its composition."""
    look = composition(description)
    if look == _example():
        return "heldout"
    digest = hashlib.sha256(look.encode()).digest()
    heldout = int.from_bytes(digest[:8], "big") % 1000 < HELDOUT_PERMILLE
    return "heldout" if heldout else "train"


@functools.cache
def _example() -> str:
    return composition(parse(EXAMPLE))


def sample(rng: random.Random) -> Description:
    """A random description of any split.

    Only `rng.random()` is drawn, the one method whose sequence Python guarantees.
    """
    category = _pick(rng, list(CATEGORIES))
    colors = list(COLORS)
    color = _pick(rng, colors) if rng.random() < 0.95 else None
    pattern = second = None
    if color and rng.random() < 0.2:
        pattern = _pick(rng, PATTERNS)
        second = _pick(rng, [c for c in colors if c != color])
    kind = CATEGORIES[category]
    parts = {}
    for _ in range(_pick(rng, (0, 0, 0, 1, 1, 1, 1, 1, 2, 2))):
        part = _pick(rng, list(kind.parts))
        rest = [
            p for p, d in kind.parts.items() if d == MAIN and p not in (part, *parts)
        ]
        # Something must be left to show the main colour.
        if kind.body or rest:
            parts[part] = _pick(rng, colors)
    sizes = (_pick(rng, list(SIZES)),) if rng.random() < 0.35 else ()
    return Description(category, color, pattern, second, tuple(parts.items()), sizes)


def sample_one(seed: int, index: int, split: Split = "train") -> Description:
    """The description with this index in the endless stream of `seed` and `split`."""
    if split not in SPLITS:
        raise InputError.unknown("split", split, SPLITS)
    rng = random.Random(f"{split}/{seed}/{index}")
    while split_of(description := sample(rng)) != split:
        pass
    return description


def sample_descriptions(
    count: int, seed: int, split: Split = "train"
) -> list[Description]:
    """The first `count` descriptions of a stream; repetitions may occur.

    Args:
        count: how many.
        seed: which stream.
        split: "train" or "heldout"; their compositions are disjoint.
    """
    return [sample_one(seed, index, split) for index in range(count)]


def heldout_captions(count: int, seed: int = 0) -> list[str]:
    """Distinct captions that training never sees, `EXAMPLE` first.

    Args:
        count: how many.
        seed: which stream to take the others from.
    """
    captions = [EXAMPLE]
    index = 0
    while len(captions) < count:
        text = sample_one(seed, index, "heldout").text
        if text not in captions:
            captions.append(text)
        index += 1
    return captions[:count]


def _pick(rng: random.Random, choices: Sequence[_T]) -> _T:
    return choices[int(rng.random() * len(choices))]
