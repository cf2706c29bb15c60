"""Grain sources and the loader that batches, shuffles and shards them."""

from typing import TYPE_CHECKING, Any, Protocol

import grain
import jax

from videomv_jax.data.synthetic import build_scene, sample_one
from videomv_jax.data.synthetic.sampling import SPLITS, Split
from videomv_jax.data.tokenizer import LENGTH, encode
from videomv_jax.types import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Source(Protocol):
    """What the loader needs: items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class SyntheticSource:
    """Objects of the synthetic set; item i depends on the seed and i alone.

    Args:
        count: how many objects.
        tokenizer: makes the captions' tokens.
        seed: which stream of objects.
        split: "train" or "heldout".
        length: tokens per caption.

    Raises:
        InputError: `count` is not positive or the split unknown.
    """

    def __init__(
        self,
        count: int,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        seed: int = 0,
        split: Split = "train",
        length: int = LENGTH,
    ):
        if count < 1:
            raise InputError(f"count: got {count}, want at least 1")
        if split not in SPLITS:
            raise InputError.unknown("split", split, SPLITS)
        self._count = count
        self._tokenizer = tokenizer
        self._seed = seed
        self._split: Split = split
        self._length = length

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`caption`, `tokens [l]` int32 and `scene`, a `Scene` of numpy leaves."""
        description = sample_one(self._seed, int(index), self._split)
        tokens, _ = encode(self._tokenizer, [description.text], self._length)
        return {
            "caption": description.text,
            "tokens": tokens[0],
            "scene": build_scene(description),
        }

    def __repr__(self) -> str:
        return f"SyntheticSource({self._count}, {self._seed}, {self._split!r})"


def loader(
    source: Source,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    process: tuple[int, int] | None = None,
) -> grain.DatasetIterator:
    """Batches without end, each process its share, in the same order every time.

    The iterator's `get_state` and `set_state` resume exactly; so do Grain's handlers
    for Orbax.

    Args:
        source: items by number, dictionaries of arrays.
        batch_size: items of a step over all processes.
        seed: of the order, which differs from epoch to epoch.
        shuffle: or the source's own order.
        process: (index, count); by default this JAX process.

    Raises:
        InputError: the batch does not divide over the processes.
    """
    index, count = process or (jax.process_index(), jax.process_count())
    if batch_size < 1 or batch_size % count:
        raise InputError(
            f"batch_size: {batch_size} does not divide over {count} processes"
        )
    items = grain.MapDataset.source(source).seed(seed)  # type: ignore[arg-type]
    items = items.shuffle() if shuffle else items
    items = items.repeat()[index::count]
    batches = items.batch(batch_size // count)
    return iter(batches.to_iter_dataset(grain.ReadOptions(4, prefetch_buffer_size=8)))
