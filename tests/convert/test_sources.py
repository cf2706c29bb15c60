"""Which files of a folder are read, and what is told of those that cannot be."""

import json

import numpy as np
import pytest

from videomv_jax import weights
from videomv_jax.convert import sources
from videomv_jax.types import InputError


def write(folder, stem, value=1.0, config="{}", shard=2**40):
    folder.mkdir(exist_ok=True)
    tensors = {f"x{i}": np.full(4, value, np.float32) for i in range(3)}
    weights.write(folder, stem, weights.of_arrays(tensors), shard=shard)
    (folder / "config.json").write_text(config)


def value(found) -> float:
    (source,) = found.sources
    assert source.tensors.keys() == {"x0", "x1", "x2"}
    return float(source.tensors["x0"].read()[0])


NETWORK = '{"_class_name": "AutoencoderKL", "scaling_factor": 0.5}'


def test_one_set_of_a_folders_weights_is_read(tmp_path):
    """Full precision before a variant, safetensors before pickles, shards by index."""
    folder = tmp_path / "vae"
    write(folder, "diffusion_pytorch_model.fp16", 2.0, NETWORK)
    found = sources.find([folder])
    assert value(found) == 2 and found.sources[0].config["scaling_factor"] == 0.5
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    for stem in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model"):
        (folder / f"{stem}.bin").touch()
    write(folder, "diffusion_pytorch_model", 1.0, NETWORK, shard=20)
    assert len(list(folder.glob("*-of-00003.safetensors"))) == 3
    assert value(sources.find([folder])) == 1
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    assert value(sources.find([index])) == 1


def test_a_folder_of_loose_files_gives_each(tmp_path):
    write(tmp_path, "one")
    (tmp_path / "config.json").unlink()
    write(tmp_path / "deeper", "two")
    (tmp_path / "README.md").write_text(
        "---\ntags: [x]\nlicense: mit\n---\nlicense: no"
    )
    (tmp_path / "export.json").write_text('{"model": "of another program"}')
    (source,) = sources.find([tmp_path]).sources
    assert (source.path.name, source.licence) == ("one.safetensors", "mit")


def test_a_pipeline_is_taken_apart(tmp_path, small_folder):
    index = {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["x", "y"], "_v": "1"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    write(tmp_path / "vae", "diffusion_pytorch_model", 3.0, NETWORK)
    write(tmp_path / "unlisted", "diffusion_pytorch_model", 4.0, NETWORK)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").touch()
    found = sources.find([tmp_path, small_folder, small_folder / "tokenizer"])
    assert value(found) == 3
    assert found.ignored == {
        str(tmp_path / "scheduler"): "settings of ours take its place"
    }
    assert found.ours == [small_folder]
    assert found.tokenizers == [small_folder / "tokenizer"]
    names = {path.name for path in sources.tokenizer_files(small_folder / "tokenizer")}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


def test_broken_folders_are_told(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not JSON"):
        sources.find([tmp_path])
    (tmp_path / "config.json").write_text(NETWORK)
    with pytest.raises(InputError, match="holds a config.json and no weights"):
        sources.find([tmp_path])
