"""Whole models by name: sizes of every part, schedule, cameras, sampling."""

import dataclasses
from collections.abc import Mapping

from videomv_jax.model_folder import CameraConfig, ModelConfig, SamplingConfig
from videomv_jax.models import clip, reconstructor, unet, vae

TINY = ModelConfig(
    name="tiny",
    licence="Apache-2.0",
    provenance="trained by this repository on its synthetic set; docs/tiny-model.md",
    schedule="cosine_zero_snr",
    prediction="v",
    caption_grammar="synthetic",
    cameras=CameraConfig(size=128),
    sampling=SamplingConfig(sampler="dpmpp", steps=20, guidance=2.0),
    unet=unet.PRESETS["tiny"],
    vae=vae.PRESETS["tiny"],
    text_encoder=clip.PRESETS["tiny"],
    reconstructor=reconstructor.PRESETS["tiny"],
)

# One photo, and a text if there is one. VAE, text encoder and reconstructor are those
# of "tiny"; objects fill as much of their first views as the synthetic set's (median of
# 256, seen from the elevations of configs/tiny_image_to_views.py).
TINY_IMAGE = dataclasses.replace(
    TINY,
    name="tiny_image",
    cameras=dataclasses.replace(TINY.cameras, fill=0.68),
    unet=unet.PRESETS["tiny_image"],
    image_encoder=clip.VISION_PRESETS["tiny"],
)

# The released text-to-views model; its weights come from conversion.
T2V = ModelConfig(
    name="t2v",
    licence="see the checkpoint",
    provenance="VideoMV text to views, arXiv 2403.12010",
    schedule="linear_sd",
    prediction="epsilon",
    cameras=CameraConfig(size=256),
    sampling=SamplingConfig(
        sampler="ddim",
        steps=50,
        guidance=9.0,
        negative_prompt=(
            "Distorted, discontinuous, Ugly, blurry, low resolution, disfigured, "
            "disconnected limbs, Ugly faces, incomplete arms"
        ),
        prompt_suffix=", 3d asset",
    ),
    unet=unet.PRESETS["t2v"],
    vae=vae.PRESETS["sd"],
    text_encoder=clip.PRESETS["vit_h_14"],
    reconstructor=reconstructor.PRESETS["big"],
)

# The released image-to-views model: any photo, no text. Its inference scripts render on
# grey 0.7 in 3D-aware steps, `background_3d`, although it was trained on white.
I2V = dataclasses.replace(
    T2V,
    name="i2v",
    provenance="VideoMV image to views, arXiv 2403.12010",
    schedule="cosine_zero_snr",
    prediction="v",
    cameras=CameraConfig(size=256, elevation=5.0, radius=1.7, background=1.0),
    sampling=dataclasses.replace(T2V.sampling, guidance=6.0, prompt_suffix=""),
    unet=unet.PRESETS["i2v"],
    image_encoder=clip.VISION_PRESETS["vit_h_14"],
)

PRESETS: Mapping[str, ModelConfig] = {
    "tiny": TINY,
    "tiny_image": TINY_IMAGE,
    "t2v": T2V,
    "i2v": I2V,
}
