"""A photo of anything to what the networks see: one object, centred, on a background.

Any file Pillow reads: turned as its EXIF says, alpha kept, colours converted.
"""

import dataclasses
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from videomv_jax.types import InputError

# Larger photos are refused before they are decoded; Pillow itself refuses 179 million.
MAX_PIXELS = 150_000_000
# Larger ones are made smaller: no network sees more, and matting takes its time.
_WORKING_SIDE = 1024
# A pixel belongs to the object from here on.
_VISIBLE = 16
_MATTING = "u2net"

Cutter = Literal["alpha", "rembg", "grabcut"]


@dataclasses.dataclass(frozen=True)
class CutOut:
    """An object free of its background.

    Attributes:
        image: RGBA, 8 bits.
        how: what told the object from its background.
    """

    image: Image.Image
    how: Cutter


def read(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo.

    Args:
        path: of the file.

    Returns:
        An upright RGB or, where the file has transparency, RGBA image of 8 bits, at
        most 1024 pixels long.

    Raises:
        InputError: no such file, not an image, damaged, or of more than
            150 megapixels.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"image: no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise InputError(f"image: {str(path)!r} is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns from half of what it refuses; our own limit decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(
                    f"image: {str(path)!r} has {width} x {height} pixels; want at most "
                    f"{MAX_PIXELS // 10**6} million"
                )
            image.draft("RGB", (_WORKING_SIDE, _WORKING_SIDE))  # JPEG: decode less
            return _plain(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise InputError(f"image: {str(path)!r} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"image: {str(path)!r} is not an image") from error
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"image: {str(path)!r} is damaged: {error}") from error


def cut_out(image: Image.Image) -> CutOut:
    """Tell the object from its background.

    By transparency where the image has some; else by the matting network of `rembg`
    where that is installed with its weights; else by GrabCut, which takes what is at
    the border for background and warns that it may be wrong.

    Args:
        image: RGB or RGBA, from `read`.

    Raises:
        InputError: nothing is left of the image, or neither rembg nor OpenCV is
            installed.
    """
    if image.mode == "RGBA" and _alpha(image).min() < 255 - _VISIBLE:
        found = CutOut(image, "alpha")
    elif _has_rembg():
        found = CutOut(_rembg(image.convert("RGB")), "rembg")
    else:
        found = CutOut(_grabcut(image.convert("RGB")), "grabcut")
    if _alpha(found.image).max() < _VISIBLE:
        raise InputError(f"image: nothing is visible in it (told by {found.how})")
    return found


def frame(
    image: Image.Image, size: int, *, background: float = 1.0, fill: float = 200 / 256
) -> Float[np.ndarray, "h w 3"]:
    """Centre an object as in training.

    Args:
        image: RGBA.
        size: height and width of the result.
        background: grey behind the object, 0 to 1.
        fill: longest side of the object over `size`; the original's is 200 / 256.

    Returns:
        Values in [0, 1].

    Raises:
        InputError: nothing is visible, or a number is out of range.
    """
    for name, value in (("background", background), ("fill", fill)):
        if not 0 <= value <= 1 or (name == "fill" and value == 0):
            raise InputError(f"{name}: {value}; want a number from 0 to 1")
    seen = Image.fromarray(_alpha(image) >= _VISIBLE).getbbox()
    if seen is None:
        raise InputError("image: nothing is visible in it")
    # Colours of transparent pixels must not bleed into the edges: premultiplied.
    image = image.crop(seen).convert("RGBa")
    scale = fill * size / max(image.size)
    width, height = (max(round(scale * side), 1) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = Image.new("RGBa", (size, size))
    canvas.paste(image, ((size - width) // 2, (size - height) // 2))
    values = np.asarray(canvas, np.float32) / 255
    rgb = values[..., :3] + (1 - values[..., 3:]) * np.float32(background)
    return rgb.clip(0, 1)


def _alpha(image: Image.Image) -> np.ndarray:
    return np.asarray(image.getchannel("A"))


def _plain(image: Image.Image) -> Image.Image:
    """8-bit RGB or RGBA of any mode, at most `_WORKING_SIDE` long."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow would clip these to 255.
        values = np.asarray(image, np.float64)
        top = 65535 if values.max() > 255 else 255
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA")
    alpha = transparent or image.mode in ("RGBA", "RGBa")
    image = image.convert("RGBA" if alpha else "RGB")
    if max(image.size) > _WORKING_SIDE:
        mode = image.mode
        image = image.convert("RGBa") if mode == "RGBA" else image
        image.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BOX)
        image = image.convert(mode)
    return image


def _has_rembg() -> bool:
    """Whether rembg is here with its weights, so that it will not download any."""
    home = Path(os.environ.get("U2NET_HOME", Path.home() / ".u2net"))
    weights = home / f"{_MATTING}.onnx"
    return importlib.util.find_spec("rembg") is not None and weights.is_file()


def _rembg(image: Image.Image) -> Image.Image:
    import rembg  # pyright: ignore[reportMissingImports]

    return rembg.remove(image, session=rembg.new_session(_MATTING)).convert("RGBA")


def _grabcut(image: Image.Image) -> Image.Image:
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "image: it has no transparency, and nothing is installed that tells the "
            "object from its background; install the extra 'photo' (GrabCut) or "
            "'matting' (a network), or give a PNG with a transparent background"
        ) from error
    warnings.warn(
        "the object was told from its background by GrabCut, which may be wrong: look "
        "at it, or give a PNG with a transparent background",
        stacklevel=2,
    )
    values = np.asarray(image)
    height, width = values.shape[:2]
    # What lies in the border is background; inside, GrabCut decides.
    margin = max(round(0.03 * min(height, width)), 1)
    if min(height, width) <= 2 * margin:
        raise InputError(f"image: {width} x {height} pixels are too few to cut out")
    mask = np.zeros((height, width), np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    inside = (margin, margin, width - 2 * margin, height - 2 * margin)
    cv2.setRNGSeed(0)
    cv2.grabCut(values, mask, inside, *models, 5, cv2.GC_INIT_WITH_RECT)
    alpha = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8) * 255
    return Image.fromarray(np.dstack([values, alpha]))
