"""Names and shapes of the UNet in the released and in diffusers' checkpoints."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.convert import unet as names
from videomv_jax.models.unet import PRESETS, UNet, UNetConfig
from videomv_jax.types import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFESTS = {
    "videomv": "videomv_t2v_unet",
    "diffusers": "diffusers_unet3d_text_to_video_ms",
}
SMALL = UNetConfig(
    dim=64,
    multipliers=(1, 1),
    res_blocks=1,
    attention_levels=1,
    num_heads=2,
    context_dim=24,
    fps_condition=True,
)


def abstract(config: UNetConfig) -> UNet:
    return nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def small() -> UNet:
    """A small UNet with whole numbers as weights, which no rounding changes."""
    unet = abstract(SMALL)
    shapes = mapping.shapes(unet)
    ends = np.cumsum([np.prod(s) for s in shapes.values()])
    mapping.assign(
        unet,
        {
            path: np.arange(end - np.prod(shape), end, dtype=np.float32).reshape(shape)
            for (path, shape), end in zip(shapes.items(), ends, strict=True)
        },
    )
    return unet


@pytest.fixture(scope="module")
def released() -> UNet:
    return abstract(PRESETS["t2v"])


@pytest.mark.parametrize("source", ["videomv", "diffusers"])
def test_names_and_shapes_are_the_released_ones(released, source):
    with gzip.open(GOLDEN / f"{MANIFESTS[source]}.json.gz") as file:
        wanted = {name: tuple(shape) for name, shape in json.load(file).items()}
    shapes = mapping.shapes(released)
    table = names.entries(released, source)
    blank = {e.ours: np.broadcast_to(np.float32(0), shapes[e.ours]) for e in table}
    seen = {name: x.shape for name, x in mapping.save(table, blank).items()}
    assert seen == wanted


def test_released_size(released):
    sizes = [np.prod(shape) for shape in mapping.shapes(released).values()]
    assert sum(sizes) == 1_412_895_300


@pytest.mark.parametrize("source", ["videomv", "diffusers"])
def test_round_trip_is_exact(small, source):
    ours = mapping.flatten(small)
    theirs = names.save(small, source)
    assert all(x.dtype == np.float32 for x in theirs.values())
    back = names.load(small, theirs, source)
    left_out = {k for k in ours if k not in back}
    lacking = {"camera_embedding"} if source == "diffusers" else set()
    assert {k.split(".")[0] for k in left_out} == lacking
    for path, x in back.items():
        np.testing.assert_array_equal(x, ours[path], err_msg=path)
    again = mapping.save(names.entries(small, source), back)
    assert again.keys() == theirs.keys()
    for name, x in again.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)


def test_both_sources_hold_the_same_values(small):
    """Layouts agree but for the temporal projections, 1-D convolutions in VideoMV."""
    videomv, diffusers = (names.save(small, s) for s in ("videomv", "diffusers"))
    pairs = {
        "middle_block.0.emb_layers.1.weight": (
            "mid_block.resnets.0.time_emb_proj.weight"
        ),
        "middle_block.3.temopral_conv.conv1.2.weight": (
            "mid_block.temp_convs.1.conv1.2.weight"
        ),
        "output_blocks.2.1.transformer_blocks.0.attn2.to_v.weight": (
            "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight"
        ),
        "output_blocks.1.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "input_blocks.0.1.proj_in.weight": "transformer_in.proj_in.weight",
    }
    for ours, theirs in pairs.items():
        x, y = videomv[ours], diffusers[theirs]
        assert x.shape == (*y.shape, 1) if "proj_in" in ours else x.shape == y.shape
        np.testing.assert_array_equal(x.reshape(y.shape), y, err_msg=ours)


def test_faults_are_told_in_foreign_names(small):
    theirs = names.save(small)
    name = "input_blocks.1.0.in_layers.2.weight"
    with pytest.raises(InputError, match=f"missing: {name}; unexpected: lgm_big.x"):
        spoilt = {k: x for k, x in theirs.items() if k != name}
        names.load(small, spoilt | {"lgm_big.x": np.zeros(1)})
    with pytest.raises(InputError, match=rf"mis-shaped: {name} \(64, 64, 3\) instead"):
        names.load(small, theirs | {name: theirs[name][..., 0]})
