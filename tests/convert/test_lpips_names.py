"""Names of the perceptual metric's checkpoints."""

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from videomv_jax.convert import lpips as convert
from videomv_jax.convert import mapping
from videomv_jax.models.lpips import LPIPS, LPIPSConfig
from videomv_jax.types import InputError

SMALL = LPIPSConfig(widths=(2, 4), convs=(1, 2))
# torchvision's VGG16: layer number of each convolution, channels in and out.
VGG16 = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
VGG16 |= {12: (256, 256), 14: (256, 256), 17: (256, 512), 19: (512, 512)}
VGG16 |= {21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
TAPS = {"1": (0, 2), "2": (5, 7), "3": (10, 12, 14), "4": (17, 19, 21)}
TAPS |= {"5": (24, 26, 28)}


def make(config: LPIPSConfig) -> LPIPS:
    return nnx.eval_shape(lambda: LPIPS(config, rngs=nnx.Rngs(0)))


def blank(shape):
    return np.broadcast_to(np.float32(0), shape)


def published() -> dict[str, np.ndarray]:
    """Both published files together, without memory."""
    files = {f"classifier.{i}.weight": blank((4096, 4096)) for i in (0, 3, 6)}
    for layer, (i, o) in VGG16.items():
        files[f"features.{layer}.weight"] = blank((o, i, 3, 3))
        files[f"features.{layer}.bias"] = blank((o,))
    for k, width in enumerate((64, 128, 256, 512, 512)):
        files[f"lin{k}.model.1.weight"] = blank((1, width, 1, 1))
    return files


def package() -> dict[str, np.ndarray]:
    """The state of the `lpips` package's module."""
    files = {k: x for k, x in published().items() if not k.startswith("classifier")}
    for level, layers in TAPS.items():
        for layer in layers:
            for leaf in ("weight", "bias"):
                x = files.pop(f"features.{layer}.{leaf}")
                files[f"net.slice{level}.{layer}.{leaf}"] = x
    files |= {k.replace("lin", "lins."): x for k, x in files.items() if "lin" in k[:3]}
    return files | {f"scaling_layer.{k}": blank((1, 3, 1, 1)) for k in KEPT}


KEPT = ("shift", "scale")


@pytest.mark.parametrize("file", [published, package])
def test_the_released_files_fit(file):
    lpips, theirs = make(LPIPSConfig()), file()
    ours = convert.load(lpips, theirs)
    assert {k: x.shape for k, x in ours.items()} == mapping.shapes(lpips)
    drop = convert.unused(theirs)
    own = {convert.canonical(k): x.shape for k, x in theirs.items() if k not in drop}
    back = mapping.save(convert.entries(lpips), ours)
    assert {k: x.shape for k, x in back.items()} == own
    assert convert.sizes(own) == LPIPSConfig()
    assert set(convert.package_names(LPIPSConfig()).values()) <= package().keys()


def test_both_ways_are_inverse(numbered):
    lpips = make(SMALL)
    ours = numbered(mapping.shapes(lpips))
    theirs = mapping.save(convert.entries(lpips), ours)
    assert theirs["features.5.bias"].shape == (4,)
    assert convert.sizes({k: x.shape for k, x in theirs.items()}) == SMALL
    again = convert.load(lpips, theirs)
    for path, x in ours.items():
        np.testing.assert_array_equal(again[path], x)


def test_reading_a_file(tmp_path, numbered):
    path = tmp_path / "lpips.safetensors"
    ours = {
        k: x.astype(np.float16)
        for k, x in numbered(mapping.shapes(make(SMALL))).items()
    }
    safetensors.numpy.save_file(ours, path)
    lpips = convert.read(path, "bfloat16")
    assert (lpips.config.widths, lpips.config.convs) == (SMALL.widths, SMALL.convs)
    assert lpips.config.dtype == "bfloat16"
    np.testing.assert_array_equal(lpips.heads[1][...], ours["heads.1"])
    with pytest.raises(InputError, match="lpips: no file 'nothing'"):
        convert.read("nothing")
    safetensors.numpy.save_file({"x": np.zeros(1)}, path)
    with pytest.raises(InputError, match="holds no weights of the perceptual metric"):
        convert.read(path)
    ours.pop("levels.1.1.bias")
    safetensors.numpy.save_file(ours, path)
    with pytest.raises(InputError, match="lpips: .*missing: levels.1.1.bias"):
        convert.read(path)


def test_the_heads_alone_are_not_enough():
    heads = {"lin0.model.1.weight": (1, 64, 1, 1)}
    with pytest.raises(InputError, match="lacks its classifier"):
        convert.sizes(heads)
