"""The released sizes: 1.8 billion numbers through the converter, in little memory."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from videomv_jax import weights
from videomv_jax.model_folder import read_config
from videomv_jax.presets import PRESETS

pytestmark = pytest.mark.slow  # 8 GB of files, minutes

GOLDEN = Path(__file__).parents[1] / "golden"
LISTS = {
    "t2v": {"videomv_t2v_unet": "", "lgm_big": "lgm_big."},
    "vae": {"autoencoder_kl": "first_stage_model."},
}


def random_tensors(shapes, seed):
    """float16 numbers, made when they are read."""

    def made(i, shape):
        rng = np.random.default_rng([seed, i])
        return rng.integers(0x2C00, 0x3C00, shape, np.uint16).view(np.float16)

    return {
        name: weights.Tensor(
            tuple(shape), np.dtype(np.float16), lambda i=i, s=shape: made(i, s)
        )
        for i, (name, shape) in enumerate(shapes.items())
    }


def test_the_released_sizes(tmp_path):
    for seed, (file, lists) in enumerate(LISTS.items()):
        shapes = {}
        for name, prefix in lists.items():
            with gzip.open(GOLDEN / f"{name}.json.gz") as f:
                shapes |= {prefix + k: shape for k, shape in json.load(f).items()}
        weights.write(tmp_path, file, random_tensors(shapes, seed), shard=2**62)
    out = tmp_path / "model"
    code = "import sys, resource; from videomv_jax.cli.main import app\n"
    code += "try: app(sys.argv[1:])\n"
    code += "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "
    code += "file=sys.stderr)"
    files = [str(tmp_path / f"{file}.safetensors") for file in LISTS]
    arguments = ["convert", *files, "--to", str(out), "--shard-gb", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config = read_config(out)
    assert config.vae.widths == PRESETS["t2v"].vae.widths
    assert config.unet.widths == PRESETS["t2v"].unet.widths
    assert config.unet.num_heads == PRESETS["t2v"].unet.num_heads
    assert len(weights.files(out, "unet")) == 3
    assert weights.verify(out) == []
    count = sum(np.prod(t.shape) for t in weights.open_stem(out, "unet").values())
    assert count == 1_412_895_300
    # What a process with JAX takes, and the largest tensor: read and laid out.
    largest = max(t.nbytes for f in files for t in weights.open_file(f).values())
    peak = 1024 * int(done.stderr.split()[-1])
    print(f"peak {peak / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB")
    assert peak < 0.5e9 + 3 * largest
