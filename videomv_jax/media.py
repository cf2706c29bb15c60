"""Pictures and films on disk: png, gif, mp4 and the contact sheet.

Images come as float arrays in [0, 1] (values outside are clipped) or as uint8.
"""

import os
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videomv_jax.types import InputError


def to_uint8(images: Any) -> np.ndarray:
    """Images as uint8, rounded; uint8 passes through."""
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def write_png(path: str | os.PathLike[str], image: Any) -> None:
    """Write one image `[h, w, 3]`."""
    Image.fromarray(to_uint8(image)).save(path)


def write_gif(path: str | os.PathLike[str], frames: Any, *, fps: float) -> None:
    """Write frames `[f, h, w, 3]` as an endless gif with one palette for all."""
    images = [Image.fromarray(frame) for frame in _frames(frames)]
    strip = Image.fromarray(np.concatenate([np.asarray(i) for i in images], 1))
    palette = strip.quantize(256)
    indexed = [
        image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images
    ]
    indexed[0].save(
        path,
        save_all=True,
        append_images=indexed[1:],
        duration=round(1000 / fps),
        loop=0,
    )


def write_mp4(path: str | os.PathLike[str], frames: Any, *, fps: float) -> None:
    """Write frames `[f, h, w, 3]` as H.264 in yuv420p, which every player opens.

    Odd sizes gain one repeated row or column, as the format asks for even ones.
    """
    import av  # 40 MB of codecs that only films need

    frames = _frames(frames)
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    with av.open(os.fspath(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000)
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "17", "preset": "medium"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def contact_sheet(
    images: Any, *, columns: int, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Lay images out in rows.

    Args:
        images: `[n, h, w, 3]`.
        columns: images in a row; the last row may be shorter.
        captions: a line of text under each image, wrapped to its width.

    Returns:
        The sheet `[H, W, 3]`, uint8, white where there is no image.
    """
    images = _frames(images)
    count, height, width, _ = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    font = ImageFont.load_default(size=max(10, width // 12))
    line = round(font.getbbox("Ag")[3] * 1.2)
    letters = max(1, int(width / font.getlength("n")))
    texts = [textwrap.wrap(text, letters) for text in captions or []]
    footer = 4 + line * max(map(len, texts)) if texts else 0
    sheet = Image.new("RGB", (columns * width, rows * (height + footer)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x, y = index % columns * width, index // columns * (height + footer)
        sheet.paste(Image.fromarray(image), (x, y))
        if texts:
            text = "\n".join(texts[index])
            draw.multiline_text((x + 2, y + height), text, "black", font, spacing=2)
    return np.asarray(sheet)


def _frames(images: Any) -> np.ndarray:
    frames = to_uint8(images)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise InputError(f"images have shape {frames.shape}, wanted [n, h, w, 3]")
    return frames
