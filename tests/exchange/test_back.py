"""Model folders in the files of others: what needs no torch."""

import dataclasses
import shutil

import pytest

from videomv_jax.exchange import foreign
from videomv_jax.model_folder import CONFIG, read_config
from videomv_jax.types import InputError


@pytest.fixture
def vae_only(small_folder, tmp_path):
    """A model folder with an autoencoder alone."""
    folder = shutil.copytree(small_folder, tmp_path / "vae_only")
    rest = dict.fromkeys(("unet", "text_encoder", "reconstructor"))
    config = dataclasses.replace(read_config(folder), **rest)
    (folder / CONFIG).write_text(config.to_json())
    return folder


def test_a_model_folder_is_not_replaced(vae_only, small_folder, convert, tmp_path):
    """Neither the source itself nor another one; only an earlier export is."""
    other = shutil.copytree(small_folder, tmp_path / "other")
    for target in (vae_only, other):
        with pytest.raises(InputError, match="not ours to replace"):
            foreign.write(vae_only, target, "diffusers")
        assert (target / "vae.safetensors").is_file()
    for _ in range(2):
        assert foreign.write(vae_only, tmp_path / "out", "diffusers") == {}
    assert not (tmp_path / "out" / "unet").exists()


def test_what_diffusers_cannot_build_is_told(small_folder, convert, tmp_path):
    result = convert(
        small_folder, "--as", "diffusers", "--to", tmp_path / "out", code=2
    )
    assert "num_heads is 2; diffusers' UNet has 8" in result.stderr
    assert not (tmp_path / "out").exists()


def test_bad_arguments(small_folder, convert, tmp_path):
    with pytest.raises(InputError, match="unknown format 'toch': did you mean 'torch'"):
        foreign.write(small_folder, tmp_path / "out", "toch")
    result = convert(small_folder, "--as", "torch", code=2)
    assert "say which folder" in result.stderr
    out = tmp_path / "out"
    result = convert(small_folder, out, "--as", "torch", "--to", out, code=2)
    assert "takes one model folder" in result.stderr
    empty = shutil.copytree(small_folder, tmp_path / "empty")
    nothing = dict.fromkeys(("unet", "vae", "text_encoder", "reconstructor"))
    config = dataclasses.replace(read_config(empty), **nothing)
    (empty / CONFIG).write_text(config.to_json())
    with pytest.raises(InputError, match="has nothing that torch has a place for"):
        foreign.write(empty, out, "torch")
