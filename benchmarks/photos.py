"""What a model makes of pictures that no renderer of this repository made.

python benchmarks/photos.py --out photos --sheet photos.jpg [--held-out 8] [tiny_image]

Draws six things with Pillow (flat colours, gradients, shading by hand; two of them on
a background that is not transparent), gives each to the model as a photo, and puts in
a row what the network saw, then some of the generated views, and renders of the
Gaussians below. With `--held-out` the rows are objects of the synthetic set that were
never trained on: the truth, the views generated from its first one, and renders of the
Gaussians from cameras half-way to the next view.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from videomv_jax.evaluation import held_out
from videomv_jax.evaluation.metrics import psnr
from videomv_jax.pipeline import VideoMV
from videomv_jax.splat.renderer import render

SIDE = 768
SHOWN = (0, 3, 6, 9, 12, 15, 18, 21)


def _canvas(background=(0, 0, 0, 0)) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (SIDE, SIDE), background)
    return image, ImageDraw.Draw(image)


def mug() -> Image.Image:
    """A white mug with a red band: a side view with a gradient for roundness."""
    image, draw = _canvas()
    draw.ellipse((500, 280, 680, 520), outline=(200, 200, 205, 255), width=34)
    for x in range(180, 580):
        light = int(255 - 90 * abs((x - 330) / 250) ** 1.5)
        draw.line((x, 200, x, 600), fill=(light, light, light, 255))
        band = int(light * 0.85)
        draw.line((x, 360, x, 450), fill=(band, band // 5, band // 5, 255))
    draw.ellipse((180, 160, 580, 240), fill=(150, 150, 155, 255))
    draw.pieslice((180, 560, 580, 640), 0, 180, fill=(215, 215, 215, 255))
    return image


def house() -> Image.Image:
    """A clip-art house in two-point perspective, flat colours."""
    image, draw = _canvas()
    draw.polygon([(160, 360), (430, 420), (430, 660), (160, 580)], (235, 205, 120))
    draw.polygon([(430, 420), (640, 350), (640, 570), (430, 660)], (205, 170, 90))
    draw.polygon([(130, 365), (290, 190), (450, 420)], (235, 205, 120))
    draw.polygon([(290, 180), (530, 150), (670, 345), (440, 425)], (170, 50, 45))
    draw.polygon([(250, 480), (330, 497), (330, 630), (250, 606)], (90, 55, 35))
    draw.polygon([(490, 470), (570, 445), (570, 520), (490, 550)], (130, 190, 230))
    return image


def car() -> Image.Image:
    """A toy car from the side."""
    image, draw = _canvas()
    draw.rounded_rectangle((110, 370, 660, 520), 50, fill=(40, 90, 200, 255))
    draw.polygon([(230, 380), (300, 260), (500, 260), (580, 380)], (40, 90, 200))
    draw.polygon([(262, 370), (312, 285), (388, 285), (388, 370)], (200, 225, 240))
    draw.polygon([(408, 370), (408, 285), (488, 285), (542, 370)], (200, 225, 240))
    for x in (230, 540):
        draw.ellipse((x - 70, 450, x + 70, 590), fill=(30, 30, 30, 255))
        draw.ellipse((x - 30, 490, x + 30, 550), fill=(190, 190, 190, 255))
    return image


def tree() -> Image.Image:
    """A painted tree: a trunk and blots of green, blurred a little."""
    image, draw = _canvas()
    draw.polygon([(350, 400), (420, 400), (450, 700), (320, 700)], (110, 70, 40))
    rng = np.random.default_rng(0)
    for _ in range(70):
        angle, reach = rng.uniform(0, 2 * np.pi), 170 * np.sqrt(rng.uniform())
        x, y = 385 + reach * np.cos(angle), 270 + 0.9 * reach * np.sin(angle)
        green = int(rng.integers(110, 190))
        draw.ellipse((x - 55, y - 55, x + 55, y + 55), fill=(40, green, 50, 255))
    return image.filter(ImageFilter.GaussianBlur(3))


def mushroom() -> Image.Image:
    """A mushroom with a dotted hat on a plain sky-blue wall: nothing is transparent."""
    image, draw = _canvas((170, 205, 225, 255))
    draw.rounded_rectangle((310, 380, 460, 660), 50, fill=(245, 235, 215, 255))
    draw.pieslice((150, 170, 620, 620), 180, 360, fill=(205, 40, 35, 255))
    for x, y, r in ((260, 330, 34), (390, 260, 44), (510, 340, 30), (370, 365, 22)):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 250, 250, 255))
    return image


def ball() -> Image.Image:
    """A ball with a checked pattern, ray-traced by numpy, on a noisy wooden floor."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 2 - 1
    wood = (
        0.45
        + 0.06 * np.sin(40 * x + 3 * np.sin(4 * y))
        + 0.02 * rng.normal(size=x.shape)
    )
    floor = wood[..., None] * np.array([1.2, 0.85, 0.55])
    inside = x**2 + y**2 < 0.55**2
    z = np.sqrt(np.maximum(0.55**2 - x**2 - y**2, 0)) / 0.55
    turn, height = np.arctan2(x / 0.55, z), y / 0.55
    dark = (np.floor(turn * 8 / np.pi) + np.floor(height * 4)) % 2
    paint = np.where(dark[..., None] > 0, [0.15, 0.3, 0.75], [0.95, 0.85, 0.2])
    light = np.clip(0.35 + 0.7 * (-0.4 * x / 0.55 - 0.6 * height + 0.7 * z), 0.2, 1.15)
    values = np.where(inside[..., None], paint * light[..., None], floor)
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8)).convert("RGBA")


