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

from videomv_jax.training.config import released_config


def get_config() -> ConfigDict:
    """The run; docs/scale.md says what such a run needs of a pod."""
    config = released_config("diffusion", "i2v")
    config.out = "runs/image_to_views"
    config.train_image = False
    config.batch_size = 256
    config.seed = 6666
    config.ema_decay = 0.9999
    config.offset_noise = 0.1
    config.caption_dropout = 1.0
    return config
