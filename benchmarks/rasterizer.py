"""Time the rasterizer beside gsplat, and sweep tile sizes.

    python benchmarks/rasterizer.py [--case N,SCENES,VIEWS,SIZE ...] [--sweep] \\
        [--implementation NAME ...] [--calls N] [--asset FILE] [--json FILE]

Expected: a Markdown table, of the cases of the project's goals on a GPU and of small
ones elsewhere. gsplat's rows, and the columns that compare with it, appear where it is
installed. `videomv bench raster` is the same without the sweep. Scenes are shells of
Gaussians or, with --asset, those of a .ply of `videomv generate`, whose number a
case then repeats.
"""

import argparse
import functools
import json
import pathlib

import jax
import numpy as np
from videomv_kernels.benchmark import LARGE, SMALL, Work, cameras, describe, run
from videomv_kernels.benchmark.scenes import shell
from videomv_kernels.rasterize import BACKENDS

from videomv_jax.splat.files import read_ply

# What the GPU backend takes and the design measured, with wider ones on either side.
SWEEP = ((4, 8), (8, 4), (8, 8), (4, 16), (8, 16), (16, 8), (16, 16), (8, 32))
COLUMNS = (
    "case",
    "implementation",
    "tile",
    "forward_ms",
    "both_ms",
    "forward_mib",
    "both_mib",
    "rgb_error",
    "cosine",
    "overflow",
)


def cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def asset(path: pathlib.Path, work: Work) -> dict[str, np.ndarray]:
    """The Gaussians of a file in every scene of a case, seen from an orbit."""
    gaussians = read_ply(path)
    names = ("means", "quats", "scales", "opacities", "colors")
    fields = {name: np.asarray(getattr(gaussians, name)) for name in names}
    if len(fields["opacities"]) != work.n:
        raise SystemExit(f"case is {work}, but {path} has {len(fields['opacities'])}")
    return {
        name: np.repeat(x[None], work.scenes, 0) for name, x in fields.items()
    } | cameras(work)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", type=Work.parse)
    parser.add_argument("--implementation", nargs="+", choices=sorted(BACKENDS))
    parser.add_argument("--sweep", action="store_true", help="tile sizes of the GPU")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--asset", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    works = args.case or (LARGE if jax.default_backend() == "gpu" else SMALL)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    rows = []
    for row in run(
        works,
        args.implementation or (None,),
        SWEEP if args.sweep else (None,),
        calls=args.calls,
        scene_of=functools.partial(asset, args.asset) if args.asset else shell,
    ):
        rows.append(row)
        print("| " + " | ".join(cell(row.get(c)) for c in COLUMNS) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(describe() | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
