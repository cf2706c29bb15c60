"""Miniature trees in every layout, as the originals lay them out.

All of them show the same objects: coloured balls around the origin, seen by an orbit.
"""

import io
import json
import math
import tarfile

import numpy as np
from PIL import Image

from videomv_jax.data.view_folder import write_view_folder
from videomv_jax.splat.cameras import orbit

VIEWS, SIZE, COUNT = 4, 16, 3
CAMERAS = orbit(VIEWS, elevation=20.0, size=SIZE)


def rgba(number: int) -> np.ndarray:
    """Views `[f h w 4]` of an object: a ball off the middle, painted by the view."""
    center = 0.3 * np.array([math.cos(number), math.sin(number), 0.5])
    matrix = np.asarray(CAMERAS.world_to_camera, np.float64)
    fx = float(CAMERAS.intrinsics[0, 0])
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    views = np.zeros((VIEWS, SIZE, SIZE, 4), np.uint8)
    for k in range(VIEWS):
        a, b, c = matrix[k, :3, :3] @ center + matrix[k, :3, 3]
        u, v = fx * a / c + SIZE / 2, fx * b / c + SIZE / 2
        inside = (x - u) ** 2 + (y - v) ** 2 < (0.4 * fx / c) ** 2
        views[k][inside] = (40 * number + 60, 50 * k + 40, 120, 255)
    return views


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def g_objaverse(root):
    """Dictionary and instance folders with more views and fields than are used."""
    matrix = np.asarray(CAMERAS.camera_to_world, np.float64)
    for number in range(COUNT):
        folder = root / str(number % 2) / f"1000{number}" / "campos_512_v4"
        for k in range(VIEWS + 2):
            here = folder / f"{k:05d}"
            here.mkdir(parents=True)
            (here / f"{k:05d}.png").write_bytes(png(rgba(number)[k % VIEWS]))
            (here / f"{k:05d}_albedo.png").write_bytes(b"")
            axes = {name: matrix[k % VIEWS, :3, i] for i, name in enumerate("xyz")}
            fields = {name: axis.tolist() for name, axis in axes.items()}
            fields["origin"] = matrix[k % VIEWS, :3, 3].tolist()
            fields |= {"x_fov": math.radians(39.6), "y_fov": math.radians(39.6)}
            fields |= {"max_depth": 5.0, "scale": [0.1], "bbox": [[0] * 3, [1] * 3]}
            (here / f"{k:05d}.json").write_text(json.dumps(fields))
    names = [f"{number % 2}/1000{number}" for number in range(COUNT)]
    texts = {name: f"a ball {name}" for name in names}
    (root / "text_captions_cap3d.json").write_text(json.dumps(texts))
    return sorted(names)


def nerf(root):
    """Blender's synthetic scenes: no endings, one angle, OpenGL matrices."""
    matrix = np.asarray(CAMERAS.camera_to_world) @ np.diag([1, -1, -1, 1])
    for number in range(COUNT):
        folder = root / f"scene{number}"
        (folder / "train").mkdir(parents=True)
        frames = []
        for k in range(VIEWS):
            (folder / "train" / f"r_{k}.png").write_bytes(png(rgba(number)[k]))
            frames.append(
                {
                    "file_path": f"./train/r_{k}",
                    "rotation": 0.01,
                    "transform_matrix": matrix[k].tolist(),
                }
            )
        fields = {"camera_angle_x": math.radians(39.6), "frames": frames}
        (folder / "transforms_train.json").write_text(json.dumps(fields))
        (folder / "caption.txt").write_text(f"a ball {number}")
    return [f"scene{number}" for number in range(COUNT)]


def plain(root):
    for number in range(COUNT):
        name = f"object{number}"
        write_view_folder(root / name, rgba(number), CAMERAS, f"a ball {number}")
    return [f"object{number}" for number in range(COUNT)]


def pictures(root):
    root.mkdir(exist_ok=True)
    for number in range(COUNT):
        (root / f"{number}.png").write_bytes(png(rgba(number)[0]))
        (root / f"{number}.txt").write_text(f"a ball {number}")
    return [str(number) for number in range(COUNT)]


def tars(root):
    """WebDataset: members of a sample follow each other, the key before the dot."""
    root.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for number in range(COUNT):
                parts = {
                    ".png": png(rgba(number)[shard]),
                    ".txt": f"a ball {number}".encode(),
                    ".json": b'{"AESTHETIC_SCORE": 5.5}',
                }
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"00{shard}{number}{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return [f"{s:05d}/00{s}{n}" for s in range(2) for n in range(COUNT)]


TREES = {
    "orbits": g_objaverse,
    "nerf": nerf,
    "views": plain,
    "pictures": pictures,
    "tars": tars,
}
