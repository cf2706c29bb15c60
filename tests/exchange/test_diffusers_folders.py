"""Folders of diffusers and transformers, both ways, with their own modules.

The modules are as deep as the released ones but narrow; what they compute is compared
where that is quick, what they save is compared bit for bit.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomv_jax import weights
from videomv_jax.model_folder import load_model, read_config
from videomv_jax.models.clip import _MEAN, _STD

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def randomized(module, seed=0):
    """All parameters random, also those that start at zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            scale = 0.5 / np.sqrt(max(p[0].numel(), 1)) if p.ndim > 1 else 0.1
            p.add_(torch.randn(p.shape, generator=generator) * scale)
    return module.eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tokenizer_dir):
    """A folder as text-to-video-ms-1.7b is laid out, small, and its modules."""
    import shutil

    import diffusers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    modules = {
        "unet": diffusers.UNet3DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(16, 16, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.3,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=300,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=7,
                hidden_act="gelu",
            )
        ),
    }
    for name, module in modules.items():
        randomized(module).save_pretrained(folder / name)
    shutil.copytree(tokenizer_dir, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    index = dict.fromkeys([*modules, "tokenizer", "scheduler"], ["x", "y"])
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nx\n")
    return folder, modules


@pytest.fixture(scope="module")
def converted(pipeline, tmp_path_factory):
    from typer.testing import CliRunner

    from videomv_jax.cli.main import app

    out = tmp_path_factory.mktemp("converted") / "model"
    result = CliRunner().invoke(app, ["convert", str(pipeline[0]), "--to", str(out)])
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_sizes_come_from_shapes_and_configs(converted):
    out, told = converted
    config = read_config(out)
    assert config.unet.multipliers == (1, 2) and config.unet.num_heads == 8
    assert (config.unet.head_dim, config.unet.groups) == (8, 8)
    assert (config.vae.groups, config.vae.scale_factor) == (4, 0.3)
    assert (config.text_encoder.layers, config.text_encoder.skip_last) == (2, 0)
    assert config.text_encoder.heads == 4
    assert "unet: cc-by-nc-4.0" in config.licence
    assert "scheduler" in told and "settings of ours take its place" in told
    assert (out / "tokenizer" / "tokenizer.json").is_file()


def test_the_folder_computes_the_same(pipeline, converted, error):
    import torch

    modules = pipeline[1]
    model = load_model(converted[0], dtype="float32")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 3, 8, 8, 4)).astype(np.float32)
    text = rng.normal(size=(1, 5, 32)).astype(np.float32)
    cameras = rng.normal(size=(1, 3, 16)).astype(np.float32)
    t = np.asarray([421])
    with torch.no_grad():
        theirs = modules["unet"](
            torch.from_numpy(x).permute(0, 4, 1, 2, 3),
            torch.from_numpy(t),
            torch.from_numpy(text),
        ).sample.permute(0, 2, 3, 4, 1)
    ours = jax.jit(model.unet)(x, t, text, cameras)
    assert error(ours, theirs) < 1e-4
    tokens = np.asarray([[3, 5, 260, 7, 1, 0, 0]])
    with torch.no_grad():
        theirs = modules["text_encoder"](torch.from_numpy(tokens)).last_hidden_state
    ours = jax.jit(model.text_encoder)(jnp.asarray(tokens, jnp.int32))
    assert error(ours, theirs) < 1e-4
    images = rng.uniform(size=(1, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        latents = modules["vae"].encode(
            torch.from_numpy(2 * images - 1).permute(0, 3, 1, 2)
        )
        theirs = latents.latent_dist.mean.permute(0, 2, 3, 1) * 0.3
    assert error(jax.jit(model.vae.encode)(images), theirs) < 1e-4


def test_there_and_back(pipeline, converted, convert, tmp_path):
    """diffusers and transformers load what comes back, and it is bit for bit theirs."""
    import diffusers
    import torch
    import transformers

    out = tmp_path / "back"
    result = convert(converted[0], "--as", "diffusers", "--to", out)
    assert "no cameras and no frame rate: unet: camera_embedding" in result.stdout
    for name, kind in (
        ("unet", diffusers.UNet3DConditionModel),
        ("vae", diffusers.AutoencoderKL),
        ("text_encoder", transformers.CLIPTextModel),
    ):
        read, told = kind.from_pretrained(out / name, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"], name
        wanted = pipeline[1][name].state_dict()
        seen = read.state_dict()
        assert seen.keys() == wanted.keys()
        assert all(torch.equal(seen[k], x) for k, x in wanted.items()), name
    scheduler = diffusers.DDIMScheduler.from_pretrained(out / "scheduler")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[:2].tolist() == [981, 961]
    again = tmp_path / "again"
    convert(out, "--to", again)
    for part in ("unet", "vae", "text_encoder"):
        one, two = (weights.open_stem(x, part) for x in (converted[0], again))
        assert one.keys() == two.keys()
        for name, x in one.items():
            np.testing.assert_array_equal(x.read(), two[name].read(), err_msg=name)


def test_photos_there_and_back(convert, error, tmp_path):
    """A folder as i2vgen-xl is laid out; with features that count twice, too."""
    import diffusers
    import torch
    import transformers

    sizes = dict(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    torch.manual_seed(0)
    unet = randomized(diffusers.I2VGenXLUNet(**sizes))
    tower = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=8,
            patch_size=4,
            projection_dim=32,
            hidden_act="gelu",
        )
    )
    modules = {"unet": unet, "image_encoder": randomized(tower)}
    source = tmp_path / "i2vgen-xl"
    for name, module in modules.items():
        module.save_pretrained(source / name)
    index = dict.fromkeys(modules, ["x", "y"])
    (source / "model_index.json").write_text(json.dumps(index))
    ours, back = tmp_path / "ours", tmp_path / "back"
    result = convert(source, "--to", ours)
    assert "the photo's local features count once" in result.stdout
    config = read_config(ours)
    assert config.image_encoder.heads == 4 and config.image_encoder.size == 8
    result = convert(ours, "--as", "diffusers", "--to", back)
    assert "no cameras" in result.stdout and "fps_embedding" not in result.stdout
    for name, kind in (
        ("unet", diffusers.I2VGenXLUNet),
        ("image_encoder", transformers.CLIPVisionModelWithProjection),
    ):
        read, told = kind.from_pretrained(back / name, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"], name
        wanted, seen = modules[name].state_dict(), read.state_dict()
        assert all(torch.equal(seen[k], x) for k, x in wanted.items()), name

    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        theirs = tower(torch.from_numpy(pixels)).image_embeds
    shift, spread = np.reshape(_MEAN, (3, 1, 1)), np.reshape(_STD, (3, 1, 1))
    images = (pixels * spread + shift).transpose(0, 2, 3, 1).astype(np.float32)
    model = load_model(ours, dtype="float32")
    assert error(jax.jit(model.image_encoder)(images), theirs) < 1e-4

    # Features that count twice become weights twice as large.
    data = json.loads((ours / "config.json").read_text())
    data["unet"]["image"]["local_gain"] = 2.0
    (ours / "config.json").write_text(json.dumps(data))
    convert(ours, "--as", "diffusers", "--to", back)
    seen = diffusers.I2VGenXLUNet.from_pretrained(back / "unet").conv_in.weight
    wanted = unet.conv_in.weight
    assert torch.equal(seen[:, :4], wanted[:, :4])
    assert torch.equal(seen[:, 4:], 2 * wanted[:, 4:])


@pytest.mark.parametrize(
    ("part", "name", "count"),
    [
        ("unet", "diffusers_unet3d_text_to_video_ms", 1480),
        ("unet", "diffusers_i2vgenxl_unet", 1511),
        ("vae", "diffusers_vae", 248),
        ("text_encoder", "diffusers_text_encoder", 372),
    ],
)
def test_every_released_name(part, name, count, narrow, settings, convert, tmp_path):
    """The released key sets, in shards with an index as large folders have them."""
    (tmp_path / part).mkdir()
    tensors = narrow(name)
    stem = {"text_encoder": "model"}.get(part, "diffusion_pytorch_model")
    made = weights.of_arrays(tensors)
    weights.write(tmp_path / part, stem, made, shard=10**6)
    (tmp_path / part / "config.json").write_text('{"hidden_act": "gelu"}')
    own = [w for s in settings if s.startswith(part) for w in ("--set", s)]
    result = convert(tmp_path / part, "--list", *own)
    assert f"{count} tensors used" in result.stdout
    assert "missing" not in result.stdout


def test_the_whole_clip(convert, tmp_path):
    """The last block is skipped; towers and projections that texts do not need go."""
    import transformers

    sizes = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act="gelu",
    )
    text = sizes | {"vocab_size": 300, "max_position_embeddings": 7}
    image = sizes | {"image_size": 8, "patch_size": 4}
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=image)
    )
    randomized(whole).save_pretrained(tmp_path / "clip")
    result = convert(tmp_path / "clip", "--to", tmp_path / "out")
    assert "texts are read after block 2 of 3" in result.stdout
    assert "dropped, the image tower: vision_model." in result.stdout
    config = read_config(tmp_path / "out").text_encoder
    assert (config.layers, config.skip_last, config.heads) == (3, 1, 4)
    made = weights.open_stem(tmp_path / "out", "text_encoder")
    wanted = whole.text_model.encoder.layers[1].mlp.fc2.weight.detach().numpy().T
    np.testing.assert_array_equal(made["blocks.1.mlp_out.kernel"].read(), wanted)
    assert not any(name.startswith("blocks.2") for name in made)


def test_another_activation_is_refused(narrow, convert, tmp_path):
    tensors = weights.of_arrays(narrow("diffusers_text_encoder"))
    weights.write(tmp_path, "model", tensors)
    (tmp_path / "config.json").write_text('{"hidden_act": "quick_gelu"}')
    result = convert(tmp_path, "--list", code=2)
    assert "hidden_act 'quick_gelu'" in result.stderr
