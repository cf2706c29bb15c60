"""Encoding: what comes out, going on, several writers, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from flax import nnx
from trees import COUNT, TREES, VIEWS
from typer.testing import CliRunner

from videomv_jax.cli.data import data
from videomv_jax.data import encode as encoding
from videomv_jax.data import shards
from videomv_jax.data.samples import fit, over
from videomv_jax.data.shards import ShardSource
from videomv_jax.data.sources import SourceSpec, open_source, read_specs, recognise
from videomv_jax.data.tokenizer import encode as tokenize
from videomv_jax.data.tokenizer import load_tokenizer
from videomv_jax.model_folder import load_model
from videomv_jax.types import InputError

SIZE = 16


@pytest.fixture(scope="module")
def encoders(small_folder):
    model = load_model(small_folder)
    tokenizer = load_tokenizer(model.tokenizer_dir)
    return encoding.Encoders(
        model.vae, model.text_encoder, tokenizer, SIZE, 0.5, ", 3d asset"
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    TREES["views"](root)
    return root


def run(root, out, encoders, **options):
    source = open_source(SourceSpec(str(root)), VIEWS)
    options = {"where": str(root), "views": VIEWS, "per_shard": 2, **options}
    return encoding.encode(source, str(out), encoders, **options)


@pytest.fixture(scope="module")
def encoded(plain, encoders, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    assert run(plain, out, encoders) == {}
    return out


def test_what_is_in_a_shard(encoded, plain, encoders):
    assert recognise(encoded) == "shards"
    source = open_source(SourceSpec(str(encoded)), VIEWS)
    assert isinstance(source, ShardSource)
    assert len(source) == COUNT and source.manifest.shards == 2
    source.verify()
    truth = open_source(SourceSpec(str(plain)), VIEWS)
    for index in range(COUNT):
        want, got = fit(truth[index], SIZE), source[index]
        assert (got.name, got.caption) == (want.name, want.caption)
        seen = want.views * (want.views[..., 3:] > 0)
        np.testing.assert_array_equal(got.views, seen)
        jax.tree.map(np.testing.assert_array_equal, got.cameras, want.cameras)
    record = source.latents(1)
    images = over(want.views if index == 1 else truth[1].views, 0.5)
    mean, logvar = nnx.jit(type(encoders.vae).moments)(
        encoders.vae, images.astype(np.float32) / 255
    )
    np.testing.assert_allclose(record["mean"], mean, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(record["logvar"], logvar, rtol=2e-3, atol=2e-3)
    assert record["mean"].dtype == np.float16
    text = encoders.text
    tokens, _ = tokenize(encoders.tokenizer, ["a ball 1, 3d asset"], text.config.length)
    np.testing.assert_allclose(record["text"], text(tokens)[0], rtol=2e-3, atol=2e-3)


def test_pictures_have_one_view_and_no_suffix(tmp_path, encoders):
    TREES["pictures"](tmp_path / "in")
    run(tmp_path / "in", tmp_path / "out", encoders)
    source = ShardSource(tmp_path / "out")
    assert source.manifest.views == 1 and source.manifest.suffix == ""
    assert source[0].cameras is None and source[0].views.shape == (1, SIZE, SIZE, 4)
    tokens, _ = tokenize(encoders.tokenizer, ["a ball 0"], encoders.text.config.length)
    np.testing.assert_allclose(
        source.latents(0)["text"], encoders.text(tokens)[0], rtol=2e-3, atol=2e-3
    )


def sums(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_going_on_gives_the_same_files(encoded, plain, encoders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    add, count = shards.ShardWriter.add, [0]

    def interrupted(self, *arguments):
        count[0] += 1
        if count[0] == COUNT:  # in the second shard
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(plain, out, encoders)
    with pytest.raises(InputError, match="1 of 2 shards are missing"):
        ShardSource(out)
    before = (out / "00000-of-00002.json").stat().st_mtime_ns
    told = []
    run(plain, out, encoders, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    assert (out / "00000-of-00002.json").stat().st_mtime_ns == before
    assert sums(out) == sums(encoded)
    run(plain, out, encoders)  # nothing left to do
    assert sums(out) == sums(encoded)


def test_parts_make_the_whole(encoded, plain, encoders, tmp_path):
    for index in (1, 0):
        run(plain, tmp_path / "out", encoders, part=(index, 2))
    assert sums(tmp_path / "out") == sums(encoded)
    with pytest.raises(InputError, match="shard"):
        run(plain, tmp_path / "out", encoders, part=(2, 2))


def test_a_bucket_gets_the_same_files(encoded, plain, encoders, monkeypatch):
    address = "memory://bucket/shards"
    files = fsspec.filesystem("memory")
    put = files.put_file

    def arrived():
        found = files.ls("/bucket/shards", detail=False)
        return {path.rsplit("/", 1)[-1]: files.cat_file(path) for path in found}

    def broken(local, remote, **options):
        if remote.endswith("00001-of-00002.views.array_record"):
            raise ConnectionError("the line is dead")
        put(local, remote, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(files), "put_file", staticmethod(broken))
        with pytest.raises(InputError, match="cannot write.*the line is dead"):
            run(plain, address, encoders)
    # Records of the second shard without its .json: it is not there yet.
    assert set(sums(encoded)) - set(arrived()) == {
        "00001-of-00002.views.array_record",
        "00001-of-00002.json",
    }
    told = []
    run(plain, address, encoders, progress=lambda *of: told.append(of))
    assert told == [(2, 3), (3, 3)]
    assert arrived() == sums(encoded)
    with pytest.raises(InputError, match="per_shard is 2, now it is 3"):
        run(plain, address, encoders, per_shard=3)
    with pytest.raises(InputError, match="mount it"):
        read_specs(address)
    with pytest.raises(InputError, match="gs:/bucket/x is an address"):
        read_specs(Path("gs://bucket/x"))


def test_unreadable_samples_are_skipped_and_told(plain, encoders, tmp_path):
    shutil.copytree(plain, tmp_path / "in")
    (tmp_path / "in/object1/views/02.png").write_bytes(b"")
    (tmp_path / "in/object2/cameras.json").unlink()
    skipped = run(tmp_path / "in", tmp_path / "out", encoders)
    assert list(skipped) == ["object1", "object2"]
    source = ShardSource(tmp_path / "out")
    assert source.names == ["object0"] and source.problems == skipped
    assert source[0].name == "object0"


def test_another_source_or_encoder_is_refused(encoded, plain, encoders, small_model):
    with pytest.raises(InputError, match="per_shard is 2, now it is 3"):
        run(plain, encoded, encoders, per_shard=3)
    other = dataclasses.replace(encoders, background=1.0)
    with pytest.raises(InputError, match="background"):
        run(plain, encoded, other)
    source = ShardSource(encoded)
    ours = shards.fingerprint(encoders.vae)
    source.check_encoders(vae=ours, text=None)
    text = encoding.text_fingerprint(encoders.text, encoders.tokenizer)
    source.check_encoders(vae=ours, text=text)
    with pytest.raises(InputError, match="another autoencoder"):
        source.check_encoders(vae="0" * 64)
    with pytest.raises(InputError, match="another text encoder"):
        source.check_encoders(vae=ours, text="0" * 64)


def test_fingerprints_are_of_weights_not_of_types(small_folder, encoders):
    half = load_model(small_folder, dtype="bfloat16").vae
    assert shards.fingerprint(half) == shards.fingerprint(encoders.vae)
    moved = load_model(small_folder).vae
    bias = moved.quant.bias
    bias[...] = bias[...] + 1e-3
    assert shards.fingerprint(moved) != shards.fingerprint(encoders.vae)


def test_damaged_shards_are_named(encoded, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(encoded, out)
    path = out / "00001-of-00002.latents.array_record"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"00001-of-00002.latents.*bytes"):
        ShardSource(out)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    with pytest.raises(InputError, match="damaged"):
        ShardSource(out)
    at = content.index(b"mean")
    path.write_bytes(content[:at] + b"moan" + content[at + 4 :])
    source = ShardSource(out)
    with pytest.raises(InputError, match="wrong sum"):
        source.verify()
    with pytest.raises(InputError, match="damaged latents of object2"):
        source[2]
    assert source[0].name == "object0"
    (out / "manifest.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(InputError, match="want version, source"):
        ShardSource(out)
    (out / "manifest.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(InputError, match="version 0"):
        ShardSource(out)


def test_command(plain, small_folder, tmp_path):
    arguments = ["encode", str(plain), "--model", str(small_folder)]
    out = str(tmp_path / "out")
    result = CliRunner().invoke(data, [*arguments, "--out", out, "--shard", "0/1"])
    # The model wants 8 views, the objects have 4.
    assert result.exit_code == 0, result.output
    assert "skipped 3" in result.output and "4 views, want 8" in result.output
    for more, told in (
        (["--out", "nowhere://bucket/x"], "cannot be read: Protocol not known"),
        (["--out", out, "--shard", "1-2"], "i/n"),
        (["--out", out, "--layout", "vews"], "did you mean 'views'"),
    ):
        result = CliRunner().invoke(data, [*arguments, *more])
        assert isinstance(result.exception, InputError), result.output
        assert told in str(result.exception)
