"""Does a run learn the same from every layout as from the set in memory?

python benchmarks/train_from_source.py [--steps 200] [--folder FOLDER]

The embedded model goes on training, from views of 32 pixels, 8 of an object: the same
objects in the same order from the synthetic set in memory, from folders of every
layout, and from shards. Printed are mean losses over the first and last 50 steps.
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
from rich.console import Console

from videomv_jax import presets
from videomv_jax.data import encode, synthetic
from videomv_jax.data.orbit_folder import write_orbit_folder
from videomv_jax.data.sources import SourceSpec, open_source
from videomv_jax.data.tokenizer import load_tokenizer
from videomv_jax.data.view_folder import write_view_folder
from videomv_jax.model_folder import load_model
from videomv_jax.pipeline import find_model
from videomv_jax.training import stages
from videomv_jax.training.config import TrainConfig
from videomv_jax.training.loop import train

OBJECTS = 64
CAMERAS = dataclasses.replace(presets.TINY.cameras, views=8, size=32)


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", help="where to; a temporary one by default")
    options = parser.parse_args()
    stages.PRESETS = {"tiny": dataclasses.replace(presets.TINY, cameras=CAMERAS)}
    start = find_model("tiny")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        if not (folder / "orbits").is_dir():
            write(folder)
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
        for name in ("", "orbits", "views", "nerf", "shards"):
            config = TrainConfig(
                stage="diffusion",
                init_from=str(start),
                out=str(folder / "runs" / (name or "memory")),
                source=str(folder / name) if name else "",
                steps=options.steps,
                batch_size=8,
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
                f"{name or 'memory':8} first 50: {np.mean(rows[:50]):.4f}  last 50: "
                f"{np.mean(rows[-50:]):.4f}  {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    print({"device": jax.devices()[0].device_kind, "jax": jax.__version__})


if __name__ == "__main__":
    main()
