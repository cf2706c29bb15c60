"""Released checkpoints to a model folder: every tensor is used or accounted for."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from videomv_jax import weights
from videomv_jax.convert import (
    clip,
    lpips,
    mapping,
    reconstructor,
    unet,
    vae,
    vision,
)
from videomv_jax.exchange.plan import plan
from videomv_jax.model_folder import read_config
from videomv_jax.models.clip import TextEncoder, VisionEncoder
from videomv_jax.models.lpips import LPIPS, LPIPSConfig
from videomv_jax.models.reconstructor import Reconstructor
from videomv_jax.models.unet import UNet
from videomv_jax.models.vae import VAE
from videomv_jax.types import InputError


def save(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def options(settings, *parts):
    """The `--set` options of some parts."""
    own = [s for s in settings if s.split(".")[0] in parts]
    return [word for s in own for word in ("--set", s)]


def stored(folder, part):
    return {name: x.read() for name, x in weights.open_stem(folder, part).items()}


def assert_same(seen, wanted):
    assert seen.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(seen[name], x, err_msg=name)


@pytest.fixture(scope="module")
def released(tmp_path_factory, narrow):
    """Files of the released model, as safetensors."""
    folder = tmp_path_factory.mktemp("released")
    videomv = narrow("videomv_t2v_unet") | narrow("lgm_big", "lgm_big.")
    first = narrow("autoencoder_kl", "first_stage_model.")
    first["model.diffusion_model.time_embed.0.bias"] = np.zeros(4, np.float32)
    return {
        "videomv": save(folder / "t2v.safetensors", videomv),
        "vae": save(folder / "VQGAN_autoencoder.safetensors", first),
        "clip": save(folder / "clip.safetensors", narrow("open_clip_vit_h_14")),
    }


def test_the_released_model(
    released, narrow, settings, tokenizer_dir, convert, tmp_path
):
    out = tmp_path / "model"
    chosen = [word for s in settings for word in ("--set", s)]
    result = convert(*released.values(), tokenizer_dir, "--to", out, *chosen)
    for words in (
        "1484 tensors used",
        "376 tensors used",
        "248 tensors used",
        "dropped, the image tower: visual.class_embedding",
        "1 dropped, beside the autoencoder in its file: model.diffusion_model",
        "quaternion_norm is 'components'",
        "texts are read after block 23 of 24",
    ):
        assert words in result.stdout, words
    config = read_config(out)
    assert config.unet.multipliers == (1, 2, 4, 4) and config.unet.num_heads == 8
    assert config.unet.attention_levels == 3 and config.unet.res_blocks == 2
    assert config.vae.multipliers == (1, 2, 4, 4) and config.vae.layers == 2
    assert config.reconstructor.up_attention == (True, True, True, False, False)
    assert config.text_encoder.layers == 24 and config.text_encoder.length == 7
    assert (config.schedule, config.sampling.guidance) == ("linear_sd", 9.0)
    assert weights.verify(out) == []

    def make(kind, sizes):
        return nnx.eval_shape(lambda: kind(sizes, rngs=nnx.Rngs(0)))

    theirs = narrow("videomv_t2v_unet")
    assert_same(stored(out, "unet"), unet.load(make(UNet, config.unet), theirs))
    theirs = narrow("lgm_big")
    ours = reconstructor.load(make(Reconstructor, config.reconstructor), theirs)
    assert_same(stored(out, "reconstructor"), ours)
    ours = vae.load(make(VAE, config.vae), narrow("autoencoder_kl"))
    assert_same(stored(out, "vae"), ours)
    theirs = narrow("open_clip_vit_h_14")
    ours = clip.load(make(TextEncoder, config.text_encoder), theirs)
    assert_same(stored(out, "text_encoder"), ours)

    # Every name of every file is somewhere in the account.
    account = json.loads((out / "conversion.json").read_text())
    told = {f"{p}.{n}" for p in account["parts"] for n in account["parts"][p]["used"]}
    told |= {n for p in account["parts"].values() for n in p["dropped"]}
    told |= {n for names in account["dropped"].values() for n in names}
    for path in released.values():
        for name in weights.open_file(path):
            plain = name.removeprefix("lgm_big.").removeprefix("first_stage_model.")
            parts = ("unet", "reconstructor", "vae", "text_encoder")
            assert {name, *(f"{part}.{plain}" for part in parts)} & told, name


def test_a_partial_set_is_completed_later(
    released, settings, tokenizer_dir, convert, tmp_path
):
    """UNet first, then with the autoencoder from elsewhere; weights in bfloat16."""
    first, second = tmp_path / "first", tmp_path / "second"
    result = convert(
        *(released["videomv"], "--part", "unet", "--to", first),
        *("--dtype", "bfloat16", "--shard-gb", 0.001),
        *options(settings, "unet"),
    )
    assert "376 dropped, not asked for: lgm_big." in result.stdout
    assert len(weights.files(first, "unet")) > 2
    assert read_config(first).sampling.steps_3d == ()
    own = stored(first, "unet")
    assert {x.dtype.name for x in own.values()} == {"bfloat16"}
    chosen = options(settings, "vae", "cameras")
    convert(first, released["vae"], tokenizer_dir, "--to", second, *chosen)
    assert_same(stored(second, "unet"), own)
    config = read_config(second)
    assert config.unet == read_config(first).unet and config.vae.groups == 8
    assert config.cameras.size == 64 and config.text_encoder is None
    assert stored(second, "vae")["quant.bias"].dtype == np.float32


def test_listing_writes_nothing(released, settings, convert, tmp_path):
    result = convert(released["vae"], "--list", *options(settings, "vae"))
    assert "248 tensors used" in result.stdout
    assert convert(released["vae"], code=2).stderr.startswith("error: to: say which")


@pytest.fixture
def small_vae(narrow):
    """The autoencoder's tensors, to be spoilt."""
    return narrow("autoencoder_kl")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.pop("quant_conv.bias"), "vae: 1 missing: quant_conv.bias"),
        (
            lambda t: t.update({"encoder.x": t["quant_conv.bias"]}),
            "vae: 1 unexpected: encoder.x",
        ),
        (
            lambda t: t.update({"quant_conv.bias": t["quant_conv.bias"][:3]}),
            r"vae: 1 mis-shaped: quant_conv.bias \(3,\) instead of \(8,\)",
        ),
        (
            lambda t: t.update({"foo": t["quant_conv.bias"]}),
            "v.safetensors: 1 belong to nothing known: foo",
        ),
    ],
)
def test_what_does_not_fit_is_told(small_vae, spoil, words, settings, tmp_path):
    spoil(small_vae)
    path = save(tmp_path / "v.safetensors", small_vae)
    own = [s for s in settings if s.startswith("vae")]
    made = plan([path], name="x", settings=own)
    assert any(re.search(words, fault) for fault in made.faults()), made.faults()


