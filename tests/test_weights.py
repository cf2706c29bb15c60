"""Safetensors files: streamed, in shards, and readable by the official reader."""

import hashlib
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from videomv_jax import weights
from videomv_jax.types import InputError

RNG = np.random.default_rng(0)
ARRAYS = {
    "odd": RNG.normal(size=(3, 1)).astype(np.float16),
    "wide": RNG.normal(size=(2, 5)),
    "single": RNG.normal(size=()).astype(np.float32),
    "brain": RNG.normal(size=(7,)).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 2), np.float32),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


def assert_same(seen, wanted):
    assert seen.keys() == wanted.keys()
    for name, x in wanted.items():
        assert (seen[name].dtype, seen[name].shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(seen[name], x)


def read(tensors):
    return {name: tensor.read() for name, tensor in tensors.items()}


def test_the_official_reader_agrees(tmp_path):
    assert weights.write(tmp_path, "w", weights.of_arrays(ARRAYS)) == [
        tmp_path / "w.safetensors"
    ]
    assert_same(safetensors.numpy.load_file(tmp_path / "w.safetensors"), ARRAYS)
    opened = weights.open_stem(tmp_path, "w")
    assert opened["wide"].shape == (2, 5) and opened["wide"].nbytes == 80
    assert_same(read(opened), ARRAYS)


def test_shards(tmp_path):
    tensors = weights.of_arrays({f"x{i}": np.full(4, i, np.int64) for i in range(5)})
    paths = weights.write(tmp_path, "w", tensors, shard=70)
    assert [path.name for path in paths] == [
        f"w-{i:05}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert [len(weights.open_file(path)) for path in paths] == [2, 2, 1]
    index = json.loads((tmp_path / "w.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 160
    assert index["weight_map"]["x2"] == paths[1].name
    assert_same(read(weights.open_stem(tmp_path, "w")), read(tensors))
    assert len(weights.write(tmp_path, "v", tensors, shard=1)) == 5
    index["weight_map"]["x2"] = "../w.safetensors"
    (tmp_path / "w.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside its folder"):
        weights.open_stem(tmp_path, "w")
    (tmp_path / "w.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="is not an index of shards"):
        weights.open_stem(tmp_path, "w")


def test_one_tensor_at_a_time(tmp_path):
    """Copying a file takes the memory of its largest tensor, not of all."""
    size, count = 2**20, 16
    made = {
        f"x{i}": weights.Tensor(
            (size,), np.dtype(np.uint8), lambda: np.ones(size, "u1")
        )
        for i in range(count)
    }
    weights.write(tmp_path, "a", made)
    opened = weights.open_stem(tmp_path, "a")
    tracemalloc.start()
    weights.write(tmp_path, "b", opened, shard=4 * size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * size
    assert_same(read(weights.open_stem(tmp_path, "b")), read(opened))


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InputError, match="w.safetensors is missing"):
        weights.open_stem(tmp_path, "w")
    (tmp_path / "w.safetensors").write_bytes(b"123456789")
    with pytest.raises(InputError, match="is not a safetensors file"):
        weights.open_stem(tmp_path, "w")
    header = b'{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    raw = len(header).to_bytes(8, "little") + header + b"\0"
    (tmp_path / "w.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match="x is F8_E4M3; want"):
        weights.open_stem(tmp_path, "w")


def test_sums(tmp_path):
    (tmp_path / "a").write_text("one")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_text("two")
    with pytest.raises(InputError, match="has no SHA256SUMS"):
        weights.verify(tmp_path)
    weights.write_sums(tmp_path)
    lines = (tmp_path / weights.SUMS).read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(b'one').hexdigest()}  a"
    assert weights.verify(tmp_path) == []
    (tmp_path / "a").write_text("won")
    (tmp_path / "deep" / "b").rename(tmp_path / "c")
    assert weights.verify(tmp_path) == [
        "deep/b is missing",
        "c is not listed",
        "a has changed",
    ]
    (tmp_path / weights.SUMS).write_text("a b\n")
    with pytest.raises(InputError, match="cannot understand 'a b'"):
        weights.verify(tmp_path)
