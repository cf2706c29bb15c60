"""Files that torch wrote: read without running what they hold, and written.

Only this module imports torch, and only when such a file is there.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from videomv_jax.types import InputError
from videomv_jax.weights import Tensor, Tensors

# Entries of a training checkpoint that hold the weights.
_WEIGHTS = ("state_dict", "model_state_dict")


def open_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .pth, .pt, .bin or .ckpt file.

    Files of torch 1.6 and later are mapped, not read, until a tensor is asked for.

    Returns:
        The tensors, and names of everything else with the reason why it is left out.

    Raises:
        InputError: torch is not installed, or the file holds anything that only code
            of its own could bring to life.
    """
    torch = _torch(f"{path} is a torch file, and reading it")
    content: Any
    try:
        options = {"map_location": "cpu", "weights_only": True}
        try:
            content = torch.load(path, mmap=True, **options)
        except RuntimeError:  # of an older torch: no zip archive
            content = torch.load(path, **options)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path} holds more than weights, and its code is not run: {reason}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} is not a file of torch: {error}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, want weights")
    dropped = {}
    for key in _WEIGHTS:
        if isinstance(content.get(key), Mapping):
            dropped |= {str(k): f"beside {key}" for k in content if k != key}
            content = content[key]
            break
    tensors = {}
    for name, x in content.items():
        if isinstance(x, torch.Tensor):
            tensors[str(name)] = _lazy(torch, x)
        else:
            dropped[str(name)] = "not a tensor"
    return tensors, dropped


def write(path: Path, content: Mapping[str, Tensors]) -> None:
    """Write tensors by name, nested once, as torch.save does.

    All of them are in memory at the end.

    Args:
        path: the file.
        content: what it holds; the key "" is for names at the top.

    Raises:
        InputError: torch is not installed.
    """
    torch = _torch(f"{path.name} is a torch file, and writing it")

    def foreign(x: np.ndarray) -> Any:
        x = np.array(x, order="C")  # torch wants to own writable memory
        if x.dtype == jnp.bfloat16:
            return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(x)

    out: dict[str, Any] = {}
    for key, tensors in content.items():
        place = out.setdefault(key, {}) if key else out
        place.update({name: foreign(x.read()) for name, x in tensors.items()})
    torch.save(out, path)


def _lazy(torch: Any, x: Any) -> Tensor:
    if x.dtype == torch.bfloat16:
        dtype = np.dtype(jnp.bfloat16)

        def read() -> np.ndarray:
            return x.contiguous().view(torch.int16).numpy().view(dtype)
    else:
        dtype = torch.empty(0, dtype=x.dtype).numpy().dtype
        read = x.numpy
    return Tensor(tuple(x.shape), dtype, read)


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{what} takes torch, which is not installed: "
            "pip install 'videomv-jax[convert]', or use safetensors instead"
        ) from error
    return torch