DRAWN: dict[str, Callable[[], Image.Image]] = {
    f.__name__: f for f in (mug, house, car, tree, mushroom, ball)
}


def foreign_rows(
    model: VideoMV, folder: Path, seed: int, **sampling: Any
) -> list[np.ndarray]:
    """Per drawn thing what the network saw, views, and renders of the Gaussians."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, draw in DRAWN.items():
        path = folder / f"{name}.png"
        draw().save(path)
        seen, how = model.prepare(path)
        made = model.generate(images=[seen], seed=seed, **sampling)
        print(f"{name}: cut out by {how}", flush=True)
        rows.append(np.concatenate([seen[None], made.views[0, list(SHOWN)]]))
        if made.gaussians is not None:
            films, _ = model.turntable(made.gaussians, frames=len(SHOWN))
            rows.append(np.concatenate([np.ones_like(seen)[None], films[0]]))
    return rows


def held_out_rows(
    model: VideoMV, count: int, seed: int, **sampling: Any
) -> list[np.ndarray]:
    """Per held-out object the truth, the generated views and the Gaussians' renders."""
    data, rows = held_out.held_out(model, count, seed), []
    some = list(SHOWN)
    for number, truth in enumerate(data.views):
        made = model.generate(images=[truth[0]], seed=seed + number, **sampling)
        rows += [truth[some], made.views[0, some]]
        told = f"views {psnr(jnp.asarray(made.views[0, 1:]), truth[1:]).mean():.1f} dB"
        if made.gaussians is not None:
            background = model.config.cameras.background
            cameras = held_out.cameras_between(model)
            renders = render(made.gaussians, cameras, background=background).rgb[0]
            rows.append(np.asarray(renders)[some])
            between = psnr(renders.clip(0, 1), data.between[number]).mean()
            told += f", Gaussians between them {between:.1f} dB"
        print(f"{data.captions[number]}: {told}", flush=True)
    return rows


def main() -> None:
    """Write the pictures and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny_image")
    parser.add_argument("--out", type=Path, default=Path("photos"))
    parser.add_argument("--sheet", type=Path, default=Path("photos.jpg"))
    parser.add_argument("--held-out", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--no-3d", action="store_true")
    options = parser.parse_args()
    model = VideoMV.from_pretrained(options.model)
    print(
        f"{model.config.name} on {jax.devices()[0].device_kind}, JAX {jax.__version__}"
    )
    sampling = {"steps": options.steps, "steps_3d": () if options.no_3d else None}
    if options.held_out:
        rows = held_out_rows(model, options.held_out, options.seed, **sampling)
    else:
        rows = foreign_rows(model, options.out, options.seed, **sampling)
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows])
    pixels = (sheet.clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(options.sheet, quality=88)
    print(options.sheet)


if __name__ == "__main__":
    main()
