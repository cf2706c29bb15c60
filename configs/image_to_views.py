"""Fine-tuning of the released image-to-views model at its size, on a pod.

videomv plan --config configs/image_to_views.py --topology v5e:16x16
videomv train --config configs/image_to_views.py --set init_from=FOLDER

FOLDER is a converted checkpoint. Learning rate, schedule, offset noise, average of the
weights and seed are the original's. It trains without captions and without dropping
them, and starts each clip's views anywhere on the orbit while photo and cameras stay;
here the views start where the photo is (`--set rolled_views=True` for the original's
way) and a tenth of the objects train the unconditional branch
(`--set condition_dropout=0.0`). The objects are those of the synthetic set.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; docs/scale.md says what such a run needs of a pod."""
    config = default_config("diffusion")
    config.model = "i2v"
    config.out = "runs/image_to_views"
    config.train_text = False
    config.train_image = False
    config.steps = 1_000_000
    config.batch_size = 256
    config.objects = 1024
    config.seed = 6666
    config.learning_rate = 3e-5
    config.warmup_steps = 10
    config.beta2 = 0.999
    config.ema_decay = 0.9999
    config.offset_noise = 0.1
    config.caption_dropout = 1.0
    config.compute_dtype = "bfloat16"
    config.remat = "block"
    config.strategy = "fsdp"
    # Samples take the whole model on one device.
    config.sample_every = 0
    return config