def test_unwanted_tensors_can_be_dropped(small_vae, settings, convert, tmp_path):
    small_vae["foo.bar"] = small_vae["quant_conv.bias"]
    path = save(tmp_path / "v.safetensors", small_vae)
    chosen = options(settings, "vae")
    result = convert(path, "--to", tmp_path / "out", *chosen, code=2)
    assert "nothing known: foo.bar" in result.stderr
    assert not (tmp_path / "out").exists()
    result = convert(path, "--to", tmp_path / "out", *chosen, "--drop", r"foo\..*")
    assert "1 dropped, dropped on request: foo.bar" in result.stdout


def test_one_part_from_two_places(small_vae, settings, tmp_path):
    paths = [save(tmp_path / f"{x}.safetensors", small_vae) for x in "ab"]
    with pytest.raises(InputError, match="vae: it is in .*a.safe.* and in .*b.safe"):
        plan(paths, name="x")


def test_the_released_image_model(released, narrow, settings, convert, tmp_path):
    """Both towers of CLIP are used, and the settings are those of the photo model."""
    tensors = narrow("videomv_i2v_unet") | narrow("lgm_big", "lgm_big.")
    path = save(tmp_path / "i2v.safetensors", tensors)
    out = tmp_path / "model"
    own = [s for s in settings if not s.startswith("vae")]
    own = [*own, "image_encoder.heads=2"]
    chosen = [word for s in own for word in ("--set", s)]
    result = convert(path, released["clip"], "--to", out, *chosen)
    for words in (
        f"{len(narrow('videomv_i2v_unet'))} tensors used",
        "image-to-views UNet of VideoMV in",
        "image_encoder: OpenCLIP's image tower in",
        "the photo's local features count twice",
    ):
        assert words in result.stdout, words
    assert "dropped, the image tower" not in result.stdout
    config = read_config(out)
    image = config.unet.image
    assert (image.local_gain, image.tokens, image.embedding_dim) == (2.0, 4, 128)
    assert config.unet.in_channels == 4 and config.unet.fps_condition
    assert (config.schedule, config.prediction) == ("cosine_zero_snr", "v")
    assert (config.sampling.guidance, config.sampling.fps) == (6.0, 8.0)
    cameras = config.cameras
    assert (cameras.elevation, cameras.radius, cameras.background) == (5.0, 1.7, 1.0)
    vision_sizes = config.image_encoder
    assert (vision_sizes.size, vision_sizes.patch, vision_sizes.layers) == (224, 14, 32)

    def make(kind, sizes):
        return nnx.eval_shape(lambda: kind(sizes, rngs=nnx.Rngs(0)))

    theirs = narrow("videomv_i2v_unet")
    assert_same(stored(out, "unet"), unet.load(make(UNet, config.unet), theirs))
    ours = vision.load(make(VisionEncoder, vision_sizes), narrow("open_clip_vit_h_14"))
    assert_same(stored(out, "image_encoder"), ours)


