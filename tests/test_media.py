"""What is written can be read back and shows the same pictures."""

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from videomv_jax import media
from videomv_jax.types import InputError


@pytest.fixture
def frames():
    """Five frames of odd size with a square that moves."""
    out = np.full((5, 33, 47, 3), 0.5, np.float32)
    for i, frame in enumerate(out):
        frame[8:24, 6 * i : 6 * i + 16] = (0.9, 0.1, 0.2)
    return out


def test_png(tmp_path, frames):
    media.write_png(tmp_path / "a.png", frames[0])
    read = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(read, media.to_uint8(frames[0]))


def test_gif(tmp_path, frames):
    media.write_gif(tmp_path / "a.gif", frames, fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
        read = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(image)]
        assert image.info["duration"] == 100
    difference = np.abs(np.stack(read).astype(int) - media.to_uint8(frames))
    assert difference.max() <= 2


def test_mp4(tmp_path, frames):
    media.write_mp4(tmp_path / "a.mp4", frames, fps=12)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
        read = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert np.stack(read).shape == (5, 34, 48, 3)
    read = np.stack(read)[:, :33, :47].astype(int)
    assert np.abs(read - media.to_uint8(frames)).mean() < 4


def test_values_outside_the_range_are_clipped():
    image = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_array_equal(media.to_uint8(image), [0, 0, 128, 255, 255])


def test_contact_sheet_places_every_image(frames):
    sheet = media.contact_sheet(frames, columns=3)
    assert sheet.shape == (66, 141, 3)
    expected = media.to_uint8(frames)
    np.testing.assert_array_equal(sheet[33:, 47:94], expected[4])
    np.testing.assert_array_equal(sheet[:33, 94:], expected[2])
    assert (sheet[33:, 94:] == 255).all()


def test_contact_sheet_with_captions(frames):
    sheet = media.contact_sheet(frames, columns=5, captions=["a long caption"] * 5)
    assert sheet.shape[0] > 33 + 20
    assert (sheet[33:] < 128).any()


@pytest.mark.parametrize("write", [media.write_gif, media.write_mp4])
def test_wrong_shape(tmp_path, frames, write):
    with pytest.raises(InputError, match=r"\(33, 47, 3\)"):
        write(tmp_path / "a", frames[0], fps=1)
