"""Stage 2 of the embedded model: text to 24 views, on the latents of stage 1.

videomv train --config configs/tiny_text_to_views.py
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; expected results are in docs/tiny-model.md."""
    config = default_config("diffusion")
    config.init_from = "runs/tiny_autoencoder/model"
    config.out = "runs/tiny_text_to_views"
    config.steps = 8000
    config.batch_size = 128
    config.objects = 65536
    config.learning_rate = 8e-4
    config.warmup_steps = 300
    config.compute_dtype = "bfloat16"
    return config
