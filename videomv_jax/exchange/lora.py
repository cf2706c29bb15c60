"""Low-rank updates of others added to the UNet's weights while converting.

Files of peft, diffusers and kohya's trainer, with diffusers' names of the layers.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping

import numpy as np

from videomv_jax import weights
from videomv_jax.convert import mapping, unet
from videomv_jax.convert.mapping import Entry
from videomv_jax.exchange.plan import Plan, some
from videomv_jax.model_folder import abstract
from videomv_jax.models.unet import UNet
from videomv_jax.types import InputError
from videomv_jax.weights import Tensor

_PREFIX = re.compile(r"^(base_model\.model\.)?(unet\.|lora_unet_)?")
_KINDS = {
    "down": re.compile(r"(.+)\.(lora_A(\.default)?|lora\.down|lora_down)\.weight"),
    "up": re.compile(r"(.+)\.(lora_B(\.default)?|lora\.up|lora_up)\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}


@dataclasses.dataclass
class _Update:
    """What a file holds for one layer."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None

    def read(self, scale: float) -> np.ndarray:
        """The update in torch's layout: up @ down, times alpha over the rank."""
        assert self.up is not None and self.down is not None
        down = self.down.read().astype(np.float32)
        up = self.up.read().astype(np.float32).reshape(self.up.shape[0], -1)
        if self.alpha is not None:
            scale *= float(self.alpha.read()) / len(down)
        joined = scale * up @ down.reshape(len(down), -1)
        return joined.reshape(len(up), *down.shape[1:])


def merge(plan: Plan, path: str | os.PathLike[str], scale: float = 1.0) -> Plan:
    """A plan whose UNet has the low-rank updates of a file.

    Args:
        plan: with a UNet, in any naming.
        path: a safetensors file.
        scale: of all updates.

    Raises:
        InputError: the plan has no UNet; the file cannot be read, holds other tensors,
            half an update or layers that the UNet does not have; shapes do not fit.
    """
    found = _read(path)
    (part,) = [part for part in plan.parts if part.name == "unet"] or [None]
    if part is None:
        raise InputError(f"lora: {path} is for a UNet, and there is none to convert")
    module = abstract(lambda rngs: UNet(part.config, rngs=rngs))
    shapes = mapping.shapes(module)
    updates, used = dict(part.updates), set()
    for entry in unet.entries(module, "diffusers"):
        keys = {name: _key(name.removesuffix(".weight")) for name in entry.names}
        wanted = mapping.foreign_shapes([entry], shapes)
        given = {}
        for name, key in keys.items():
            # A bias has the key of nothing: its name ends otherwise.
            if key in found:
                used.add(key)
                _check(path, name, found[key], wanted[name])
                given[name] = found[key]
        if given:
            before = updates.get(entry.ours)
            updates[entry.ours] = _reader(entry, given, wanted, scale, before)
    if left := [key for key in found if key not in used]:
        raise InputError(f"{path}: the UNet has no layers called {some(left)}")
    told = f"low-rank updates of {os.path.basename(path)} times {scale:g}"
    new = dataclasses.replace(part, updates=updates, origins=[*part.origins, told])
    parts = [new if one is part else one for one in plan.parts]
    provenance = f"{plan.config.provenance}; {told}"
    config = dataclasses.replace(plan.config, provenance=provenance)
    return dataclasses.replace(plan, parts=parts, config=config)


def _reader(
    entry: Entry,
    given: Mapping[str, _Update],
    wanted: Mapping[str, tuple[int, ...]],
    scale: float,
    before: Callable[[], np.ndarray] | None,
) -> Callable[[], np.ndarray]:
    """What is added to one of our parameters, some of whose parts have no update."""

    def one(name: str) -> np.ndarray:
        if name in given:
            return given[name].read(scale)
        return np.zeros(wanted[name], np.float32)

    def read() -> np.ndarray:
        added = entry.load(one)
        return added if before is None else before() + added

    return read


def _key(module: str) -> str:
    # kohya writes underscores for dots, so all are compared like that.
    return _PREFIX.sub("", module).replace(".", "_")


def _read(path: str | os.PathLike[str]) -> dict[str, _Update]:
    """Updates by the name of their layer."""
    found: dict[str, _Update] = {}
    unknown = []
    for name, tensor in weights.open_file(path).items():
        # Before peft, diffusers named what computes, not the layer.
        plain = re.sub(r"\.processor\.(to_\w+?)_lora\.", r".\1.lora.", name)
        plain = plain.replace(".to_out.lora.", ".to_out.0.lora.")
        for kind, pattern in _KINDS.items():
            if match := pattern.fullmatch(plain):
                update = found.setdefault(_key(match[1]), _Update())
                setattr(update, kind, tensor)
                break
        else:
            unknown.append(name)
    if unknown or not found:
        told = some(unknown) if unknown else "it is empty"
        raise InputError(f"{path} is no file of low-rank updates: {told}")
    for key, update in found.items():
        if update.down is None or update.up is None:
            raise InputError(f"{path}: half of the update of {key} is missing")
    return found


def _check(path, name: str, update: _Update, wanted: tuple[int, ...]) -> None:
    assert update.up is not None and update.down is not None
    ranks = update.up.shape[1], update.down.shape[0]
    shape = (update.up.shape[0], *update.down.shape[1:])
    if ranks[0] != ranks[1] or shape != wanted:
        raise InputError(
            f"{path}: {name} is {wanted}, the update {update.up.shape} times "
            f"{update.down.shape}"
        )
