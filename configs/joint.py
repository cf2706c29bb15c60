"""UNet and reconstructor of the released size together.

videomv train --config configs/joint.py --set init_from=FOLDER

FOLDER is a converted text-to-views checkpoint with the reconstructor in it. The loss of
the renders flows into the UNet; --set feedback=0.25 also denoises what was rendered.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import released_config


def get_config() -> ConfigDict:
    """The run; learning rate, schedule and dropped captions as in text_to_views.py."""
    config = released_config("joint")
    config.out = "runs/joint"
    config.batch_size = 64
    config.corrupted_inputs = 1.0
    config.even_inputs = 1.0
    config.supervised_size = 512
    return config