def test_i2vgen_xl_has_no_cameras(narrow, settings, tmp_path):
    plain = {
        k: x
        for k, x in narrow("videomv_i2v_unet").items()
        if not k.startswith("camera")
    }
    own = [s for s in settings if s.startswith("unet")]
    path = save(tmp_path / "i2v.safetensors", plain)
    made = plan([path], name="x", settings=own)
    assert made.faults() == [] and len(made.parts[0].filled) == 4
    assert made.config.prediction == "v"
    assert "no image encoder" in " ".join(made.notes)
    path = save(tmp_path / "xl.safetensors", narrow("diffusers_i2vgenxl_unet"))
    made = plan([path], name="x", settings=own)
    assert made.faults() == [] and len(made.parts[0].filled) == 4
    assert made.config.unet.image.local_gain == 1.0
    assert made.config.unet.in_channels == 4


def test_an_image_tower_alone_is_kept(narrow, released, tmp_path):
    own = ["image_encoder.heads=2", "text_encoder.heads=2"]
    tower = {
        k: x for k, x in narrow("open_clip_vit_h_14").items() if k.startswith("visual")
    }
    path = save(tmp_path / "tower.safetensors", tower)
    made = plan([path], name="x", settings=own[:1])
    assert [part.name for part in made.parts] == ["image_encoder"]
    asked = ["text_encoder", "image_encoder"]
    made = plan([released["clip"]], name="x", settings=own, parts=asked)
    assert [part.name for part in made.parts] == asked
    assert made.config.text_encoder.skip_last == 1


def test_a_unet_without_cameras_gets_new_ones(narrow, settings, convert, tmp_path):
    tensors = narrow("videomv_t2v_unet")
    plain = {k: x for k, x in tensors.items() if not k.startswith("camera")}
    path = save(tmp_path / "text2video.safetensors", plain)
    out = tmp_path / "out"
    result = convert(path, "--to", out, *options(settings, "unet"))
    assert "4 start afresh: camera_embedding" in result.stdout
    made = stored(out, "unet")
    assert not made["camera_embedding.out.kernel"].any()
    assert made["camera_embedding.hidden.kernel"].std() > 0.1
    assert read_config(out).sampling.prompt_suffix == ""


