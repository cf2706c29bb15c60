"""Fine-tuning of the released text-to-views model at its size, on a pod.

videomv plan --config configs/text_to_views.py --topology v5e:16x16 --compare
videomv train --config configs/text_to_views.py --set init_from=FOLDER

FOLDER is a converted checkpoint. Learning rate, schedule and dropped captions are
the original's; it also has no clipping, and no average of the weights. The objects
are those of the synthetic set.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; docs/scale.md says what it needs of a pod."""
    config = default_config("diffusion")
    config.model = "t2v"
    config.out = "runs/text_to_views"
    config.train_text = False
    config.steps = 1_000_000
    config.batch_size = 256
    config.objects = 1024
    config.learning_rate = 3e-5
    config.warmup_steps = 10
    config.beta2 = 0.999
    config.compute_dtype = "bfloat16"
    config.remat = "block"
    config.strategy = "fsdp"
    # Samples take the whole model on one device.
    config.sample_every = 0
    return config
