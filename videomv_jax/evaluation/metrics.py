"""Image quality, float32: PSNR and SSIM per image, LPIPS of many."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videomv_jax.models.lpips import LPIPS

_WINDOW, _SIGMA = 11, 1.5


def psnr(
    images: Float[Array, "*b h w c"], truth: Float[Array, "*b h w c"]
) -> Float[Array, "*b"]:
    """Peak signal-to-noise ratio in dB, of images in [0, 1]."""
    error = jnp.square(images - truth).mean((-3, -2, -1))
    return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def ssim(
    images: Float[Array, "*b h w c"], truth: Float[Array, "*b h w c"]
) -> Float[Array, "*b"]:
    """Structural similarity: Wang et al. 2004, Gaussian window 11, sigma 1.5.

    Of images in [0, 1], at least 11 pixels high and wide; the mean over channels and
    over the positions where the window fits.
    """
    offsets = jnp.arange(_WINDOW, dtype=jnp.float32) - _WINDOW // 2
    window = jnp.exp(-0.5 * jnp.square(offsets / _SIGMA))
    window /= window.sum()

    def blur(x):
        x = jax.lax.conv_general_dilated(
            x, window.reshape(1, 1, -1, 1), (1, 1), "VALID"
        )
        return jax.lax.conv_general_dilated(
            x, window.reshape(1, 1, 1, -1), (1, 1), "VALID"
        )

    batch = images.shape[:-3]

    def planes(x):  # [*b, h, w, c] -> [n, 1, h, w], every channel an image
        return jnp.moveaxis(x, -1, -3).reshape(-1, 1, *x.shape[-3:-1])

    x, y = planes(images), planes(truth)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    values /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return values.mean((1, 2, 3)).reshape(*batch, -1).mean(-1)


def mean_lpips(
    metric: LPIPS,
    images: Float[np.ndarray, "b f h w 3"],
    truth: Float[np.ndarray, "b f h w 3"],
) -> float:
    """Mean LPIPS of images in [0, 1] at their own size; one b in memory at a time."""
    compare = nnx.jit(lambda metric, one, two: metric(one, two).mean())
    return float(
        np.mean([compare(metric, *pair) for pair in zip(images, truth, strict=True)])
    )
