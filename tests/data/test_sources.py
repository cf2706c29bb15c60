"""Every layout gives the same samples, whatever is wrong beside them."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import CAMERAS, COUNT, SIZE, TREES, VIEWS, rgba

from videomv_jax.data.captions import read_captions
from videomv_jax.data.orbit_folder import OrbitFolderSource
from videomv_jax.data.samples import fit, over, read_json
from videomv_jax.data.sources import (
    LAYOUTS,
    SourceSpec,
    open_source,
    read_specs,
    recognise,
)
from videomv_jax.types import InputError

WITH_CAMERAS = ("orbits", "nerf", "views")


@pytest.fixture(params=sorted(TREES))
def tree(request, tmp_path):
    root = tmp_path / "tree"
    return request.param, root, TREES[request.param](root)


def test_every_layout_has_its_tree():
    assert set(TREES) == set(LAYOUTS) - {"shards"}  # whose test is their own


def test_layouts_are_read(tree):
    layout, root, names = tree
    assert recognise(root) == layout
    source = open_source(SourceSpec(str(root)), VIEWS)
    assert source.layout == layout and list(source.names) == names
    assert len(source) == len(names)
    for index, name in enumerate(names):
        sample = source[index]
        assert sample.name == name and not sample.lost
        number = int(name[-1])
        if layout in WITH_CAMERAS:
            np.testing.assert_array_equal(sample.views, rgba(number))
            cameras = sample.cameras
            assert (cameras.height, cameras.width) == (SIZE, SIZE)
            for field in ("world_to_camera", "intrinsics"):
                assert isinstance(getattr(cameras, field), np.ndarray)
                np.testing.assert_allclose(
                    getattr(cameras, field), getattr(CAMERAS, field), atol=1e-4
                )
        else:
            assert sample.cameras is None and len(sample.views) == 1
        if layout != "orbits":
            assert sample.caption == f"a ball {number}"


def test_captions(tmp_path):
    names = TREES["orbits"](tmp_path / "tree")
    path = tmp_path / "tree" / "text_captions_cap3d.json"
    spec = SourceSpec(str(tmp_path / "tree"), captions=str(path))
    source = open_source(spec, VIEWS)
    assert [source[i].caption for i in range(COUNT)] == [f"a ball {n}" for n in names]
    # Cap3D's own file goes by Objaverse's uids.
    with (tmp_path / "cap3d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("uid7", "a ball, blue"), ("uid8", "two")])
    index = {names[1]: "000-023/uid7.glb", "9/99": "000-001/uid9.glb", "9/98": 3}
    (tmp_path / "index.json").write_text(json.dumps(index))
    captions = read_captions(tmp_path / "cap3d.csv", tmp_path / "index.json")
    assert captions == {names[1]: "a ball, blue"}
    spec = SourceSpec(
        str(tmp_path / "tree"),
        captions=str(tmp_path / "cap3d.csv"),
        index=str(tmp_path / "index.json"),
    )
    source = open_source(spec, VIEWS)
    assert [source[i].caption for i in range(COUNT)] == ["", "a ball, blue", ""]
    for content, told in (("[]", "holds a list"), ("{", "damaged"), ('{"a": 1}', "no")):
        path.write_text(content)
        with pytest.raises(InputError, match=told):
            read_captions(path)
    with pytest.raises(InputError, match=r"neither"):
        read_captions(tmp_path / "captions.txt")


def test_chosen_objects_and_views(tmp_path):
    names = TREES["orbits"](tmp_path / "tree")
    (tmp_path / "list.json").write_text(json.dumps(names[::-1][:2]))
    root, objects = str(tmp_path / "tree"), str(tmp_path / "list.json")
    source = open_source(SourceSpec(root, objects=objects), VIEWS)
    assert list(source.names) == names[::-1][:2]
    assert source[0].name == names[-1]
    everything = open_source(SourceSpec(root), None)[0]
    assert len(everything.views) == VIEWS + 2
    # Moved up to the pole, view 2 leaves the band and the next takes its place.
    path = tmp_path / "tree" / names[0] / "campos_512_v4/00002/00002.json"
    fields = json.loads(path.read_text()) | {"origin": [0.1, 0.0, 2.0]}
    path.write_text(json.dumps(fields))
    source = open_source(SourceSpec(root, elevations=(15, 25)), VIEWS)
    np.testing.assert_array_equal(source[0].views, rgba(0)[[0, 1, 3, 0]])
    np.testing.assert_array_equal(source[1].views, rgba(int(names[1][-1])))
    with pytest.raises(InputError, match="elevations"):
        TREES["nerf"](tmp_path / "nerf")
        open_source(SourceSpec(str(tmp_path / "nerf"), elevations=(0, 1)))


def test_damaged_views_are_named_and_left_out(tmp_path):
    names = TREES["orbits"](tmp_path)
    views = tmp_path / names[0] / "campos_512_v4"
    (views / "00001/00001.png").write_bytes(b"\x89PNG")
    fields = json.loads((views / "00003/00003.json").read_text())
    # y up: what a loader sees that takes the axes for Unity's.
    flipped = fields | {"y": [-v for v in fields["y"]]}
    (views / "00003/00003.json").write_text(json.dumps(flipped))
    some = OrbitFolderSource(tmp_path, views=VIEWS, least=2)[0]
    assert list(some.lost) == ["00001", "00003"]
    assert "damaged" in some.lost["00001"] and "left-handed" in some.lost["00003"]
    np.testing.assert_array_equal(some.views, rgba(0)[[0, 2]])
    np.testing.assert_allclose(
        some.cameras.intrinsics, CAMERAS.intrinsics[:2], atol=1e-4
    )
    source = OrbitFolderSource(tmp_path, views=VIEWS)
    with pytest.raises(InputError, match="2 views of 4"):
        source[0]
    assert source[1].name == names[1]


def test_a_nerf_camera_in_pixels(tmp_path):
    TREES["nerf"](tmp_path)
    path = tmp_path / "scene0" / "transforms_train.json"
    fields = json.loads(path.read_text())
    del fields["camera_angle_x"]
    fields |= {"fl_x": 40.0, "fl_y": 44.0, "cx": 15.0, "w": 32, "h": 32}
    path.write_text(json.dumps(fields))
    cameras = open_source(SourceSpec(str(tmp_path)), 2)[0].cameras
    np.testing.assert_allclose(cameras.intrinsics[0], [20, 22, 7.5, 8])
    assert len(cameras.intrinsics) == 2
    path.write_text(json.dumps(fields | {"k1": 0.1}))
    with pytest.raises(InputError, match="distorted"):
        open_source(SourceSpec(str(tmp_path)), 2)[0]


def test_fit_is_resizing_what_is_seen(tmp_path):
    rng = np.random.default_rng(0)
    views = rng.integers(0, 255, (1, 24, 32, 4), np.uint8)
    views[..., 3] = np.where(views[..., 3] > 128, 255, 0)
    TREES["views"](tmp_path)
    sample = open_source(SourceSpec(str(tmp_path)), 1)[0]
    wide = CAMERAS[:1].resize(24, 32)
    sample = type(sample)("a", "", views, wide)
    small = fit(sample, 12)
    seen = Image.fromarray(over(views, 0.5)[0]).resize(
        (12, 12), Image.Resampling.BICUBIC, (4, 0, 28, 24)
    )
    difference = over(small.views, 0.5)[0].astype(int) - np.asarray(seen)
    # Bicubic overshoots that clip differ a little.
    assert np.abs(difference).mean() < 2 and small.views.shape == (1, 12, 12, 4)
    want = (np.asarray(wide.intrinsics[0]) - [0, 0, 4, 0]) / 2
    np.testing.assert_allclose(small.cameras.intrinsics[0], want)
    assert fit(small, 12) is small
    grey = over(np.zeros((1, 1, 4), np.uint8), 0.5)
    assert grey.tolist() == [[[128] * 3]]  # as the original paints it


def test_several_sources_in_a_file(tmp_path):
    TREES["views"](tmp_path / "a")
    entries = [{"path": "a", "weight": 3}, {"path": "a", "layout": "views"}]
    (tmp_path / "mix.json").write_text(json.dumps(entries))
    specs = read_specs(tmp_path / "mix.json")
    assert [s.weight for s in specs] == [3.0, 1.0]
    assert open_source(specs[1]).layout == "views"
    for entry, told in (
        ({"path": "a", "wieght": 1}, "did you mean 'weight'"),
        ({"path": "a", "weight": "x"}, "weight"),
        ({"path": "a", "weight": -1}, "above 0"),
        ({"path": "a", "captions": 3}, "captions is no text"),
        ({"layout": "views"}, "with a path"),
        ({"path": "a", "elevations": [1]}, "elevations"),
    ):
        (tmp_path / "mix.json").write_text(json.dumps([entry]))
        with pytest.raises(InputError, match=told):
            read_specs(tmp_path / "mix.json")


def test_what_is_no_source(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(InputError, match="known layouts"):
        recognise(tmp_path)
    with pytest.raises(InputError, match="did you mean 'views'"):
        open_source(SourceSpec(str(tmp_path), layout="view"))
    for kind in LAYOUTS.values():
        with pytest.raises(InputError):
            kind(tmp_path)


def damage(root: Path, rng: random.Random) -> None:
    """One thing that happens to files."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if not files:
        return
    file = rng.choice(files)
    kind = rng.randrange(5)
    content = file.read_bytes()
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif kind == 2 and content:
        at = rng.randrange(len(content))
        file.write_bytes(content[:at] + rng.randbytes(8) + content[at + 8 :])
    elif kind == 3:
        file.unlink()
        file.mkdir()
    elif file.suffix == ".json":
        wrong = rng.choice([None, [], 3, "x", {"a": 1}, [[None]], 1e999, {"x": {}}])
        try:
            value = json.loads(content)
        except ValueError:  # damaged before
            return
        if isinstance(value, dict) and value and rng.random() < 0.8:
            value[rng.choice(sorted(value))] = wrong
        else:
            value = wrong
        file.write_text(json.dumps(value))


@pytest.mark.parametrize("layout", sorted(TREES))
@pytest.mark.parametrize("seed", range(6))
def test_damage_never_crashes_nor_reorders(layout, seed, tmp_path):
    names = TREES[layout](tmp_path)
    rng = random.Random(f"{layout}{seed}")
    for _ in range(rng.randrange(1, 6)):
        damage(tmp_path, rng)
    try:
        source = open_source(SourceSpec(str(tmp_path), layout=layout), VIEWS)
    except InputError:
        return  # nothing is left to list
    good = []
    for index, name in enumerate(source.names):
        try:
            good.append(source[index].name)
        except InputError as error:
            assert str(error)
            continue
        assert good[-1] == name
        assert source[index].views.dtype == np.uint8
    assert good == [name for name in names if name in good]


def test_json_of_another_kind(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        read_json(path)
