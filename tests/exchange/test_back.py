"""Model folders in the files of others: what needs no torch."""

import dataclasses
import shutil

import pytest

from videomv_jax.exchange import foreign
from videomv_jax.model_folder import CONFIG, read_config
from videomv_jax.types import InputError


def test_a_model_folder_is_not_replaced(small_folder, convert, tmp_path):
    """Neither the source itself nor another one."""
    other = shutil.copytree(small_folder, tmp_path / "other")
    for source in (small_folder, other):
        arguments = source, "--as", "diffusers", "--to", other
        assert convert(*arguments, code=2).stderr.startswith("error: ")
    assert read_config(other).to_json() == read_config(small_folder).to_json()


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
