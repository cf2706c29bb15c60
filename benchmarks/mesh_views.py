"""Do rendered views and their cameras belong together? Gaussians fitted to the orbit
are compared with the views from anywhere, which the fit never saw.

videomv data render models --out rendered --size 128 --samples 8
python benchmarks/mesh_views.py rendered [--orbit 24] [--count 4096] [--iterations 600]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from videomv_jax.data.orbit_folder import OrbitFolderSource
from videomv_jax.data.samples import over
from videomv_jax.evaluation.consistency import fit
from videomv_jax.evaluation.metrics import psnr
from videomv_jax.splat.renderer import render


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--orbit", type=int, default=24, help="views that are fitted")
    parser.add_argument("--count", type=int, default=4096, help="Gaussians")
    parser.add_argument("--iterations", type=int, default=600)
    options = parser.parse_args()
    source = OrbitFolderSource(options.folder, views=None)
    for index, name in enumerate(source.names):
        sample = source[index]
        began = time.perf_counter()
        views = jnp.asarray(over(sample.views, 0.5)[None], jnp.float32) / 255
        seen, cameras = options.orbit, jax.tree.map(np.asarray, sample.cameras)
        gaussians = fit(
            views[:, :seen],
            cameras[:seen],
            0.5,
            jax.random.key(0),
            count=options.count,
            iterations=options.iterations,
        )
        renders = render(gaussians, cameras, background=0.5).rgb
        quality = np.asarray(psnr(renders, views))[0]
        print(
            f"{quality[seen:].mean():6.2f} dB on the {len(quality) - seen} others "
            f"(least {quality[seen:].min():.2f}), {quality[:seen].mean():6.2f} dB on "
            f"the fitted, {time.perf_counter() - began:.0f} s  {name}",
            flush=True,
        )
    print({"device": jax.devices()[0].device_kind, "jax": jax.__version__})


if __name__ == "__main__":
    main()
