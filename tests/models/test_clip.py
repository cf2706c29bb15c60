"""The text encoder against OpenCLIP and transformers, and its own promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import clip as convert
from videomv_jax.convert import mapping
from videomv_jax.models.clip import PRESETS, TextConfig, TextEncoder
from videomv_jax.types import InputError

SMALL = TextConfig(
    vocab=32, length=8, width=16, heads=2, layers=2, skip_last=0, dtype="float32"
)
TOKENS = np.random.default_rng(0).integers(0, SMALL.vocab, (2, SMALL.length), np.int32)


def make(config: TextConfig) -> TextEncoder:
    return TextEncoder(config, rngs=nnx.Rngs(0))


@nnx.jit
def encode(encoder, tokens):
    return encoder(tokens)


@pytest.mark.parametrize(
    ("skip_last", "name"), [(1, "words_penultimate"), (0, "words_last")]
)
def test_equals_the_original(skip_last, name, golden, error):
    z = golden("clip_tiny")
    sizes = z.config["text_cfg"]
    config = TextConfig(
        vocab=sizes["vocab_size"],
        length=sizes["context_length"],
        width=sizes["width"],
        heads=sizes["heads"],
        layers=sizes["layers"],
        skip_last=skip_last,
        dtype="float32",
    )
    encoder = nnx.eval_shape(lambda: make(config))
    mapping.assign(encoder, convert.load(encoder, z.param))
    assert len(encoder.blocks) == sizes["layers"] - skip_last
    assert error(encode(encoder, z.in_["tokens"]), z.out[name]) < 2e-5


def test_a_token_sees_only_those_before(filled):
    encoder = filled(lambda: make(SMALL))
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % SMALL.vocab
    a, b = encode(encoder, TOKENS), encode(encoder, changed)
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (np.abs(a - b)[:, 5:].max(-1) > 0).all()


def test_a_shorter_text_is_a_prefix(filled, error):
    encoder = filled(lambda: make(SMALL))
    short = encode(encoder, TOKENS[:, :5])
    assert error(short, encode(encoder, TOKENS)[:, :5]) < 1e-5


def test_unknown_tokens_are_not_silent(filled):
    states = encode(filled(lambda: make(SMALL)), np.full((1, 8), SMALL.vocab, np.int32))
    assert np.isnan(states).all()


def test_gradients_reach_every_parameter(filled, gradients):
    def loss(encoder):
        return jnp.square(encoder(TOKENS)[..., 0]).mean()

    gradients(loss, filled(lambda: make(SMALL)))


def test_bfloat16_multiplies_in_bfloat16(filled, product_types, error):
    encoder = filled(lambda: make(SMALL))
    half = filled(lambda: make(dataclasses.replace(SMALL, dtype="bfloat16")))
    assert set(product_types(half, TOKENS)) == {jnp.dtype("bfloat16")}
    assert {p.dtype for p in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    states = encode(half, TOKENS)
    assert states.dtype == jnp.bfloat16
    assert 0 < error(states, encode(encoder, TOKENS)) < 0.05


def test_starts_with_small_branches():
    encoder = nnx.jit(lambda: make(SMALL))()
    block, layers = encoder.blocks[0], SMALL.layers
    width, wide = SMALL.width, SMALL.width * SMALL.mlp_ratio
    deviations = {
        "qkv": (block.attention.qkv.kernel, width**-0.5),
        "out": (block.attention.out.kernel, (2 * layers * width) ** -0.5),
        "mlp_in": (block.mlp_in.kernel, (2 * width) ** -0.5),
        "mlp_out": (block.mlp_out.kernel, (2 * layers * width) ** -0.5),
        "tokens": (encoder.token_embedding, 0.02),
        "positions": (encoder.position_embedding, 0.01),
    }
    assert block.mlp_out.kernel.shape == (wide, width)
    for name, (kernel, wanted) in deviations.items():
        assert abs(kernel[...].std() / wanted - 1) < 0.2, name


@pytest.mark.parametrize(
    ("name", "count"), [("vit_h_14", 340_387_840), ("tiny", 930_560)]
)
def test_presets_have_the_documented_size(name, count):
    encoder = nnx.eval_shape(lambda: make(PRESETS[name]))
    shapes = mapping.shapes(encoder)
    assert sum(int(np.prod(s)) for s in shapes.values()) == count


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda encoder: encoder(TOKENS[0]), "tokens"),
        (lambda encoder: encoder(np.zeros((1, 9), np.int32)), "at most 8"),
        (lambda encoder: dataclasses.replace(SMALL, heads=3), "heads"),
        (lambda encoder: dataclasses.replace(SMALL, skip_last=2), "skip_last"),
    ],
)
def test_bad_input_is_named(call, word, filled):
    encoder = filled(lambda: make(SMALL))
    with pytest.raises(InputError, match=word):
        call(encoder)


@pytest.mark.parity
@pytest.mark.parametrize("skip_last", [0, 1])
def test_equals_transformers(skip_last, error):
    import torch
    import transformers

    torch.manual_seed(0)
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=SMALL.vocab,
            hidden_size=SMALL.width,
            intermediate_size=SMALL.width * SMALL.mlp_ratio,
            num_hidden_layers=SMALL.layers - skip_last,
            num_attention_heads=SMALL.heads,
            max_position_embeddings=SMALL.length,
            hidden_act="gelu",
        )
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    config = dataclasses.replace(SMALL, skip_last=skip_last)
    encoder = nnx.eval_shape(lambda: make(config))
    state = {k: x.numpy() for k, x in theirs.state_dict().items()}
    mapping.assign(encoder, convert.load(encoder, state, "transformers"))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(TOKENS).long()).last_hidden_state.numpy()
    assert error(encode(encoder, TOKENS), wanted) < 1e-4
    for name, x in convert.save(encoder, "transformers").items():
        full = name if name in state else f"{convert.PREFIX}{name}"
        np.testing.assert_array_equal(x, state[full])
