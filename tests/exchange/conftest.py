"""Checkpoints with every name of the released ones, of random numbers and narrow.

The lists of names and shapes come from the reference modules. Widths are divided, by a
rule that knows nothing of our tables; depths stay.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


def _unet(d: int) -> int:
    if d % 320 == 0:
        return d // 10
    return d // 8 if d % 512 == 0 else d


def _text(d: int) -> int:
    if d in (49408, 77):
        return {49408: 300, 77: 7}[d]
    return d // 64 if d % 64 == 0 else d


def _sixteenth(d: int) -> int:
    return d // 16 if d % 64 == 0 else d


NARROWER = {
    "videomv_t2v_unet": _unet,
    "videomv_i2v_unet": _unet,
    "diffusers_i2vgenxl_unet": _unet,
    "diffusers_unet3d_text_to_video_ms": _unet,
    "lgm_big": _sixteenth,
    "autoencoder_kl": _sixteenth,
    "diffusers_vae": _sixteenth,
    "open_clip_vit_h_14": _text,
    "diffusers_text_encoder": _text,
}

# What shapes do not tell of these.
SETTINGS = [
    "unet.head_dim=8",
    "vae.groups=8",
    "reconstructor.groups=4",
    "reconstructor.heads=4",
    "text_encoder.heads=2",
    "cameras.size=64",
]


@pytest.fixture(scope="session")
def settings() -> list[str]:
    """`--set` values that the narrow checkpoints need."""
    return list(SETTINGS)


@pytest.fixture(scope="session")
def narrow():
    """Builder of a narrow checkpoint by the name of its list."""

    def build(name: str, prefix: str = "", seed: int = 0) -> dict[str, np.ndarray]:
        with gzip.open(GOLDEN / f"{name}.json.gz") as file:
            shapes = json.load(file)
        rng, width = np.random.default_rng(seed), NARROWER[name]
        return {
            f"{prefix}{key}": rng.standard_normal(
                [width(d) for d in shape], dtype=np.float32
            )
            for key, shape in shapes.items()
        }

    return build


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A small tokenizer's folder."""
    from videomv_jax.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("source") / "tokenizer"
    train_tokenizer(["a red chair"], 280).save_pretrained(folder)
    return folder


@pytest.fixture
def convert():
    """`videomv convert` with some arguments; the result of the command."""
    from typer.testing import CliRunner

    from videomv_jax.cli.main import app

    def run(*arguments, code: int = 0):
        result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result

    return run
