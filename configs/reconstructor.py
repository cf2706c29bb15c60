"""Fine-tuning of the released reconstructor on the UNet's own views, at its size.

videomv train --config configs/reconstructor.py --set init_from=FOLDER

FOLDER is a converted text-to-views checkpoint with the reconstructor in it. As the
original: every input is the UNet's x0 of noised latents at a random time, four random
views of which are decoded; compared are those and four more, 512 pixels wide, by
squared error of colour and alpha and by LPIPS, whose weights --set lpips=FILE names.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import released_config


def get_config() -> ConfigDict:
    """The run; learning rate and schedule are the original's."""
    config = released_config("reconstruction")
    config.out = "runs/reconstructor"
    config.batch_size = 64
    config.corrupted_inputs = 1.0
    config.even_inputs = 0.0
    config.supervised_views = 4
    config.supervised_size = 512
    return config
