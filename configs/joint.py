"""UNet and reconstructor of the released size together.

videomv train --config configs/joint.py --set init_from=FOLDER

FOLDER is a converted text-to-views checkpoint with the reconstructor in it. The loss of
the renders flows into the UNet; --set feedback=0.25 also denoises what was rendered.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; learning rate, schedule and dropped captions as in text_to_views.py."""
    config = default_config("joint")
    config.model = "t2v"
    config.out = "runs/joint"
    config.train_text = False
    config.steps = 1_000_000
    config.batch_size = 64
    config.objects = 1024
    config.corrupted_inputs = 1.0
    config.even_inputs = 1.0
    config.supervised_size = 512
    config.learning_rate = 3e-5
    config.warmup_steps = 10
    config.beta2 = 0.999
    config.compute_dtype = "bfloat16"
    config.remat = "block"
    config.strategy = "fsdp"
    # Samples take the whole model on one device.
    config.sample_every = 0
    return config
