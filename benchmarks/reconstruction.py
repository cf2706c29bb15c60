"""How well the embedded reconstructor does on clean views of held-out objects.

python benchmarks/reconstruction.py [--count 8] [--sheet sheet.jpg] [--out table.json]

Four true views in; PSNR of what the Gaussians look like from cameras half-way between
all views. The sheet shows truth (left) and renders (right) from half-way between those
four.
"""

import argparse
import json

import jax
import numpy as np
from PIL import Image

from videomv_jax.evaluation.held_out import cameras_between, held_out
from videomv_jax.evaluation.metrics import psnr
from videomv_jax.media import to_uint8
from videomv_jax.pipeline import VideoMV
from videomv_jax.splat.renderer import render


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--sheet", help="JPEG to write")
    parser.add_argument("--out", help="JSON file for the table")
    options = parser.parse_args()
    model = VideoMV.from_pretrained(options.model)
    config = model.config
    data = held_out(model, options.count, seed=0)
    seen, between = np.asarray(config.sampling.views_3d), cameras_between(model)
    grey = config.cameras.background

    @jax.jit
    def turned(gaussians):
        return render(gaussians, between, background=grey).rgb.clip(0, 1)

    shown = seen + config.cameras.views // len(seen) // 2
    rows, pictures = {}, []
    for caption, views, truth in zip(
        data.captions, data.views, data.between, strict=True
    ):
        gaussians = model.reconstruct(views[None, seen], config.cameras.orbit()[seen])
        renders = turned(gaussians)[0]
        rows[caption] = float(psnr(renders, truth).mean())
        print(f"{rows[caption]:6.2f} dB  {caption}")
        pictures.append(np.concatenate([*truth[shown], *np.asarray(renders)[shown]], 1))
    mean = float(np.mean(list(rows.values())))
    print(f"{mean:6.2f} dB  mean")
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    print(about)
    if options.sheet:
        sheet = to_uint8(np.concatenate(pictures))
        Image.fromarray(sheet).save(options.sheet, quality=85)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(about | {"mean": mean, "psnr": rows}, file, indent=2)


if __name__ == "__main__":
    main()