def test_names_in_other_clothes(small_vae, narrow, settings, tmp_path):
    """Of DataParallel, and of diffusers' autoencoder before its version 0.17."""
    own = [s for s in settings if s.startswith("vae")]
    wrapped = {f"module.{name}": x for name, x in small_vae.items()}
    path = save(tmp_path / "wrapped.safetensors", wrapped)
    assert plan([path], name="x", settings=own).faults() == []
    older = {}
    for name, x in narrow("diffusers_vae").items():
        for new, old in (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value.")):
            name = name.replace(new, old)
        older[name.replace("to_out.0.", "proj_attn.")] = x
    assert "encoder.mid_block.attentions.0.query.weight" in older
    path = save(tmp_path / "older.safetensors", older)
    assert plan([path], name="x", settings=own).faults() == []


def test_the_perceptual_metric(convert, tmp_path):
    config = LPIPSConfig(widths=(4, 8), convs=(1, 2))
    made = nnx.jit(lambda: LPIPS(config, rngs=nnx.Rngs(0)))()
    theirs = lpips.save(made)
    heads = {
        k: np.array(x, order="C") for k, x in theirs.items() if k.startswith("lin")
    }
    vgg = {k: np.array(x, order="C") for k, x in theirs.items() if k not in heads}
    vgg["classifier.0.bias"] = np.zeros(3, np.float32)
    paths = [save(tmp_path / "vgg.safetensors", vgg)]
    result = convert(*paths, "--to", tmp_path / "out", code=2)
    assert "lpips: 2 missing: lin0.model.1.weight" in result.stderr
    paths.append(save(tmp_path / "heads.safetensors", heads))
    result = convert(*paths, "--to", tmp_path / "out")
    assert "1 dropped, turns features into classes: classifier.0" in result.stdout
    # A model folder passes it on.
    convert(tmp_path / "out", "--to", tmp_path / "next", "--name", "metric")
    assert read_config(tmp_path / "next").name == "metric"
    read = lpips.read(tmp_path / "next" / "lpips.safetensors")
    assert_same(mapping.flatten(read), mapping.flatten(made))


def test_types(small_vae, settings, convert, tmp_path):
    small_vae["quant_conv.bias"][0] = 1e5
    small_vae["encoder.conv_in.bias"] = small_vae["encoder.conv_in.bias"].astype("f2")
    path = save(tmp_path / "v.safetensors", small_vae)
    out, chosen = tmp_path / "out", options(settings, "vae")
    result = convert(path, "--to", out, *chosen, "--dtype", "float16", code=2)
    assert "vae: quant.bias is not finite in float16" in result.stderr
    assert not out.exists()
    result = convert(path, "--to", out, *chosen, "--dtype", "float", code=2)
    assert "unknown dtype 'float'" in result.stderr
    convert(path, "--to", out, *chosen)
    made = stored(out, "vae")
    assert made["encoder.conv_in.bias"].dtype == np.float16
    assert made["quant.bias"][0] == 1e5


def test_bad_arguments(tmp_path, convert):
    with pytest.raises(InputError, match="no file or folder"):
        plan([tmp_path / "x"], name="x")
    with pytest.raises(InputError, match="holds no weights and no tokenizer"):
        plan([tmp_path], name="x")
    (tmp_path / "x.txt").touch()
    with pytest.raises(InputError, match="is not a file of weights; want .safetensors"):
        plan([tmp_path / "x.txt"], name="x")
    path = save(tmp_path / "x.safetensors", {"x": np.zeros(1)})
    with pytest.raises(InputError, match="no network was recognised; the names are: x"):
        plan([path], name="x")
    with pytest.raises(InputError, match="unknown part 'vea': did you mean 'vae'"):
        plan([path], name="x", parts=["vea"])
    with pytest.raises(InputError, match="set: 'x' is not of the form"):
        plan([path], name="x", settings=["x"])
    with pytest.raises(InputError, match=r"drop: '\(' is not a pattern"):
        plan([path], name="x", drop=["("])


def test_settings_are_checked(small_vae, settings, tmp_path):
    path = save(tmp_path / "v.safetensors", small_vae)
    for text, words in (
        ("vae.chanels=3", "unknown config key in --set: vae 'chanels'"),
        ("vea.x=3", "unknown section in --set 'vea'"),
        ("cameras.size=large", "cameras: size is 'large', wanted int"),
    ):
        with pytest.raises(InputError, match=words):
            plan([path], name="x", settings=["vae.groups=8", text])
    with pytest.raises(InputError, match="groups: 32 does not divide"):
        plan([path], name="x")
