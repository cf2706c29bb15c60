"""Meshes to orbits: everything but Blender itself, for which a program stands in.

benchmarks/mesh_views.py checks the real one's cameras.
"""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from videomv_jax.cli.data import data
from videomv_jax.data.meshes import (
    RenderSettings,
    cameras_of,
    find_meshes,
    render_meshes,
    words,
)
from videomv_jax.data.orbit_folder import OrbitFolderSource
from videomv_jax.splat.cameras import orbit
from videomv_jax.types import InputError

SETTINGS = RenderSettings(size=16, orbit=3, others=2)
# Takes the arguments of a Python with bpy; renders the first bytes of the mesh.
STAND_IN = """#!{python}
import json, sys
from pathlib import Path
if sys.argv[1] == "-c":
    sys.exit({missing})
job = json.loads(Path(sys.argv[3]).read_text())
content = Path(job["model"]).read_text()
if content == "broken":
    print("Info: hello")
    print("no faces in it")
    sys.exit(3)
if content == "crash":
    sys.exit(-11)
Path({log!r}).open("a").write(job["model"] + "\\n")
from PIL import Image
for view in job["views"][: 4 if content == "short" else None]:
    size = (job["size"],) * 2
    Image.new("RGBA", size, (200, 0, 0, 255)).save(view["stem"] + ".png")
    assert len(view["camera_to_world"]) == 4
"""


@pytest.fixture
def blender(tmp_path):
    def make(missing=0):
        path = tmp_path / f"python{missing}"
        log = str(tmp_path / "log")
        path.write_text(
            STAND_IN.format(python=sys.executable, missing=missing, log=log)
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def models(tmp_path):
    root = tmp_path / "models"
    for name, content in (
        ("chairs/old/red_chair-02.glb", "good"),
        ("chairs/old/red_chair-02.mtl", "no mesh"),
        ("blueBoat.obj", "good"),
        ("blueBoat.ply", "good"),
        ("broken.stl", "broken"),
        ("crash.gltf", "crash"),
        ("short.GLB", "short"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_names(models):
    assert list(find_meshes(models)) == [
        "models/blueBoat-obj",
        "models/blueBoat-ply",
        "models/broken",
        "chairs-old/red_chair-02",
        "models/crash",
        "models/short",
    ]
    assert words("red_chair-02") == "red chair" and words("blueBoat") == "blue boat"
    with pytest.raises(InputError, match="not a folder"):
        find_meshes(models / "none")
    (models / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.glb"):
        find_meshes(models / "empty")


def test_render(models, blender, tmp_path):
    out, told = tmp_path / "out", []
    python = blender()

    def render():
        return render_meshes(
            find_meshes(models),
            out,
            SETTINGS,
            captions={"blueBoat-obj": "a boat"},
            python=python,
            processes=2,
            progress=lambda done, total: told.append((done, total)),
        )

    problems = render()
    assert list(problems) == ["models/broken", "models/crash", "models/short"]
    assert problems["models/broken"].endswith("no faces in it")
    assert "00004" in problems["models/short"]
    assert told[-1] == (6, 6)
    source = OrbitFolderSource(out, views=5)
    assert source.names == [
        "chairs-old/red_chair-02",
        "models/blueBoat-obj",
        "models/blueBoat-ply",
    ]
    samples = [source[i] for i in range(3)]
    assert [s.caption for s in samples] == ["red chair", "a boat", "blue boat"]
    assert samples[0].views.shape == (5, 16, 16, 4)
    want = cameras_of("models/blueBoat-obj", SETTINGS)
    found = samples[1].cameras
    np.testing.assert_allclose(found.world_to_camera, want.world_to_camera, atol=1e-5)
    np.testing.assert_allclose(found.intrinsics, want.intrinsics, rtol=1e-5)
    # The same again: only what is missing is tried.
    rendered = (tmp_path / "log").read_text()
    assert render() == problems
    again = (tmp_path / "log").read_text()[len(rendered) :]
    assert again.count("\n") == 1 and "short" in again


def test_cameras():
    cameras = cameras_of("a/b", RenderSettings())
    np.testing.assert_allclose(
        cameras.world_to_camera[:24], orbit(24, size=512).world_to_camera, atol=1e-6
    )
    places = np.asarray(cameras.positions)[24:]
    np.testing.assert_allclose(np.linalg.norm(places, axis=-1), 2, rtol=1e-5)
    heights = np.rad2deg(np.arcsin(places[:, 2] / 2))
    assert (heights > -10.1).all() and (heights < 60.1).all() and heights.std() > 5
    same, other = (
        cameras_of(name, RenderSettings()).world_to_camera for name in ("a/b", "a/c")
    )
    np.testing.assert_array_equal(same, cameras.world_to_camera)
    assert not np.allclose(other[24:], same[24:])


@pytest.mark.parametrize(
    "more, told",
    [
        (["--engine", "cycle"], "did you mean 'cycles'"),
        (["--size", "4"], "8 or more"),
        (["--views", "0", "--others", "0"], "no view"),
        (["--extent", "3"], "extent"),
        (["--python", "/nowhere"], "cannot run"),
        ([], "no bpy"),
    ],
)
def test_bad_input(models, blender, tmp_path, more, told):
    arguments = ["render", str(models), "--out", str(tmp_path / "out")]
    arguments += ["--python", blender(missing=1), *more]
    result = CliRunner().invoke(data, arguments)
    assert isinstance(result.exception, InputError), result.output
    assert told in str(result.exception) and not (tmp_path / "out").exists()


def test_command(models, blender, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps({"red_chair-02": "a chair"}))
    arguments = ["render", str(models), "--out", str(tmp_path / "out")]
    arguments += ["--captions", str(tmp_path / "captions.json"), "--size", "16"]
    result = CliRunner().invoke(data, [*arguments, "--python", blender()])
    assert result.exit_code == 0, result.output
    assert "left out models/broken" in result.output
    # Written whole, 32 views were asked for; "short" wrote fewer.
    assert "3 of 6 objects" in result.output
    caption = tmp_path / "out/chairs-old/red_chair-02/caption.txt"
    assert caption.read_text() == "a chair\n"
