"""Blocks of the autoencoder and of the reconstructor against the original's.

The small input (0.002 times the normal one) is where the eps of the norms decides.
"""

import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.models.layers import ResidualBlock
from videomv_jax.models.reconstructor import ReconstructorConfig, ViewAttention
from videomv_jax.models.vae import AttentionBlock, VAEConfig


def residual(eps: float, scale: float) -> nnx.Module:
    return ResidualBlock(
        64, 96, groups=32, eps=eps, scale=scale, dtype="float32", rngs=nnx.Rngs(0)
    )


def attention_of_pixels() -> nnx.Module:
    return AttentionBlock(64, VAEConfig(dtype="float32"), rngs=nnx.Rngs(0))


def attention_of_views() -> nnx.Module:
    config = ReconstructorConfig(dtype="float32")
    return ViewAttention(64, config, rngs=nnx.Rngs(0))


RESIDUAL = [
    ("norm1.scale", "norm1.weight"),
    ("norm1.bias", "norm1.bias"),
    ("conv1.kernel", "conv1.weight", mapping.conv),
    ("conv1.bias", "conv1.bias"),
    ("norm2.scale", "norm2.weight"),
    ("norm2.bias", "norm2.bias"),
    ("conv2.kernel", "conv2.weight", mapping.conv),
    ("conv2.bias", "conv2.bias"),
]
NORM = [("norm.scale", "norm.weight"), ("norm.bias", "norm.bias")]
BLOCKS = {
    "ae_res": (
        lambda: residual(1e-6, 1.0),
        [
            *RESIDUAL,
            ("shortcut.kernel", "nin_shortcut.weight", mapping.conv1x1_to_linear),
            ("shortcut.bias", "nin_shortcut.bias"),
        ],
    ),
    "lgm_res": (
        lambda: residual(1e-5, 0.5**0.5),
        [
            *RESIDUAL,
            ("shortcut.kernel", "shortcut.weight", mapping.conv1x1_to_linear),
            ("shortcut.bias", "shortcut.bias"),
        ],
    ),
    "ae_attn": (
        attention_of_pixels,
        [
            *NORM,
            (
                "attention.qkv.kernel",
                ("q.weight", "k.weight", "v.weight"),
                mapping.conv1x1_to_linear,
            ),
            ("attention.qkv.bias", ("q.bias", "k.bias", "v.bias")),
            ("attention.out.kernel", "proj_out.weight", mapping.conv1x1_to_linear),
            ("attention.out.bias", "proj_out.bias"),
        ],
    ),
    "lgm_attn": (
        attention_of_views,
        [
            *NORM,
            ("attention.qkv.kernel", "attn.qkv.weight", mapping.fused(3)),
            ("attention.out.kernel", "attn.proj.weight", mapping.linear),
            ("attention.out.bias", "attn.proj.bias"),
        ],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_the_original(name, golden, error):
    make, rows = BLOCKS[name]
    z = golden("blocks_small_nets")
    table = [mapping.Entry(*row) for row in rows]
    theirs = mapping.under(f"{name}/", z.param)
    block = nnx.eval_shape(make)
    mapping.assign(block, mapping.load(table, theirs, mapping.shapes(block)))
    x = np.moveaxis(z.in_["x_views" if name.startswith("lgm") else "x"], 1, -1)
    for scale, case in ((np.float32(1), "normal"), (z.in_["small_scale"], "small")):
        wanted = np.moveaxis(z.out[f"{name}/{case}"], 1, -1)
        assert (
            error(nnx.jit(lambda block, x: block(x))(block, scale * x), wanted) < 2e-5
        )
