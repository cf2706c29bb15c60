"""Names and shapes of what photos need, in the released and other checkpoints."""

import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping, unet, vision
from videomv_jax.models.clip import VISION_PRESETS, VisionEncoder
from videomv_jax.models.unet import PRESETS, UNet


@pytest.mark.parametrize(
    ("source", "name"),
    [("videomv", "videomv_i2v_unet"), ("diffusers", "diffusers_i2vgenxl_unet")],
)
def test_the_unet_has_the_released_names(source, name, checkpoint):
    model = nnx.eval_shape(lambda: UNet(PRESETS["i2v"], rngs=nnx.Rngs(0)))
    theirs = checkpoint(name)
    ours = unet.load(model, theirs, source)
    shapes = mapping.shapes(model)
    cameras = {path for path in shapes if path.startswith("camera_embedding")}
    assert shapes.keys() - ours.keys() == (cameras if source == "diffusers" else set())
    assert {k: x.shape for k, x in ours.items()} == {k: shapes[k] for k in ours}


def test_the_image_encoder_has_the_released_names(checkpoint):
    model = nnx.eval_shape(
        lambda: VisionEncoder(VISION_PRESETS["vit_h_14"], rngs=nnx.Rngs(0))
    )
    ours = vision.load(model, checkpoint("open_clip_vit_h_14"))
    assert {k: x.shape for k, x in ours.items()} == mapping.shapes(model)


@pytest.mark.parametrize("source", ["openclip", "transformers"])
def test_there_and_back_again(source, numbered):
    config = VISION_PRESETS["vit_h_14"].__class__(
        size=8, patch=4, width=16, heads=2, layers=1, features=8
    )
    model = nnx.eval_shape(lambda: VisionEncoder(config, rngs=nnx.Rngs(0)))
    ours = numbered(mapping.shapes(model))
    table = vision.entries(model, source)
    theirs = mapping.save(table, ours)
    assert sum(x.size for x in theirs.values()) == sum(x.size for x in ours.values())
    again = mapping.load(table, theirs, mapping.shapes(model))
    for path, x in ours.items():
        np.testing.assert_array_equal(again[path], x, err_msg=path)
