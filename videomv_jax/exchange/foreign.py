"""From a model folder back to the files of the originals, or of diffusers."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from videomv_jax import atomic, weights
from videomv_jax.convert import clip, lpips, mapping, pickles, recognise, vae
from videomv_jax.convert.sources import EXPORT
from videomv_jax.exchange.plan import BUILDERS, LPIPS_PART
from videomv_jax.model_folder import (
    TOKENIZER,
    ModelConfig,
    abstract,
    folder_of,
    read_config,
)
from videomv_jax.models.unet import UNetConfig
from videomv_jax.types import InputError
from videomv_jax.weights import Tensor

Format = Literal["torch", "diffusers"]

_CAMERAS = "diffusers' UNet has no cameras and no frame rate"
_NO_PLACE = "diffusers has no place for it"
_UNETS = {False: "UNet3DConditionModel", True: "I2VGenXLUNet"}
_NEITHER = ("camera_embedding", "fps_embedding")
# How often VideoMV's code counts the local features of a photo.
_VIDEOMV_GAIN = 2.0
# The heads after the first convolution, which diffusers has no setting for.
_DIFFUSERS_HEADS = 8


@dataclasses.dataclass
class Foreign:
    """What a folder gives in another format.

    Attributes:
        files: relative path to what is in it: `.pth` and `.bin` files of torch hold
            names in groups, safetensors one group "".
        texts: relative path to JSON values.
        left_out: parts and parameters without a place, with the reason.
    """

    files: dict[str, dict[str, dict[str, Tensor]]]
    texts: dict[str, Any]
    left_out: dict[str, str]


def write(
    source: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    format: Format,
) -> dict[str, str]:
    """Write the parts of a model folder for other programs, whole or not at all.

    "torch": `videomv_t2v.pth`, or `videomv_i2v.pth` if it takes photos, with the UNet
    and, where its quaternions are normalised as in VideoMV, the reconstructor (else in
    `lgm.safetensors`), `VQGAN_autoencoder.pth`, `open_clip_text.bin`,
    `open_clip_image.bin`, `lpips.pth`. "diffusers": the folders of a
    TextToVideoSDPipeline or an I2VGenXLPipeline. Weights keep their types, bit for bit;
    but where the photo's local features count more than once, as diffusers has them
    not, the weights that read them are multiplied instead.

    Args:
        source: the model folder.
        directory: to write; one that this function wrote is replaced.
        format: whose names and files.

    Returns:
        What the format has no place for, with the reason.

    Raises:
        InputError: no model folder, a UNet that diffusers cannot build, or torch is
            needed and missing.
    """
    if format not in get_args(Format):
        raise InputError.unknown("format", format, get_args(Format))
    source = Path(source)
    config = read_config(source)
    made = (_torch if format == "torch" else _diffusers)(source, config)
    if not made.files:
        raise InputError(f"{source} has nothing that {format} has a place for")
    with atomic.replacing(directory, EXPORT) as folder:
        for name, content in made.files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            if path.suffix == ".safetensors":
                weights.write(path.parent, path.stem, content[""], shard=2**62)
            else:
                pickles.write(path, content)
        tokenizer = folder_of(source, config, TOKENIZER) / TOKENIZER
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, folder / TOKENIZER)
        for name, text in made.texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(text, indent=2) + "\n")
        told = {"format": format, "left out": made.left_out}
        told["model"] = json.loads(config.to_json())
        (folder / EXPORT).write_text(json.dumps(told, indent=1) + "\n")
    return made.left_out


def _torch(source: Path, config: ModelConfig) -> Foreign:
    made = Foreign({}, {}, {})
    videomv = "videomv_t2v.pth"
    if config.unet is not None:
        tensors = _tensors(source, "unet", config.unet, "videomv")
        if config.unet.image is not None:
            videomv = "videomv_i2v.pth"
            if config.unet.image.local_gain != _VIDEOMV_GAIN:
                _multiply(
                    tensors, "input_blocks.0.0.weight", config.unet, _VIDEOMV_GAIN
                )
        made.files[videomv] = {"state_dict": tensors}
    if config.reconstructor is not None:
        tensors = _tensors(source, "reconstructor", config.reconstructor, "lgm")
        norm = config.reconstructor.quaternion_norm
        if config.unet is not None and norm == "components":
            place = made.files[videomv]["state_dict"]
            place |= {f"lgm_big.{name}": x for name, x in tensors.items()}
        else:
            made.files["lgm.safetensors"] = {"": tensors}
    if config.vae is not None:
        tensors = _tensors(source, "vae", config.vae, "original")
        named = {f"{vae.PREFIX}{name}": x for name, x in tensors.items()}
        made.files["VQGAN_autoencoder.pth"] = {"state_dict": named}
    if config.text_encoder is not None:
        tensors = _tensors(source, "text_encoder", config.text_encoder, "openclip")
        made.files["open_clip_text.bin"] = {"": tensors}
    if config.image_encoder is not None:
        tensors = _tensors(source, "image_encoder", config.image_encoder, "openclip")
        made.files["open_clip_image.bin"] = {"": tensors}
    if (source / f"{LPIPS_PART}.safetensors").is_file():
        made.files["lpips.pth"] = {"": _lpips(source)}
    return made


def _lpips(source: Path) -> dict[str, Tensor]:
    """The state of the `lpips` package's module."""
    config = lpips.read(source / f"{LPIPS_PART}.safetensors").config
    named = lpips.package_names(config)
    tensors = _tensors(source, LPIPS_PART, config, "lpips")
    out = {named.get(name, name): x for name, x in tensors.items()}
    heads = {name: x for name, x in out.items() if name.startswith("lin")}
    out |= {name.replace("lin", "lins.", 1): x for name, x in heads.items()}
    return out | weights.of_arrays(lpips.constants())


