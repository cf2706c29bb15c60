"""Eight fake CPU devices, strict promotion: set before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def error():
    """Largest difference over the largest value; shapes must agree."""

    def relative(a, b) -> float:
        a, b = np.asarray(a, np.float32), np.asarray(b)
        assert a.shape == b.shape
        return float(np.abs(a - b).max() / np.abs(b).max())

    return relative


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """A model folder whose networks are small and whose weights are random."""
    from videomv_jax.data.tokenizer import train_tokenizer
    from videomv_jax.model_folder import CameraConfig, ModelConfig, SamplingConfig
    from videomv_jax.models.clip import TextConfig
    from videomv_jax.models.reconstructor import ReconstructorConfig
    from videomv_jax.models.unet import UNetConfig
    from videomv_jax.models.vae import VAEConfig

    folder = tmp_path_factory.mktemp("models") / "small"
    tokenizer = train_tokenizer(["a red chair with blue legs", "a green boat"])
    tokenizer.save_pretrained(folder.with_name("tokenizer"))
    config = ModelConfig(
        name="small",
        licence="Apache-2.0",
        provenance="random",
        schedule="cosine_zero_snr",
        prediction="v",
        caption_grammar="synthetic",
        cameras=CameraConfig(views=8, size=32),
        sampling=SamplingConfig(
            steps=4, steps_3d=(0.5,), views_3d=(0, 2, 4, 6), guidance=2.0
        ),
        unet=UNetConfig(
            dim=64,
            multipliers=(1,),
            res_blocks=1,
            attention_levels=1,
            head_dim=32,
            num_heads=2,
            context_dim=32,
            dtype="float32",
        ),
        vae=VAEConfig(
            channels=16, multipliers=(1,) * 4, layers=1, groups=8, dtype="float32"
        ),
        text_encoder=TextConfig(
            vocab=len(tokenizer),
            length=48,
            width=32,
            heads=2,
            layers=1,
            skip_last=0,
            dtype="float32",
        ),
        reconstructor=ReconstructorConfig(
            down_channels=(16, 16),
            down_attention=(False, True),
            up_channels=(16,),
            up_attention=(False,),
            layers=1,
            heads=2,
            groups=8,
            dtype="float32",
        ),
    )
    write_random(folder, config, folder.with_name("tokenizer"))
    return folder


def write_random(folder, config, tokenizer_dir) -> None:
    """Write a model folder with random weights."""
    from videomv_jax.convert import mapping
    from videomv_jax.model_folder import PARTS, abstract, save_model

    rng = np.random.default_rng(0)
    modules = {}
    for part, kind in PARTS.items():
        if getattr(config, part) is None:
            continue
        module = abstract(
            lambda rngs, kind=kind, part=part: kind(getattr(config, part), rngs=rngs)
        )
        weights = {
            name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)
            for name, shape in mapping.shapes(module).items()
        }
        mapping.assign(module, weights)
        modules[part] = module
    save_model(folder, config, modules, tokenizer_dir)


@pytest.fixture(scope="session")
def small_image_folder(small_folder):
    """The same for photos."""
    import dataclasses

    from videomv_jax.model_folder import TOKENIZER, read_config
    from videomv_jax.models.clip import VisionConfig
    from videomv_jax.models.image_condition import ImageConfig

    text = read_config(small_folder)
    assert text.unet is not None
    config = dataclasses.replace(
        text,
        name="small_image",
        unet=dataclasses.replace(
            text.unet, image=ImageConfig(embedding_dim=16), fps_condition=True
        ),
        image_encoder=VisionConfig(
            size=32,
            patch=16,
            width=32,
            heads=2,
            layers=1,
            features=16,
            dtype="float32",
        ),
    )
    folder = small_folder.with_name("small_image")
    write_random(folder, config, small_folder / TOKENIZER)
    return folder


@pytest.fixture(scope="session")
def small_image_model(small_image_folder):
    """The model of `small_image_folder`."""
    from videomv_jax.pipeline import VideoMV

    return VideoMV.from_pretrained(small_image_folder)


@pytest.fixture(scope="session")
def small_model(small_folder):
    """The model of `small_folder`, whose programs compile once for all tests."""
    from videomv_jax.pipeline import VideoMV

    return VideoMV.from_pretrained(small_folder)
