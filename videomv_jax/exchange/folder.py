"""From a plan to a model folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videomv_jax import atomic, weights
from videomv_jax.convert import sources
from videomv_jax.data.tokenizer import load_tokenizer
from videomv_jax.exchange.plan import DTYPES, Plan
from videomv_jax.model_folder import CONFIG, TOKENIZER
from videomv_jax.types import InputError

ACCOUNT = "conversion.json"
"""What became of every tensor of the sources."""


def write(
    plan: Plan,
    directory: str | os.PathLike[str],
    *,
    dtype: str = "source",
    shard: int = weights.SHARD,
    told: Callable[[str], Any] = lambda name: None,
) -> None:
    """Make the folder of a plan; it appears whole or not at all.

    Beside one tensor and its converted copy nothing is in memory (an old torch file
    that is no zip archive is read whole).

    Args:
        plan: without faults.
        directory: an older model folder is replaced.
        dtype: storage type of the weights; "source" keeps each as it is.
        shard: bytes of tensors per file.
        told: called with "part: name" before each tensor.

    Raises:
        InputError: the plan has faults, a weight is not finite in dtype, the
            tokenizer cannot be read or exceeds the text encoder's vocabulary, or
            the folder cannot be written.
    """
    if faults := plan.faults():
        raise InputError("; ".join(faults))
    if dtype not in DTYPES:
        raise InputError.unknown("dtype", dtype, DTYPES)
    with atomic.replacing(directory, CONFIG) as folder:
        if plan.tokenizer is not None:
            _copy_tokenizer(plan, plan.tokenizer, folder / TOKENIZER)
        for part in plan.parts:
            tensors = part.ours(dtype)
            prefix = f"{part.name}: "
            weights.write(
                folder,
                part.name,
                tensors,
                shard=shard,
                told=lambda name, prefix=prefix: told(prefix + name),
            )
        (folder / CONFIG).write_text(plan.config.to_json())
        (folder / ACCOUNT).write_text(json.dumps(account(plan), indent=1) + "\n")
        weights.write_sums(folder)


def account(plan: Plan) -> dict[str, Any]:
    """Where every tensor of the sources went, as JSON values."""
    return {
        "parts": {
            part.name: {
                "from": part.origins,
                "used": [n for n in part.tensors if n not in part.unexpected],
                "dropped": part.dropped,
                "started afresh": list(part.filled),
            }
            for part in plan.parts
        },
        "dropped": plan.dropped,
        "notes": plan.notes,
    }


def _copy_tokenizer(plan: Plan, source: Path, target: Path) -> None:
    target.mkdir()
    for file in sources.tokenizer_files(source):
        shutil.copyfile(file, target / file.name)
    tokenizer = load_tokenizer(target)
    text = plan.config.text_encoder
    if text is not None and len(tokenizer) > text.vocab:
        raise InputError(
            f"tokenizer: {source} has {len(tokenizer)} tokens, the text encoder "
            f"{text.vocab}"
        )
