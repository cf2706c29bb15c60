"""Which weights of a run train, and how fast each of them learns.

Parameters are flat dicts by name, so a part of a model is a set of names. Frozen
parameters stay in the state beside the trained ones: they have no gradients, no
moments and no average.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from videomv_jax.types import InputError, PRNGKey

TRAIN = ("all", "temporal", "lora")

# The UNet's layers that see several views, and those that tell views apart.
_TEMPORAL = re.compile(r"^unet\.(.*\.)?(temporal|temporal_in|camera_embedding)\.")
# Layers that no UNet for single images has.
_NOT_OF_AN_IMAGE_MODEL = ("unet.time_embedding.", "unet.fps_embedding.", "unet.image.")
_ATTENTION = re.compile(r"^unet\..*\.attn[12]\.\w+\.kernel$")
# The low-rank factors of a kernel are called after it.
_DOWN, _UP = "lora_down", "lora_up"

Params = dict[str, Array]


def is_temporal(name: str) -> bool:
    """Whether a parameter belongs to the UNet's layers over views or to cameras."""
    return _TEMPORAL.search(name) is not None


def split(params: Mapping, train: str) -> tuple[dict, dict]:
    """What trains and what does not.

    Args:
        params: values (or shapes, or placements) by name; for "lora", with the factors
            that `add_factors` adds.
        train: one of `TRAIN`.

    Returns:
        Trained and frozen parameters.

    Raises:
        InputError: nothing would train.
    """
    chosen = {
        "all": lambda name: True,
        "temporal": is_temporal,
        "lora": lambda name: name.endswith((_DOWN, _UP)),
    }[train]
    trained = {name: x for name, x in params.items() if chosen(name)}
    if not trained:
        raise InputError(f"train: {train!r} chooses no weights")
    return trained, {name: x for name, x in params.items() if name not in trained}


def add_factors(params: Params, rank: int, key: PRNGKey) -> Params:
    """The parameters and low-rank factors of the UNet's attention kernels.

    The factor next to the input is random, the other zero: the model starts as it was.
    """
    factors = {}
    for i, (name, kernel) in enumerate(params.items()):
        if _ATTENTION.match(name):
            inputs, outputs = kernel.shape[0], kernel.shape[1:]
            noise = jax.random.normal(jax.random.fold_in(key, i), (inputs, rank))
            factors[f"{name}.{_DOWN}"] = noise / math.sqrt(inputs)
            factors[f"{name}.{_UP}"] = jnp.zeros((rank, *outputs), jnp.float32)
    return {**params, **factors}


def factor_shardings(
    shardings: Mapping[str, NamedSharding],
) -> dict[str, NamedSharding]:
    """Placements of the parameters and their factors: those of the kernels' sides."""
    placed = dict(shardings)
    for name, one in shardings.items():
        if _ATTENTION.match(name):
            first, *rest = one.spec
            down, up = PartitionSpec(first, None), PartitionSpec(None, *rest)
            placed[f"{name}.{_DOWN}"] = NamedSharding(one.mesh, down)
            placed[f"{name}.{_UP}"] = NamedSharding(one.mesh, up)
    return placed


def merge(trained: Mapping[str, Array], frozen: Mapping[str, Array]) -> Params:
    """The model's parameters, low-rank updates added to their kernels."""
    params = {**frozen, **trained}
    for name in list(params):
        if name.endswith(_DOWN):
            kernel = name.removesuffix(f".{_DOWN}")
            down, up = params.pop(name), params.pop(f"{kernel}.{_UP}")
            params[kernel] = params[kernel] + jnp.tensordot(down, up, 1)
    return params


def scale_by_part(
    rate_spatial: float, rate_text: float
) -> optax.GradientTransformation:
    """Multiply updates of the UNet's layers for one view, and of the text encoder."""

    def factor(name: str) -> float:
        if name.startswith("text_encoder."):
            return rate_text
        spatial = name.startswith("unet.") and not is_temporal(name)
        spatial = spatial and not name.startswith(_NOT_OF_AN_IMAGE_MODEL)
        return rate_spatial if spatial else 1.0

    def update(updates, state, params=None):
        return {name: u * factor(name) for name, u in updates.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
