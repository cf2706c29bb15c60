"""The embedded image model: one photo to 24 views, from the embedded text model.

videomv train --config configs/tiny_image_to_views.py

Its UNet starts from the text model's, with the VAE, the text encoder and the
reconstructor of that model, which stay as they are.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; expected results are in docs/tiny-model.md."""
    config = default_config("diffusion")
    config.model = "tiny_image"
    config.init_from = "videomv_jax/embedded/tiny"
    config.out = "runs/tiny_image_to_views"
    config.train_text = False
    config.steps = 2000
    config.batch_size = 128
    config.objects = 32768
    config.learning_rate = 8e-4
    config.warmup_steps = 50
    config.ema_decay = 0.995
    config.compute_dtype = "bfloat16"
    config.caption_dropout = 0.5
    # From 10 degrees below the equator to 40 above.
    config.elevation_jitter = 25.0
    config.turned = 0.5
    return config
