"""ply and splat files."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax.splat.files import read_ply, read_splat, write_ply, write_splat
from videomv_jax.splat.gaussians import Gaussians, rotation_matrices
from videomv_jax.types import InputError


def some(n=7, seed=0):
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(n, 4))
    fields = (
        rng.normal(size=(n, 3)),
        quats / np.linalg.norm(quats, axis=-1, keepdims=True),
        rng.uniform(0.01, 1, size=(n, 3)),
        rng.uniform(0.05, 0.95, size=n),
        rng.uniform(size=(n, 3)),
    )
    return Gaussians(*(jnp.asarray(x, jnp.float32) for x in fields))


def assert_same(a, b, atol):
    for field in dataclasses.fields(Gaussians):
        x, y = (np.asarray(getattr(g, field.name)) for g in (a, b))
        np.testing.assert_allclose(x, y, atol=atol, err_msg=field.name)


def test_ply_round_trip(tmp_path):
    gaussians = some()
    write_ply(tmp_path / "a.ply", gaussians)
    assert_same(read_ply(tmp_path / "a.ply"), gaussians, 1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_ply_is_what_viewers_expect(tmp_path):
    """Header and the first row, byte by byte."""
    gaussians = some()
    write_ply(tmp_path / "a.ply", gaussians)
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)
    names = (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 "
        "rot_0 rot_1 rot_2 rot_3"
    ).split()
    assert header.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 7",
        *(f"property float {name}" for name in names),
    ]
    row = dict(zip(names, np.frombuffer(body, "<f4").reshape(7, 17)[0], strict=True))
    assert row["x"] == gaussians.means[0, 0] and row["nz"] == 0
    green = 0.5 + 0.28209479177387814 * row["f_dc_1"]
    np.testing.assert_allclose(green, gaussians.colors[0, 1], atol=1e-6)
    opacity = 1 / (1 + np.exp(-row["opacity"]))
    np.testing.assert_allclose(opacity, gaussians.opacities[0], atol=1e-6)
    np.testing.assert_allclose(np.exp(row["scale_2"]), gaussians.scales[0, 2], 1e-5)
    np.testing.assert_allclose(row["rot_0"], gaussians.quats[0, 0])


def test_ply_opacity_at_its_limits(tmp_path):
    gaussians = dataclasses.replace(some(2), opacities=jnp.asarray([0.0, 1.0]))
    write_ply(tmp_path / "a.ply", gaussians)
    again = read_ply(tmp_path / "a.ply").opacities
    np.testing.assert_allclose(again, [0, 1], atol=2e-6)


def test_ply_of_others(tmp_path):
    """Other column orders and types, harmonics, other elements, raw quaternions."""
    gaussians = some()
    write_ply(tmp_path / "a.ply", gaussians)
    table = np.frombuffer(
        (tmp_path / "a.ply").read_bytes().split(b"end_header\n", 1)[1], "<f4"
    ).reshape(7, 17)
    kinds = [("red", "u1"), *((f"c{i}", "f8" if i < 3 else "f4") for i in range(17))]
    rows = np.zeros(7, np.dtype([*kinds, ("f_rest_0", "f4")]))
    names = (
        "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 "
        "rot_0 rot_1 rot_2 rot_3"
    ).split()
    for i in range(17):
        rows[f"c{i}"] = table[:, i] * (3 if i >= 13 else 1)
    header = ["ply", "format binary_little_endian 1.0", "comment made elsewhere"]
    header += ["element vertex 7", "property uchar red"]
    header += [
        f"property {'double' if i < 3 else 'float'} {name}"
        for i, name in enumerate(names)
    ]
    header += ["property float f_rest_0", "element face 0"]
    header += ["property list uchar int vertex_indices", "end_header", ""]
    (tmp_path / "b.ply").write_bytes("\n".join(header).encode() + rows.tobytes())
    assert_same(read_ply(tmp_path / "b.ply"), gaussians, 1e-6)


@pytest.mark.parametrize(
    "write, read", [(write_ply, read_ply), (write_splat, read_splat)]
)
def test_sheared_gaussians_keep_their_shape(tmp_path, write, read):
    """Viewers normalise quaternions, our rasterizer does not."""
    gaussians = some(1)
    gaussians = dataclasses.replace(gaussians, quats=gaussians.quats * 0.3)
    write(tmp_path / "a", gaussians)
    again = read(tmp_path / "a")

    def covariance(g):
        axes = rotation_matrices(g.quats) * g.scales[:, None]
        return axes @ axes.mT

    wanted = covariance(gaussians)
    np.testing.assert_allclose(covariance(again), wanted, atol=0.01 * wanted.max())


def test_splat_round_trip(tmp_path):
    gaussians = some(40)
    write_splat(tmp_path / "a.splat", gaussians)
    assert (tmp_path / "a.splat").stat().st_size == 40 * 32
    again = read_splat(tmp_path / "a.splat")
    importance = np.asarray(gaussians.scales.prod(-1) * gaussians.opacities)
    order = np.argsort(-importance)
    wanted = gaussians.select(order)
    np.testing.assert_array_equal(again.means, wanted.means)
    np.testing.assert_array_equal(again.scales, wanted.scales)
    np.testing.assert_allclose(again.opacities, wanted.opacities, atol=0.51 / 255)
    np.testing.assert_allclose(again.colors, wanted.colors, atol=0.51 / 255)
    np.testing.assert_allclose(again.quats, wanted.quats, atol=0.012)


def test_bad_files(tmp_path):
    path = tmp_path / "a.ply"
    with pytest.raises(InputError, match="cannot read .*a.ply"):
        read_ply(path)
    path.write_bytes(b"solid cube")
    with pytest.raises(InputError, match="no ply file"):
        read_ply(path)
    write_ply(path, some())
    whole = path.read_bytes()
    for data, message in (
        (whole[:-1], r"got 475 bytes of vertices, want 476"),
        (whole.replace(b"rot_3", b"rot_9"), "lacks rot_3"),
        (whole.replace(b"binary_little_endian", b"ascii"), "binary_little_endian"),
        (whole.replace(b"float x", b"what x"), "damaged ply header"),
        (whole.replace(b"vertex 7", b"face 7"), "first element"),
        (whole[:-4] + b"\xff" * 4, "rot|quats: 4 numbers are not finite"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_ply(path)
    path.write_bytes(b"x" * 33)
    with pytest.raises(InputError, match="got 33 bytes, want a multiple of 32"):
        read_splat(path)


def test_bad_writes(tmp_path):
    gaussians = some()
    with pytest.raises(InputError, match="cannot write"):
        write_ply(tmp_path / "no" / "folder.ply", gaussians)
    batch = Gaussians(*(jnp.stack([x, x]) for x in vars(gaussians).values()))
    with pytest.raises(InputError, match="want one scene"):
        write_ply(tmp_path / "a.ply", batch)
    broken = dataclasses.replace(gaussians, means=gaussians.means * jnp.nan)
    (tmp_path / "a.ply").write_text("old")
    with pytest.raises(InputError, match="not finite"):
        write_ply(tmp_path / "a.ply", broken)
    assert (tmp_path / "a.ply").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
