"""The perceptual metric against torch's layers, with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import lpips as convert
from videomv_jax.models.lpips import LPIPS, LPIPSConfig
from videomv_jax.training.supervision import perceptual
from videomv_jax.types import InputError

compare = nnx.jit(lambda lpips, images, truth: lpips(images, truth))
SMALL = LPIPSConfig(widths=(4, 8), convs=(1, 2))


@pytest.fixture(scope="module")
def make(filled):
    """Builder of a metric with random weights; heads are positive as in the file."""

    def build(config: LPIPSConfig) -> LPIPS:
        lpips = filled(lambda: LPIPS(config, rngs=nnx.Rngs(0)))
        for head in lpips.heads:
            head.set_value(jnp.abs(head[...]))
        return lpips

    return build


def twin(theirs, images, truth):
    """LPIPS of [n, 3, h, w] in [-1, 1], from the weights of its two files."""
    import torch
    from torch.nn import functional as F

    weights = {k: torch.from_numpy(np.array(x)) for k, x in theirs.items()}
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    taps = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    pooled, total = {4, 9, 16, 23}, 0.0
    x = (torch.cat([images, truth]) - shift) / scale
    for layer in range(30):
        if f"features.{layer}.weight" in weights:
            kernel, bias = (weights[f"features.{layer}.{k}"] for k in KERNEL_BIAS)
            conv = torch.nn.Conv2d(*kernel.shape[1::-1], 3, padding=1)
            conv.weight.data, conv.bias.data = kernel, bias
            x = conv(x)
        else:
            x = F.max_pool2d(x, 2) if layer in pooled else F.relu(x)
        if layer in taps:
            length = torch.sqrt((x**2).sum(1, keepdim=True))
            one, two = (x / (length + 1e-10)).chunk(2)
            head = weights[f"lin{taps[layer]}.model.1.weight"]
            total = total + F.conv2d((one - two) ** 2, head).mean((1, 2, 3))
    return total


KERNEL_BIAS = ("weight", "bias")


@pytest.mark.parity
def test_equals_torch_at_full_size(make, error):
    import torch

    lpips = make(LPIPSConfig())
    rng = np.random.default_rng(1)
    images, truth = rng.uniform(size=(2, 2, 45, 38, 3)).astype(np.float32)
    ours = compare(lpips, images, truth)
    first, second = (
        torch.from_numpy(2 * x - 1).permute(0, 3, 1, 2) for x in (images, truth)
    )
    with torch.no_grad():
        theirs = twin(convert.save(lpips), first, second).numpy()
    assert np.ptp(theirs) > 1e-3 * theirs.mean()
    assert error(ours, theirs) < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("size", [32, 512])
def test_training_compares_at_lgms_size(make, size, monkeypatch):
    """Resized as torch does, whether that enlarges or shrinks."""
    import torch
    from torch.nn import functional as F

    seen = []
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(1, 2, size, size, 3)).astype(np.float32)

    def metric(one, two):
        seen.extend([one, two])
        return jnp.asarray([[1.0, 3.0]])

    assert perceptual(metric, images, 1 - images) == 2
    for ours, given in zip(seen, (images, 1 - images), strict=True):
        x = torch.from_numpy(given[0]).permute(0, 3, 1, 2)
        x = F.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(ours[0], x.permute(0, 2, 3, 1), atol=1e-5)


def test_distances(make):
    lpips = make(SMALL)
    images = jax.random.uniform(jax.random.key(0), (2, 3, 9, 6, 3))
    same, near, far = (compare(lpips, images, images * s) for s in (1.0, 0.9, 0.2))
    assert same.shape == (2, 3) and (same < 1e-12).all()
    assert (0 < near).all() and (near < far).all()
    np.testing.assert_allclose(compare(lpips, images * 0.2, images), far, rtol=1e-6)


def test_gradients_are_finite_where_nothing_fires(make):
    """All features of a level may be 0: the length has no derivative there."""
    lpips = make(SMALL)
    for conv in lpips.levels[0]:
        # So dark that no feature of the first level fires.
        conv.bias.set_value(jnp.full_like(conv.bias[...], -100))
    truth = jax.random.uniform(jax.random.key(0), (4, 4, 3))
    slope = jax.jit(jax.grad(lambda x: lpips(x, truth)))(jnp.zeros_like(truth))
    assert np.isfinite(slope).all()


def test_bad_input(make):
    lpips = make(SMALL)
    with pytest.raises(InputError, match=r"want \[..., h, w, 3\]"):
        lpips(jnp.zeros((4, 4, 3)), jnp.zeros((4, 5, 3)))
    with pytest.raises(InputError, match="want sides of 2 or more"):
        lpips(jnp.zeros((4, 1, 3)), jnp.zeros((4, 1, 3)))
    with pytest.raises(InputError, match="one for each of widths"):
        LPIPSConfig(widths=(4, 8), convs=(2,))
