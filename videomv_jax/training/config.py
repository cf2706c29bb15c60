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

from videomv_jax.types import InputError

Stage = Literal["autoencoder", "diffusion", "reconstruction"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        stage: which networks train: the VAE; the UNet (with the text encoder where
            `train_text`); the reconstructor.
        model: preset of every network.
        init_from: model folder that gives frozen networks and initial weights.
        out: folder of the run: checkpoints, metrics, samples, exported model.
        steps: updates in all; the learning rate ends at 0 there.
        stop_after_minutes: save and stop this long after the program started;
            rerunning goes on. 0: never.
        batch_size: objects per step over all processes.
        objects: how many different objects the run draws from.
        seed: of weights, noise and data order.
        compute_dtype: of the networks; parameters stay float32.
        learning_rate, warmup_steps, weight_decay, beta2, clip_norm: AdamW.
        ema_decay: of the exported weights.
        data, fsdp, tensor, view: mesh sizes, one may be -1.
        log_every, sample_every, save_every, keep: in steps; checkpoints kept.
        views: views per object and step that the autoencoder sees.
        kl_weight: of the autoencoder's mean KL divergence per latent value.
        train_text: train the text encoder along with the UNet.
        condition_dropout: share of captions replaced by the unconditional prompt.
        offset_noise: standard deviation of the noise shared by a channel and view.
        supervised_views: rendered views beside the 4 inputs (reconstruction).
        even_inputs: share of objects whose 4 inputs are evenly spaced, not random.
        corrupted_inputs: share of objects whose 4 inputs are the UNet's x0 of noised
            latents, what the reconstructor meets while sampling.
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
    objects: int = 32768
    seed: int = 0
    compute_dtype: str = "float32"
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    view: int = 1
    log_every: int = 50
    sample_every: int = 1000
    save_every: int = 1000
    keep: int = 2
    views: int = 4
    kl_weight: float = 1e-4
    train_text: bool = True
    condition_dropout: float = 0.1
    offset_noise: float = 0.0
    supervised_views: int = 4
    even_inputs: float = 0.5
    corrupted_inputs: float = 0.0
    lpips: str = ""
    lpips_weight: float = 1.0


def default_config(stage: Stage) -> ConfigDict:
    """The fields of `TrainConfig` with their defaults, open to changes of value.

    A name that does not exist raises AttributeError with the closest one.
    """
    return ConfigDict(dataclasses.asdict(TrainConfig(stage=stage)))


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
    for name in ("steps", "batch_size", "objects", "log_every", "views"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: {getattr(config, name)}; want at least 1")
    for name in ("condition_dropout", "even_inputs", "corrupted_inputs"):
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
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise InputError(
            f"set: {name}={text!r}; want a {getattr(wanted, '__name__', wanted)}"
        )
    return value
