"""Stage 3 of the embedded model: four views to Gaussians, on views as they come.

videomv train --config configs/tiny_reconstructor.py
videomv train --config configs/tiny_reconstructor.py \
    --set init_from=runs/tiny_reconstructor/model --set corrupted_inputs=0.75 \
    --set out=runs/tiny_reconstructor_noisy

The first command trains on clean views, the second goes on with the UNet's own.
"""

from ml_collections import ConfigDict

from videomv_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The run; expected results are in docs/tiny-model.md."""
    config = default_config("reconstruction")
    config.init_from = "runs/tiny_text_to_views/model"
    config.out = "runs/tiny_reconstructor"
    config.steps = 3000
    config.batch_size = 16
    config.objects = 8192
    config.learning_rate = 5e-4
    # The text model's own orbit is at 15 degrees, a photo's between -12.5 and 42.5.
    config.elevation_jitter = 27.5
    config.compute_dtype = "bfloat16"
    return config
