"""Low-rank updates of others, merged while converting."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from videomv_jax.convert import mapping, unet
from videomv_jax.model_folder import load_model

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
VALUE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
OUT = "down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
KOHYA = "lora_unet_" + OUT.replace(".", "_")
RANK, SCALE = 2, 0.5


def factors(number, out, into, window=()):
    rng = np.random.default_rng(number)
    down = rng.normal(size=(RANK, into, *window)).astype("float32")
    up = rng.normal(size=(out, RANK, *(1,) * len(window))).astype("float32")
    return down, up


@pytest.fixture(scope="module")
def small(small_folder):
    return load_model(small_folder)


@pytest.fixture
def updates(tmp_path):
    """A file in the words of three trainers, and what it adds by diffusers' names."""
    query, value = factors(0, 64, 64), factors(1, 64, 32)
    out, conv = factors(2, 64, 64), factors(3, 64, 64, (3, 3))
    old = VALUE.replace(".to_v", ".processor.to_v_lora")
    tensors = {
        f"base_model.model.unet.{QUERY}.lora_A.default.weight": query[0],
        f"base_model.model.unet.{QUERY}.lora_B.default.weight": query[1],
        f"unet.{old}.down.weight": value[0],
        f"unet.{old}.up.weight": value[1],
        f"{KOHYA}.lora_down.weight": out[0],
        f"{KOHYA}.lora_up.weight": out[1],
        f"{KOHYA}.alpha": np.float32(6),
        f"unet.{CONV}.lora_A.weight": conv[0],
        f"unet.{CONV}.lora_B.weight": conv[1],
    }
    path = tmp_path / "updates.safetensors"
    safetensors.numpy.save_file({k: np.asarray(x) for k, x in tensors.items()}, path)
    added = {
        f"{QUERY}.weight": query[1] @ query[0],
        f"{VALUE}.weight": value[1] @ value[0],
        f"{OUT}.weight": 6 / RANK * out[1] @ out[0],
        f"{CONV}.weight": np.einsum("orxy,rihw->oihw", conv[1], conv[0]),
    }
    return path, {name: SCALE * x for name, x in added.items()}


def test_updates_are_added_and_told(small, small_folder, updates, convert, tmp_path):
    path, added = updates
    before = unet.save(small.unet, "diffusers")
    out = tmp_path / "merged"
    arguments = ("--to", out, "--lora", path, "--lora-scale", SCALE)
    told = convert(small_folder, *arguments, "--dtype", "float32").output
    assert "low-rank updates of updates.safetensors times 0.5" in told
    after = unet.save(load_model(out).unet, "diffusers")
    for name, x in before.items():
        wanted = x + added.get(name, 0)
        np.testing.assert_allclose(after[name], wanted, atol=1e-5, err_msg=name)
    assert (
        "updates.safetensors"
        in json.loads((out / "config.json").read_text())["provenance"]
    )
    # Cameras, which diffusers does not know, and other parts stay.
    kept = mapping.flatten(load_model(out).vae)
    for name, x in mapping.flatten(small.vae).items():
        np.testing.assert_array_equal(kept[name], x)


def test_two_files_add_up(small, small_folder, updates, convert, tmp_path):
    path, added = updates
    out = tmp_path / "merged"
    chosen = ["--lora", path, "--lora", path, "--lora-scale", SCALE]
    convert(small_folder, "--to", out, *chosen, "--dtype", "float32")
    name = f"{QUERY}.weight"
    before, after = (
        unet.save(model.unet, "diffusers")[name] for model in (small, load_model(out))
    )
    np.testing.assert_allclose(after - before, 2 * added[name], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"more": t[f"{KOHYA}.alpha"]}, "no file of low-rank.*more"),
        (
            lambda t: {k: x for k, x in t.items() if k != f"{KOHYA}.lora_up.weight"},
            "half of the update of down_blocks_0_temp",
        ),
        (
            lambda t: {k.replace("blocks.0.res", "blocks.7.res"): t[k] for k in t},
            "no layers called down_blocks_7_resnets_0_conv1",
        ),
        (
            lambda t: t | {f"{KOHYA}.lora_down.weight": np.zeros((2, 63), "float32")},
            "the update .64, 2. times .2, 63.",
        ),
    ],
)
def test_what_does_not_fit_is_told(small_folder, updates, convert, change, words):
    path, _ = updates
    tensors = change(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file(tensors, path)
    result = convert(small_folder, "--list", "--lora", path, code=2)
    assert re.search(words, " ".join(result.output.split()))


def test_updates_want_a_unet(small_folder, updates, convert):
    path, _ = updates
    result = convert(small_folder, "--list", "--part", "vae", "--lora", path, code=2)
    assert "there is none to convert" in " ".join(result.output.split())
