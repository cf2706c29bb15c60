"""Photos of every kind to one object, centred."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from videomv_jax.cli.main import app
from videomv_jax.data import photo
from videomv_jax.types import InputError

RED, GREEN = (200, 30, 20), (20, 160, 40)


def blob(size=(60, 40), box=(10, 5, 30, 35), mode="RGBA") -> Image.Image:
    """A red rectangle on nothing."""
    image = Image.new("RGBA", size, (0, 255, 0, 0))
    image.paste((*RED, 255), box)
    return image.convert(mode)


def saved(tmp_path, image, suffix="png", **options):
    path = tmp_path / f"photo.{suffix}"
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "I;16", "RGBA", "LA"])
def test_every_mode_is_read(tmp_path, mode):
    grey = Image.fromarray(np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert("RGB").convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    read = photo.read(saved(tmp_path, image, suffix))
    assert read.mode == ("RGBA" if mode in ("RGBA", "LA") else "RGB")
    wanted = np.asarray(grey if mode == "I;16" else image.convert("L"), float)
    assert np.abs(np.asarray(read.convert("L")) - wanted).max() <= 2


def test_transparent_palettes_keep_their_transparency(tmp_path):
    path = saved(tmp_path, blob().quantize(8), "png")
    assert photo.cut_out(photo.read(path)).how == "alpha"


def test_photos_are_upright(tmp_path):
    image = Image.new("RGB", (20, 10), GREEN)
    image.paste(RED, (0, 0, 5, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top is at the right
    read = photo.read(saved(tmp_path, image, "png", exif=exif))
    assert read.size == (10, 20)
    assert read.getpixel((5, 1)) == RED and read.getpixel((5, 15)) == GREEN


def test_large_photos_are_made_smaller(tmp_path):
    read = photo.read(saved(tmp_path, Image.new("RGB", (3000, 600), RED), "jpg"))
    assert max(read.size) == 1024
    assert read.size[0] / read.size[1] == pytest.approx(5, rel=0.02)


def png_header(width, height):
    """A PNG that claims to be this large and ends there."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def jpeg(size):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is not an image"),
        (jpeg((64, 64))[:900], "is damaged"),
        (png_header(50_000, 50_000), "too large|50000 x 50000 pixels"),
        (png_header(15_000, 11_000), "15000 x 11000 pixels; want at most 150 million"),
    ],
    ids=["empty", "text", "truncated", "bomb", "large"],
)
def test_bad_files_are_named(tmp_path, content, words):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        photo.read(path)
    assert "photo.png" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no file"):
        photo.read(tmp_path / "none.png")


def test_nothing_visible_is_told():
    with pytest.raises(InputError, match="nothing is visible"):
        photo.cut_out(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))


@pytest.mark.parametrize("box", [(10, 5, 30, 35), (0, 0, 50, 4), (50, 30, 60, 40)])
def test_framing_centres_and_scales(box):
    image = photo.frame(blob(box=box), 64, background=0.5, fill=0.75)
    assert image.shape == (64, 64, 3) and image.dtype == np.float32
    inside = np.abs(image - 0.5).max(-1) > 0.02
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - 48) <= 1
    for line in (rows, columns):
        assert abs((line[0] + line[-1]) / 2 - 31.5) <= 1
    aspect = (box[2] - box[0]) / (box[3] - box[1])
    seen = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
    assert seen == pytest.approx(aspect, rel=0.3)
    np.testing.assert_allclose(image[32, 32], np.array(RED) / 255, atol=0.01)


def test_hidden_colours_do_not_bleed():
    """The transparent pixels are bright green; no edge may be."""
    image = photo.frame(blob(size=(600, 400), box=(101, 53, 301, 353)), 64)
    red, green = image[..., 0], image[..., 1]
    assert (green <= red + 0.01).all()


@pytest.mark.parametrize("change", [{"background": 2.0}, {"fill": 0.0}, {"fill": 1.5}])
def test_numbers_out_of_range_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        photo.frame(blob(), 64, **change)


def scenery():
    """A red disc in front of a textured green."""
    rng = np.random.default_rng(0)
    values = np.full((80, 100, 3), GREEN, np.float64) + rng.normal(0, 6, (80, 100, 3))
    y, x = np.mgrid[:80, :100]
    disc = (x - 55) ** 2 + (y - 38) ** 2 < 22**2
    values[disc] = np.array(RED) + rng.normal(0, 6, (disc.sum(), 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)), disc


@pytest.fixture
def no_rembg(monkeypatch, tmp_path):
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "none"))


def test_grabcut_finds_the_object_and_warns(no_rembg):
    image, disc = scenery()
    with pytest.warns(UserWarning, match="GrabCut"):
        found = photo.cut_out(image)
    assert found.how == "grabcut"
    mask = np.asarray(found.image.getchannel("A")) > 127
    assert (mask & disc).sum() / (mask | disc).sum() > 0.95


def test_a_network_is_asked_where_it_is_installed(monkeypatch, tmp_path):
    (tmp_path / "u2net.onnx").write_bytes(b"weights")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    asked = []

    def remove(image, session):
        asked.append(session)
        image.putalpha(128)
        return image

    fake = types.ModuleType("rembg")
    fake.new_session = lambda name: name
    fake.remove = remove
    fake.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "rembg", fake)
    found = photo.cut_out(scenery()[0])
    assert found.how == "rembg" and asked == ["u2net"]
    assert found.image.getchannel("A").getextrema() == (128, 128)


def test_without_any_of_them_it_says_what_to_install(no_rembg, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="install the extra 'photo'"):
        photo.cut_out(scenery()[0])


def test_the_command_writes_what_the_network_sees(tmp_path, no_rembg):
    path = saved(tmp_path, scenery()[0])
    result = CliRunner().invoke(app, ["prepare", str(path), "--size", "64"])
    assert result.exit_code == 0, result.output
    assert "cut out by grabcut" in result.output and "warning: " in result.output
    with Image.open(tmp_path / "photo.prepared.png") as image:
        assert image.size == (64, 64)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert np.abs(np.array(image.getpixel((32, 32))) - RED).max() < 30


def test_the_command_frames_as_a_model_wants(tmp_path, small_image_folder):
    path, out = saved(tmp_path, blob()), tmp_path / "out.png"
    command = ["prepare", str(path), "--out", str(out)]
    command += ["--model", str(small_image_folder)]
    assert CliRunner().invoke(app, command).exit_code == 0
    with Image.open(out) as image:
        assert image.size == (32, 32)
        assert image.getpixel((0, 0)) == (128, 128, 128)
    assert CliRunner().invoke(app, [*command, "--size", "16"]).exit_code == 0
    with Image.open(out) as image:
        assert image.size == (16, 16)


def test_the_command_names_bad_input(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"")
    result = CliRunner().invoke(app, ["prepare", str(path)])
    assert result.exit_code == 2 and "is empty" in result.output
    path = saved(tmp_path, blob())
    out = tmp_path / "none" / "out.png"
    result = CliRunner().invoke(app, ["prepare", str(path), "--out", str(out)])
    assert result.exit_code == 2 and "cannot write" in result.output
