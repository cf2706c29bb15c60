"""Stage 1 of the embedded model: the small VAE.

videomv train --config configs/tiny_autoencoder.py
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; expected results are in docs/tiny-model.md."""
    config = default_config("autoencoder")
    config.out = "runs/tiny_autoencoder"
    config.steps = 3000
    config.batch_size = 32
    config.views = 4
    config.objects = 32768
    config.learning_rate = 5e-4
    config.warmup_steps = 200
    config.compute_dtype = "bfloat16"
    return config
