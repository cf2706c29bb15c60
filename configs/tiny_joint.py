"""The embedded model's UNet and reconstructor together, from the stages before.

videomv train --config configs/tiny_joint.py
videomv train --config configs/tiny_joint.py --set feedback=0.25

The second command also denoises what it rendered.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; no result is known yet."""
    config = default_config("joint")
    config.init_from = "tiny"
    config.out = "runs/tiny_joint"
    config.steps = 2000
    config.batch_size = 16
    config.objects = 8192
    config.corrupted_inputs = 0.75
    config.even_inputs = 1.0
    config.learning_rate = 1e-4
    config.train_text = False
    config.compute_dtype = "bfloat16"
    return config
