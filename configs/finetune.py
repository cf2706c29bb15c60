"""Fine-tuning of the embedded model on a source of your own.

videomv data encode rendered --out shards --model tiny
videomv train --config configs/finetune.py --set source=shards --set init_from=tiny
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; docs/data.md begins with how to get shards."""
    config = default_config("diffusion")
    config.out = "runs/finetune"
    config.steps = 500
    config.batch_size = 8
    config.learning_rate = 1e-4
    config.warmup_steps = 20
    config.log_every = 10
    config.sample_every = 250
    config.save_every = 250
    return config
