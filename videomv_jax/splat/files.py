"""Gaussians on disk: the `.ply` of 3D Gaussian splatting, and antimatter15's `.splat`.

Both keep our world: right-handed, z up. Neither format says which way is up; viewers
that take y for up (or, after COLMAP, y for down) show the asset lying on its side until
it is turned there, or here with `Gaussians.transform`.

Colours are those of the zeroth spherical harmonic only: the same from everywhere.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from videomv_jax.splat.gaussians import Gaussians
from videomv_jax.types import InputError

# The constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + C0 f_dc.
_C0 = 0.28209479177387814
# Opacities are kept this far from 0 and 1, where the logit is infinite.
_OPACITY_MARGIN = 1e-6
_PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
_SPLAT = np.dtype(
    [("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)]
)


def _names(stem: str, count: int) -> list[str]:
    return [f"{stem}_{i}" for i in range(count)]


_MEANS, _COLORS = ["x", "y", "z"], _names("f_dc", 3)
_SCALES, _QUATS = _names("scale", 3), _names("rot", 4)
_COLUMNS = [
    *_MEANS,
    *("nx", "ny", "nz"),
    *_COLORS,
    "opacity",
    *_SCALES,
    *_QUATS,
]


def write_ply(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write one scene as 3D Gaussian splatting does.

    Binary floats: position, normal (zero), `f_dc`, logit of the opacity, logarithms of
    the scales, quaternion (w, x, y, z). The file appears whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        gaussians: `[n, ...]`.

    Raises:
        InputError: a batch, numbers that cannot be drawn, or a path that cannot be
            written.
    """
    means, quats, scales, opacities, colors = _arrays(gaussians)
    opacities = opacities.clip(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
    columns = [
        means,
        np.zeros_like(means),
        (colors - 0.5) / _C0,
        np.log(opacities / (1 - opacities))[:, None],
        np.log(scales),
        quats,
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(means)}"]
    header += [*(f"property float {name}" for name in _COLUMNS), "end_header", ""]
    table = np.concatenate(columns, 1).astype("<f4")
    _write(path, "\n".join(header).encode() + table.tobytes())


def read_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read a scene written by 3D Gaussian splatting or by `write_ply`.

    Quaternions are normalised, colours limited to [0, 1], and higher spherical
    harmonics (`f_rest_*`) and unknown columns left out.

    Raises:
        InputError: not such a file; says what is missing.
    """
    data = _read(path)
    end = data.find(b"end_header\n")
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{path}: no ply file")
    dtype, count = _ply_header(path, data[:end].decode("ascii", "replace"))
    body = data[end + len(b"end_header\n") :]
    if len(body) < count * dtype.itemsize:
        raise InputError(
            f"{path}: got {len(body)} bytes of vertices, want {count * dtype.itemsize}"
        )
    table = np.frombuffer(body, dtype, count)

    def columns(names):
        return np.stack([table[name].astype(np.float64) for name in names], -1)

    with np.errstate(over="ignore"):
        opacities = 1 / (1 + np.exp(-columns(["opacity"])[:, 0]))
        scales = np.exp(columns(_SCALES))
    colors = (0.5 + _C0 * columns(_COLORS)).clip(0, 1)
    return _gaussians(path, columns(_MEANS), columns(_QUATS), scales, opacities, colors)


def write_splat(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write one scene as a `.splat` of 32 bytes per Gaussian.

    Position and scales are floats, colour, opacity and quaternion bytes. The largest
    and most opaque come first, since viewers show the file while it loads. The file
    appears whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        gaussians: `[n, ...]`.

    Raises:
        InputError: a batch, numbers that cannot be drawn, or a path that cannot be
            written.
    """
    means, quats, scales, opacities, colors = _arrays(gaussians)
    order = np.argsort(-scales.prod(-1) * opacities, kind="stable")
    table = np.empty(len(means), _SPLAT)
    rgba = np.concatenate([colors, opacities[:, None]], -1)
    table["mean"], table["scale"] = means[order], scales[order]
    table["rgba"] = np.round(255 * rgba.clip(0, 1))[order]
    table["quat"] = np.round(128 * quats + 128).clip(0, 255)[order]
    _write(path, table.tobytes())


def read_splat(path: str | os.PathLike[str]) -> Gaussians:
    """Read a `.splat` file.

    Raises:
        InputError: its size is no multiple of 32 bytes, or its numbers are damaged.
    """
    data = _read(path)
    if not data or len(data) % _SPLAT.itemsize:
        raise InputError(
            f"{path}: got {len(data)} bytes, want a multiple of {_SPLAT.itemsize}"
        )
    table = np.frombuffer(data, _SPLAT)
    rgba = table["rgba"].astype(np.float64) / 255
    quats = (table["quat"].astype(np.float64) - 128) / 128
    return _gaussians(
        path, table["mean"], quats, table["scale"], rgba[:, 3], rgba[:, :3]
    )


def _arrays(gaussians: Gaussians) -> list[np.ndarray]:
    """The five arrays of one scene in float64, with unit quaternions."""
    if gaussians.means.ndim != 2:
        raise InputError(
            f"gaussians: got means {gaussians.means.shape}, want one scene [n, 3]"
        )
    gaussians.check()
    lengths = np.linalg.norm(np.asarray(gaussians.quats), axis=-1)
    if not np.allclose(lengths, 1, atol=1e-3):
        gaussians = gaussians.orthonormalize()
    fields = ("means", "quats", "scales", "opacities", "colors")
    return [np.asarray(getattr(gaussians, name), np.float64) for name in fields]


def _gaussians(path, means, quats, scales, opacities, colors) -> Gaussians:
    with np.errstate(invalid="ignore"):
        quats = quats / np.linalg.norm(quats, axis=-1, keepdims=True)
    arrays = (means, quats, scales, opacities, colors)
    gaussians = Gaussians(*(jnp.asarray(x, jnp.float32) for x in arrays))
    try:
        return gaussians.check()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _ply_header(path, header: str) -> tuple[np.dtype, int]:
    """The type of a vertex, and how many there are."""
    lines = [line.split() for line in header.splitlines()]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise InputError(f"{path}: want a ply of format binary_little_endian 1.0")
    elements = [line for line in lines if line[:1] == ["element"]]
    if not elements or elements[0][1:2] != ["vertex"]:
        raise InputError(f"{path}: the first element of the ply is not 'vertex'")
    start = lines.index(elements[0]) + 1
    stop = lines.index(elements[1]) if len(elements) > 1 else len(lines)
    try:
        count = int(elements[0][2])
        properties = [line for line in lines[start:stop] if line[:1] == ["property"]]
        dtype = np.dtype(
            [(name, "<" + _PLY_TYPES[kind]) for _, kind, name in properties]
        )
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: damaged ply header: {error!r}") from error
    wanted = [*_MEANS, *_COLORS, "opacity", *_SCALES, *_QUATS]
    missing = [name for name in wanted if name not in (dtype.names or ())]
    if missing:
        raise InputError(f"{path}: no 3D Gaussians, the ply lacks {', '.join(missing)}")
    return dtype, count


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a sibling and rename it, so that a stop leaves no half of a file."""
    target = Path(path)
    try:
        with contextlib.ExitStack() as stack:
            handle, fresh = tempfile.mkstemp(
                prefix=f".{target.name}.", dir=target.parent
            )
            stack.callback(Path(fresh).unlink, missing_ok=True)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(fresh, 0o644)
            os.replace(fresh, target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
