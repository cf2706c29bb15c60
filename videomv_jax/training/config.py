"""What a run is: one flat set of fields, overridden by name.

A file under configs/ returns `default_config(stage)` with some fields changed; the
command line applies `--set name=value`; `freeze` turns the result into a
`TrainConfig`, which is what the code reads.
"""

import ast
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from ml_collections import ConfigDict

from videomv_jax.sharding import STRATEGIES
from videomv_jax.training.learning_rate import cosine
from videomv_jax.training.parts import TRAIN
from videomv_jax.types import InputError

Stage = Literal["autoencoder", "diffusion", "reconstruction", "joint"]
REMAT = ("none", "products", "narrow", "attention", "offload", "block")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        stage: which networks train: the VAE; the UNet (with the text encoder where
            `train_text`, and the image encoder where `train_image`); the
            reconstructor; UNet and reconstructor together.
        model: preset of every network.
        init_from: model folder, or name of an embedded model, that gives frozen
            networks and initial weights.
        out: folder of the run: checkpoints, metrics, samples, exported model.
        steps: updates in all; the learning rate ends at 0 there.
        stop_after_minutes: save and stop this long after the program started;
            rerunning goes on. 0: never.
        batch_size: objects per step over all processes.
        accumulate: parts of a batch that go through the networks one after another;
            their gradients are averaged.
        objects: how many different objects of the synthetic set the run draws from.
        source: real data in place of the synthetic set: a folder in a known layout, of
            shards best, or a .json that lists several, see
            `videomv_jax.data.sources.read_specs`.
        threads: that read the source, per process.
        seed: of weights, noise and data order.
        compute_dtype: of the networks; parameters stay float32.
        remat: what the UNet's backward pass recomputes, see `UNetConfig.remat`; the
            reconstructor's recomputes its layers with any but "none".
        learning_rate, warmup_steps, weight_decay, beta2, clip_norm: AdamW.
        rate_spatial, rate_text: factors on the learning rate of the UNet's layers
            that see one view at a time, and of the text encoder.
        train: which weights train: "all"; "temporal", the UNet's layers over views
            and its camera embedding; "lora", low-rank updates of the UNet's attention.
        lora_rank: of those updates.
        ema_decay: of the moving average that is exported. 0: the weights themselves
            are, and no average is kept.
        spike_factor: an update whose loss exceeds this many times the running mean is
            skipped and counted. 0: none is.
        strategy: how the mesh splits the work, see `sharding.STRATEGIES`.
        data, fsdp, tensor, view: mesh sizes within a slice that differ from the
            strategy's; one may be -1, 0 is as the strategy says.
        dcn_data, dcn_fsdp, dcn_tensor, dcn_view: across slices, likewise.
        log_every, save_every: in steps.
        sample_every: in steps; 0: never.
        keep: the newest checkpoints kept.
        keep_every: checkpoints of multiples of this step are kept beside. 0: none.
        views: views per object and step that the autoencoder sees.
        kl_weight: of the autoencoder's mean KL divergence per latent value.
        train_text: train the text encoder along with the UNet.
        train_image: train the image encoder along with the UNet of a model for photos.
        condition_dropout: share of objects that train the unconditional branch: their
            caption is the unconditional prompt, their photo's vector zero.
        caption_dropout: share of captions replaced by an empty text, so that a photo
            alone will do.
        elevation_jitter: orbits of the synthetic set stand up to this many degrees
            higher or lower than the model's.
        turned: share of objects that are turned around the vertical by any angle, as
            the objects of photos are.
        rolled_views: start the views anywhere on the orbit, while the photo and the
            cameras stay, as the original does in its image-to-views training.
        offset_noise: standard deviation of the noise shared by a channel and view.
        image_batch: clips of one view, without its camera, that a step adds to its
            objects: single images (diffusion). 0: none. They are the pictures of
            `source`, or views of the objects.
        image_weight: their share of the loss.
        supervised_views: rendered views beside the 4 inputs (reconstruction).
        even_inputs: share of objects whose 4 inputs are evenly spaced, not random.
        corrupted_inputs: share of objects whose 4 inputs are the UNet's x0 of noised
            latents, what the reconstructor meets while sampling. In joint training the
            loss of what is made of them flows into the UNet.
        supervised_size: height and width of the views that are compared; 0: those of
            the model's views.
        joint_weight: of the reconstruction's loss beside the denoising loss (joint).
        feedback: share of objects whose renders are encoded, noised less and denoised
            again, as 3D-aware sampling does (joint).
        lpips: file of the perceptual metric's weights, lpips.safetensors as
            `videomv convert` writes it; "": no such term (reconstruction).
        lpips_weight: of that term.
    """

    stage: Stage
    model: str = "tiny"
    init_from: str = ""
    out: str = "runs/run"
    steps: int = 1000
    stop_after_minutes: float = 0.0
    batch_size: int = 64
    accumulate: int = 1
    objects: int = 32768
    source: str = ""
    threads: int = 4
    seed: int = 0
    compute_dtype: str = "float32"
    remat: str = "none"
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip_norm: float = 1.0
    rate_spatial: float = 1.0
    rate_text: float = 1.0
    train: str = "all"
    lora_rank: int = 16
    ema_decay: float = 0.999
    spike_factor: float = 0.0
    strategy: str = "dp"
    data: int = 0
    fsdp: int = 0
    tensor: int = 0
    view: int = 0
    dcn_data: int = 0
    dcn_fsdp: int = 0
    dcn_tensor: int = 0
    dcn_view: int = 0
    log_every: int = 50
    sample_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    keep_every: int = 0
    views: int = 4
    kl_weight: float = 1e-4
    train_text: bool = True
    train_image: bool = True
    condition_dropout: float = 0.1
    caption_dropout: float = 0.0
    elevation_jitter: float = 0.0
    turned: float = 0.0
    rolled_views: bool = False
    offset_noise: float = 0.0
    image_batch: int = 0
    image_weight: float = 0.125
    supervised_views: int = 4
    supervised_size: int = 0
    even_inputs: float = 0.5
    corrupted_inputs: float = 0.0
    joint_weight: float = 1.0
    feedback: float = 0.0
    lpips: str = ""
    lpips_weight: float = 1.0


def default_config(stage: Stage) -> ConfigDict:
    """The fields of `TrainConfig` with their defaults, open to changes of value.

    A name that does not exist raises AttributeError with the closest one.
    """
    return ConfigDict(dataclasses.asdict(TrainConfig(stage=stage)))


def released_config(stage: Stage, model: str = "t2v") -> ConfigDict:
    """The same for a released size on a pod: the original's optimiser and schedule.

    AdamW at 3e-5, warm for 10 steps, then a cosine to 0 at step 1,000,000; the original
    trains in 16 bits with every block recomputed, and averages no weights but the photo
    model's.
    """
    config = default_config(stage)
    config.model = model
    config.train_text = False
    config.steps = 1_000_000
    config.objects = 1024
    config.learning_rate = 3e-5
    config.warmup_steps = 10
    config.beta2 = 0.999
    config.ema_decay = 0.0
    config.compute_dtype = "bfloat16"
    config.remat = "block"
    config.strategy = "fsdp"
    # Samples take the whole model on one device.
    config.sample_every = 0
    return config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Run `get_config()` of a file and apply `name=value` overrides.

    Raises:
        InputError: no such file, no get_config in it, an unknown name (the closest
            is given) or a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config: no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"config: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"config: {str(path)!r} has no get_config()")
    values = module.get_config().to_dict()
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"set: {override!r} is not of the form name=value")
        values[name] = _parse(name, text)
    return freeze(values)


def freeze(values: dict) -> TrainConfig:
    """A checked TrainConfig.

    Raises:
        InputError: an unknown stage, or a number out of its range.
    """
    config = TrainConfig(**values)
    if config.stage not in get_args(Stage):
        raise InputError(f"stage: {config.stage!r}; want one of {get_args(Stage)}")
    for name, known in (("remat", REMAT), ("train", TRAIN), ("strategy", STRATEGIES)):
        if getattr(config, name) not in known:
            raise InputError.unknown(name, getattr(config, name), known)
    at_least_1 = ("steps", "batch_size", "accumulate", "objects", "log_every")
    for name in (*at_least_1, "save_every", "keep", "views", "lora_rank", "threads"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: {getattr(config, name)}; want at least 1")
    for name in ("sample_every", "keep_every", "spike_factor", "image_batch"):
        if getattr(config, name) < 0:
            raise InputError(f"{name}: {getattr(config, name)}; want at least 0")
    if not 0 <= config.ema_decay < 1:
        raise InputError(f"ema_decay: {config.ema_decay}; want 0 to below 1")
    if config.batch_size % config.accumulate:
        raise InputError(
            f"accumulate: {config.accumulate} does not divide batch_size "
            f"{config.batch_size}"
        )
    if config.train != "all" and (config.stage != "diffusion" or not config.init_from):
        raise InputError(
            f"train: {config.train!r} is for the diffusion stage, from the weights "
            "that `init_from` has"
        )
    if config.source and config.stage == "autoencoder":
        raise InputError("source: the autoencoder stage trains on the synthetic set")
    if config.image_batch and config.stage != "diffusion":
        raise InputError("image_batch: is for the diffusion stage")
    if config.turned and config.stage != "diffusion":
        raise InputError("turned: is for the diffusion stage")
    # Refuses a warm-up as long as the run, before the objects are rendered.
    cosine(config.learning_rate, config.warmup_steps, config.steps)
    shares = ("condition_dropout", "caption_dropout", "turned", "even_inputs")
    for name in (*shares, "corrupted_inputs", "feedback", "image_weight"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name}: {getattr(config, name)}; want 0 to 1")
    return config


def _parse(name: str, text: str):
    types = {f.name: f.type for f in dataclasses.fields(TrainConfig)}
    if name not in types:
        raise InputError.unknown("name in --set", name, types)
    wanted = types[name]
    if wanted in (str, Stage):
        return text
    if wanted is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}
        raise InputError(f"set: {name}={text!r}; want {kind[wanted]}")
    return value
