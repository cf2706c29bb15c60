"""Does a run learn the same from every layout as from the set in memory?

python benchmarks/train_from_source.py [--steps 200] [--folder FOLDER]

The embedded model goes on training, from views of 32 pixels, 4 of an object: the same
objects in the same order, with the same noise, from the synthetic set in memory, from
folders of every layout, and from shards. Two more runs from a folder, in another order
and with other noise, show how much that matters. Latents are the encoder's means: the
set in memory has no others. Printed are mean losses over the first and last 50 steps.
"""

import argparse
import csv
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from videomv_jax import presets
from videomv_jax.data import encode, synthetic
from videomv_jax.data.orbit_folder import write_orbit_folder
from videomv_jax.data.sources import SourceSpec, open_source
from videomv_jax.data.tokenizer import load_tokenizer
from videomv_jax.data.view_folder import write_view_folder
from videomv_jax.model_folder import PARTS, load_model, save_model
from videomv_jax.pipeline import find_model
from videomv_jax.training import stages
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.loop import train

OBJECTS = 64
CAMERAS = dataclasses.replace(presets.TINY.cameras, views=4, size=32)
RUNS = {
    "memory": ("", 0),
    "orbits": ("orbits", 0),
    "views": ("views", 0),
    "nerf": ("nerf", 0),
    "shards": ("shards", 0),
    "orbits, seed 1": ("orbits", 1),
    "orbits, seed 2": ("orbits", 2),
}


def write(folder: Path) -> None:
    """The run's objects in every layout."""
    cameras = CAMERAS.orbit()
    opengl = np.asarray(cameras.camera_to_world) @ np.diag([1, -1, -1, 1])
    for number, one in enumerate(synthetic.sample_descriptions(OBJECTS, 0, "train")):
        scene = synthetic.stack_scenes([synthetic.build_scene(one)])
        rgb, alpha = (
            np.asarray(x)[0] for x in synthetic.render_orbit(scene, cameras, 0.0)
        )
        name = f"{number:06d}"
        write_orbit_folder(
            folder / "orbits",
            f"a/{name}",
            rgb,
            alpha,
            cameras,
            one.text,
            background=0.0,
        )
        source = open_source(SourceSpec(str(folder / "orbits")), CAMERAS.views)
        views = source[number].views
        write_view_folder(folder / "views" / name, views, cameras, one.text)
        nerf = folder / "nerf" / name
        write_view_folder(nerf, views, cameras, one.text)
        (nerf / "cameras.json").unlink()
        frames = [
            {"file_path": f"views/{k:02d}", "transform_matrix": opengl[k].tolist()}
            for k in range(CAMERAS.views)
        ]
        fields = {"camera_angle_x": float(np.deg2rad(CAMERAS.fov)), "frames": frames}
        (nerf / "transforms.json").write_text(json.dumps(fields))


def write_start(folder: Path) -> None:
    """The embedded model; the variance of its latents is next to nothing."""
    loaded = load_model(find_model("tiny"))
    assert loaded.vae is not None
    last, latent = loaded.vae.quant, loaded.config.vae.latent_channels  # type: ignore[union-attr]
    assert last.bias is not None
    last.kernel[...] = last.kernel[...].at[..., latent:].set(0)
    last.bias[...] = last.bias[...].at[latent:].set(-30)
    networks = {part: getattr(loaded, part) for part in PARTS}
    networks = {name: x for name, x in networks.items() if isinstance(x, nnx.Module)}
    save_model(folder, loaded.config, networks, loaded.tokenizer_dir, dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", help="where to; a temporary one by default")
    options = parser.parse_args()
    stages.PRESETS = {"tiny": dataclasses.replace(presets.TINY, cameras=CAMERAS)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        # Runs of one layout share their programs.
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
        start = folder / "start"
        if not start.is_dir():
            write(folder)
            write_start(start)
        loaded = load_model(start)
        assert loaded.vae is not None and loaded.tokenizer_dir is not None
        encoders = encode.Encoders(
            loaded.vae,
            loaded.text_encoder,
            load_tokenizer(loaded.tokenizer_dir),
            CAMERAS.size,
            CAMERAS.background,
            "",
        )
        source = open_source(SourceSpec(str(folder / "orbits")), CAMERAS.views)
        shards = str(folder / "shards")
        encode.encode(source, shards, encoders, where="orbits", views=CAMERAS.views)
        for name, (layout, seed) in RUNS.items():
            config = TrainConfig(
                stage="diffusion",
                init_from=str(start),
                out=str(folder / "runs" / name),
                source=str(folder / layout) if layout else "",
                seed=seed,
                steps=options.steps,
                batch_size=4,
                objects=OBJECTS,
                learning_rate=3e-4,
                warmup_steps=5,
                log_every=1,
                save_every=options.steps,
                sample_every=0,
            )
            began = time.perf_counter()
            train(stages.make_task(config), config, Console(quiet=True))
            with open(f"{config.out}/metrics.csv", newline="") as file:
                rows = [float(row["loss"]) for row in csv.DictReader(file)]
            print(
                f"{name:14} first 50: {np.mean(rows[:50]):.4f}  last 50: "
                f"{np.mean(rows[-50:]):.4f}  {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    print({"device": jax.devices()[0].device_kind, "jax": jax.__version__})


if __name__ == "__main__":
    main()
