"""Fine-tuning of the released text-to-views model at its size, on a pod.

videomv plan --config configs/text_to_views.py --topology v5e:16x16 --compare
videomv train --config configs/text_to_views.py --set init_from=FOLDER

FOLDER is a converted checkpoint. Learning rate, schedule, dropped captions and that no
average of the weights is kept are the original's, which does not clip, either. The
objects are those of the synthetic set.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import released_config


def get_config() -> ConfigDict:
    """The run; docs/scale.md says what it needs of a pod."""
    config = released_config("diffusion")
    config.out = "runs/text_to_views"
    config.batch_size = 256
    return config
