"""Text to views of the released size, with single images beside the clips.

videomv train --config configs/text_to_views_images.py --set init_from=FOLDER

The original gives one GPU in eight batches of 196 images of LAION, the other seven 24
clips each, on 24 GPUs: 588 images and 504 clips a step. Here every device has both, in
numbers that divide over a pod, and the images count an eighth. They are views of the
synthetic set, without their cameras.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import released_config


def get_config() -> ConfigDict:
    """The run; learning rate, schedule and dropped captions are the original's."""
    config = released_config("diffusion")
    config.out = "runs/text_to_views_images"
    config.batch_size = 512
    config.image_batch = 512
    config.image_weight = 1 / 8
    return config
