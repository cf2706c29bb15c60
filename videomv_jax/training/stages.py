"""From a config to the task it names."""

import dataclasses

from videomv_jax.data import synthetic
from videomv_jax.data.tokenizer import load_tokenizer, train_tokenizer
from videomv_jax.embedded import find_model
from videomv_jax.model_folder import PARTS, LoadedModel, load_model
from videomv_jax.presets import PRESETS
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.step import Task
from videomv_jax.types import InputError


def make_task(config: TrainConfig) -> Task:
    """Everything a run needs: networks, starting weights, objects.

    Raises:
        InputError: an unknown preset, or `init_from` lacks what the stage needs.
    """
    if config.model not in PRESETS:
        raise InputError.unknown("model", config.model, PRESETS)
    model = PRESETS[config.model]
    if config.stage == "autoencoder":
        from videomv_jax.training.autoencoder import AutoencoderTask

        return AutoencoderTask(config, model)
    if not config.init_from:
        raise InputError(
            f"init_from: empty; the {config.stage} stage starts from the model folder "
            "of the stage before"
        )
    folder = find_model(config.init_from)
    start: LoadedModel = load_model(folder, dtype=config.compute_dtype)
    if start.unet is not None:
        for name in ("schedule", "prediction"):
            theirs, ours = (getattr(m, name) for m in (start.config, model))
            if theirs != ours:
                raise InputError(
                    f"init_from: the UNet of {config.init_from!r} has the {name} "
                    f"{theirs!r}; model {config.model!r} has {ours!r}"
                )
    if start.tokenizer_dir is not None:
        tokenizer = load_tokenizer(start.tokenizer_dir)
    elif config.source:
        raise InputError(f"init_from: {config.init_from!r} has no tokenizer")
    else:
        captions = [d.text for d in synthetic.sample_descriptions(20_000, 0, "train")]
        assert model.text_encoder is not None
        tokenizer = train_tokenizer(captions, model.text_encoder.vocab)
    # Weights that are given decide the sizes, the preset those of the other parts.
    given = {part: getattr(start.config, part) for part in PARTS}
    sizes = {part: size for part, size in given.items() if size is not None}
    if sizes.get("unet") and model.unet and not sizes["unet"].image:
        # A UNet of texts learns to take photos: the other weights are the same.
        more = {n: getattr(model.unet, n) for n in ("image", "fps_condition")}
        sizes["unet"] = dataclasses.replace(sizes["unet"], **more)
    model = dataclasses.replace(model, **({"vae": None} | sizes))
    if config.stage == "diffusion":
        from videomv_jax.training.diffusion import DiffusionTask

        return DiffusionTask.load(config, model, start, tokenizer)
    if config.stage == "joint":
        from videomv_jax.training.joint import JointTask

        return JointTask.load(config, model, start, tokenizer)
    from videomv_jax.training.reconstruction import ReconstructionTask

    return ReconstructionTask(config, model, start, tokenizer)