def _diffusers(source: Path, config: ModelConfig) -> Foreign:
    made = Foreign({}, {}, {})
    stem = "diffusion_pytorch_model.safetensors"
    if (sizes := config.unet) is not None:
        if sizes.num_heads != _DIFFUSERS_HEADS:
            raise InputError(
                f"unet: num_heads is {sizes.num_heads}; diffusers' UNet has "
                f"{_DIFFUSERS_HEADS} after its first convolution"
            )
        own = _tensors(source, "unet", sizes, "diffusers")
        photos = sizes.image is not None
        lacks = ("camera_embedding",) if photos else _NEITHER
        if sizes.image is not None:
            _check_photo_unet(sizes)
            if sizes.image.local_gain != 1:
                _multiply(own, "conv_in.weight", sizes, 1.0)
        own = {k: x for k, x in own.items() if not k.startswith(lacks)}
        made.files[f"unet/{stem}"] = {"": own}
        has = [i < sizes.attention_levels for i in range(len(sizes.widths))]
        made.texts["unet/config.json"] = {
            "_class_name": _UNETS[photos],
            "in_channels": sizes.in_channels,
            "out_channels": sizes.out_channels,
            "block_out_channels": sizes.widths,
            "layers_per_block": sizes.res_blocks,
            "cross_attention_dim": sizes.context_dim,
            "attention_head_dim": sizes.head_dim,
            "norm_num_groups": sizes.groups,
            "down_block_types": [("CrossAttn" * x) + "DownBlock3D" for x in has],
            "up_block_types": [("CrossAttn" * x) + "UpBlock3D" for x in has[::-1]],
        }
        for path in weights.open_stem(folder_of(source, config, "unet"), "unet"):
            if path.startswith(lacks):
                made.left_out[f"unet: {path}"] = _CAMERAS
    if (sizes := config.vae) is not None:
        made.files[f"vae/{stem}"] = {"": _tensors(source, "vae", sizes, "diffusers")}
        levels = len(sizes.widths)
        made.texts["vae/config.json"] = {
            "_class_name": "AutoencoderKL",
            "block_out_channels": sizes.widths,
            "layers_per_block": sizes.layers,
            "latent_channels": sizes.latent_channels,
            "norm_num_groups": sizes.groups,
            "scaling_factor": sizes.scale_factor,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }
    if (sizes := config.text_encoder) is not None:
        tensors = _tensors(source, "text_encoder", sizes, "transformers")
        # As published files have it; every version of transformers reads that.
        named = {f"{clip.PREFIX}{name}": x for name, x in tensors.items()}
        made.files["text_encoder/model.safetensors"] = {"": named}
        made.texts["text_encoder/config.json"] = {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": sizes.vocab,
            "max_position_embeddings": sizes.length,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.mlp_ratio * sizes.width,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers - sizes.skip_last,
            "hidden_act": "gelu",
        }
    if (sizes := config.image_encoder) is not None:
        tensors = _tensors(source, "image_encoder", sizes, "transformers")
        made.files["image_encoder/model.safetensors"] = {"": tensors}
        made.texts["image_encoder/config.json"] = {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "image_size": sizes.size,
            "patch_size": sizes.patch,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.mlp_ratio * sizes.width,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "projection_dim": sizes.features,
            "hidden_act": "gelu",
        }
        # transformers' defaults are the colours that CLIP was trained on.
        made.texts["feature_extractor/preprocessor_config.json"] = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": sizes.size},
            "crop_size": {"height": sizes.size, "width": sizes.size},
        }
    made.texts["scheduler/scheduler_config.json"] = _scheduler(config)
    photos = config.unet is not None and config.unet.image is not None
    components = [
        ("scheduler", "diffusers", "DDIMScheduler"),
        ("unet", "diffusers", _UNETS[photos]),
        ("vae", "diffusers", "AutoencoderKL"),
        ("text_encoder", "transformers", "CLIPTextModel"),
        ("tokenizer", "transformers", "CLIPTokenizer"),
    ]
    if photos:
        components += [
            ("image_encoder", "transformers", "CLIPVisionModelWithProjection"),
            ("feature_extractor", "transformers", "CLIPImageProcessor"),
        ]
    made.texts["model_index.json"] = {
        "_class_name": "I2VGenXLPipeline" if photos else "TextToVideoSDPipeline",
        **{name: (library, kind) for name, library, kind in components},
    }
    if config.reconstructor is not None:
        made.left_out["reconstructor"] = _NO_PLACE
    if (source / f"{LPIPS_PART}.safetensors").is_file():
        made.left_out[LPIPS_PART] = _NO_PLACE
    return made


