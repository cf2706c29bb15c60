"""Photos to views: what the model is told, the command, and bad files."""

import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from videomv_jax import outputs
from videomv_jax.cli.main import app
from videomv_jax.pipeline import VideoMV
from videomv_jax.types import InputError


def draw(path, color=(200, 30, 20, 255)):
    image = Image.new("RGBA", (50, 40))
    ImageDraw.Draw(image).ellipse((5, 5, 30, 35), fill=color)
    image.save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    return draw(tmp_path / "Red ball.png")


@pytest.fixture
def run(small_image_folder, small_image_model, tmp_path, monkeypatch):
    """Run the command in this process on the small model, compiled already."""
    monkeypatch.setattr(VideoMV, "from_pretrained", lambda name: small_image_model)
    monkeypatch.setattr(
        "videomv_jax.cli.environment.use_compilation_cache", lambda notes: None
    )

    def command(*arguments):
        out = ["--model", str(small_image_folder), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, ["generate", *out, *map(str, arguments)])

    return command


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


BAD = {
    "not an image": (b"hello", "is not an image"),
    "0 bytes": (b"", "is empty"),
    "truncated": (None, "is damaged"),
    "50,000 x 50,000": (png_header(50_000, 50_000), "want at most 150 million|large"),
    "transparent": ("transparent", "nothing is visible"),
}


def write_bad(path, kind):
    content, words = BAD[kind]
    if content is None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content == "transparent":
        draw(path, (0, 0, 0, 0))
    else:
        path.write_bytes(content)
    return words


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_each_give_one_message(run, tmp_path, kind):
    path = tmp_path / "bad.png"
    words = write_bad(path, kind)
    result = run("--image", path)
    assert result.exit_code == 2
    assert result.stderr.count("error:") == 1 and len(result.stderr) < 300
    assert re.search(words, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_asked_must_fit(run, small_model, small_image_model, photo, tmp_path):
    for arguments, words in (
        ([], "prompt: got none"),
        (["a ball", "--elevation", 3], "elevation: .*give --image"),
        (["a", "b", "--image", photo], "prompt: got 2"),
        (["--image", photo, "--elevation", 91], "elevation: got 91"),
        (["--image", tmp_path / "none.png"], "no file"),
        (["--image", tmp_path / "out"], "no file"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert re.search(words, result.stderr), result.stderr
    with pytest.raises(InputError, match="images: 'small' takes no photos"):
        small_model.generate("a ball", images=[photo])
    with pytest.raises(InputError, match="elevation: 'small' takes no photos"):
        small_model.generate("a ball", elevation=3.0)
    with pytest.raises(InputError, match="makes views of photos only"):
        small_image_model.generate("a ball")
    with pytest.raises(InputError, match="got 2 for 1 images"):
        small_image_model.generate(["a", "b"], images=[photo])
    with pytest.raises(InputError, match=r"is \(16, 16, 3\)"):
        small_image_model.generate(images=[np.zeros((16, 16, 3))])


def test_what_the_network_is_told(small_image_model, photo, monkeypatch):
    """Photo, prompt and elevation all count; zero vectors without guidance's half."""
    model = small_image_model
    image, how = model.prepare(photo)
    assert how == "alpha" and image.shape == (32, 32, 3)
    made = model.generate("a red ball", images=[photo], elevation=30.0)
    assert made.settings["elevation"] == 30
    height = np.asarray(made.cameras.positions)[:, 2]
    np.testing.assert_allclose(height, 2 * np.sin(np.pi / 6), rtol=1e-5)
    same = model.generate("a red ball", images=[image], elevation=30.0)
    np.testing.assert_array_equal(same.views, made.views)
    for change in (
        {"elevation": None},
        {"images": [image[:, ::-1]]},
        {"prompts": "a green boat"},
    ):
        options = {"prompts": "a red ball", "images": [image], "elevation": 30.0}
        other = model.generate(**(options | change))
        assert np.abs(other.views - made.views).max() > 1e-4, change

    programs = model._programs
    tokens = np.zeros((2, model.config.text_encoder.length), np.int32)
    told, state = programs.start(
        programs.weights,
        tokens,
        np.zeros(1, np.uint32),
        made.cameras,
        image[None],
        mode="guided",
    )
    latent = model._parts["vae"].encode(image[None, None])[0, 0]
    np.testing.assert_allclose(told.image.latent, [latent], atol=1e-4)
    assert np.abs(told.image.embedding[0]).max() > 0
    assert not told.image.embedding[1].any()


def test_a_folder(run, tmp_path, photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw(folder / "a.png")
    draw(folder / "b.png", (20, 90, 200, 255))
    write_bad(folder / "c.png", "truncated")
    (folder / ".hidden").write_text("not looked at")
    result = run("--image", folder, "--seed", 3)
    assert result.exit_code == 2
    assert "1 of 3 files cannot be used: c.png" in result.stderr
    assert "damaged" in result.stderr
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    assert sorted(path.name for path in (out / "a").iterdir()) == [
        "asset.ply",
        "input.png",
        "meta.json",
        "turntable.mp4",
        "views",
        "views.gif",
        "views.mp4",
        "views.png",
    ]
    meta = json.loads((out / "b" / "meta.json").read_text())
    assert (meta["image"], meta["cut_out"]) == ("b.png", "alpha")
    assert meta["seed"] == 3 and meta["config"]["elevation"] == 15

    # Again: what is finished stays as it is, and what was mended is made.
    before = (out / "a" / "meta.json").stat().st_mtime_ns
    draw(folder / "c.png", (20, 160, 40, 255))
    result = run("--image", folder)
    assert result.exit_code == 0, result.output
    assert "2 of 3 are finished already" in result.stderr
    assert (out / "a" / "meta.json").stat().st_mtime_ns == before
    assert (out / "c" / "meta.json").is_file()


def test_names_of_a_folder(tmp_path):
    photos = [tmp_path / name for name in ("a.jpg", "a.png", "B c.png", "b-c.png")]
    folders = outputs.photo_folders("out", photos)
    names = [path.name for path in folders.values()]
    assert names == ["a-jpg", "a-png", "b-c-png", "b-c-png-2"]