def _check_photo_unet(sizes: UNetConfig) -> None:
    assert sizes.image is not None
    if (sizes.image.tokens, sizes.fps_condition) != (4, True):
        raise InputError(
            f"unet: it has {sizes.image.tokens} tokens of a photo and fps_condition "
            f"{sizes.fps_condition}; diffusers' I2VGenXLUNet has 4 and True"
        )
    if sizes.image.embedding_dim != sizes.context_dim:
        raise InputError(
            f"unet: photos' vectors are {sizes.image.embedding_dim} wide; diffusers' "
            f"I2VGenXLUNet takes them as wide as texts, {sizes.context_dim}"
        )


def _multiply(
    tensors: dict[str, Tensor], name: str, sizes: UNetConfig, gain: float
) -> None:
    """Let a first convolution make up for another gain of the local features."""
    assert sizes.image is not None
    before, times = tensors[name], sizes.image.local_gain / gain

    def read() -> np.ndarray:
        x = np.array(before.read())
        x[:, sizes.in_channels :] *= x.dtype.type(times)
        return x

    tensors[name] = before._replace(read=read)


def _scheduler(config: ModelConfig) -> dict[str, Any]:
    """Settings with which diffusers' DDIM takes the original's steps."""
    betas = {
        "linear_sd": {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        "cosine_zero_snr": {
            "beta_schedule": "squaredcos_cap_v2",
            "rescale_betas_zero_snr": True,
        },
    }
    kinds = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
    return {
        "_class_name": "DDIMScheduler",
        **betas[config.schedule],
        "prediction_type": kinds[config.prediction],
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }


def _tensors(source: Path, part: str, sizes: Any, layout: str) -> dict[str, Tensor]:
    """The tensors of a part by foreign names, not read yet."""
    module = abstract(lambda rngs: BUILDERS[part](sizes, rngs=rngs))
    kind = next(k for k in recognise.KINDS if (k.part, k.layout) == (part, layout))
    table = recognise.table(kind, module)
    ours = weights.open_stem(folder_of(source, read_config(source), part), part)
    shapes = mapping.shapes(module)
    blank = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    mapping.check({k: np.broadcast_to(0, x.shape) for k, x in ours.items()}, shapes)
    out = {}
    for entry in table:
        for name, x in entry.save(blank[entry.ours]).items():
            read = _reader(entry, name, ours[entry.ours])
            out[name] = Tensor(x.shape, ours[entry.ours].dtype, read)
    return out


def _reader(entry: mapping.Entry, name: str, tensor: Tensor):
    return lambda: entry.save(tensor.read())[name]
