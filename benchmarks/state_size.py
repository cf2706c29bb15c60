"""Bytes of training state on each device, by strategy: shapes alone, no compilation.

XLA_FLAGS=--xla_force_host_platform_device_count=256 JAX_PLATFORMS=cpu \
    python benchmarks/state_size.py configs/text_to_views.py
"""

import dataclasses
import math
import sys

import jax

from videomv_jax.presets import PRESETS
from videomv_jax.sharding import STRATEGIES
from videomv_jax.training.config import load_config
from videomv_jax.training.diffusion import DiffusionTask
from videomv_jax.training.state import abstract_state, make_mesh
from videomv_jax.training.step import make_optimizer


def held(tree) -> int:
    """Bytes of a tree of placed shapes that one device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def main() -> None:
    """Print one line for each strategy."""
    base = load_config(sys.argv[1], sys.argv[2:])
    task = DiffusionTask(base, PRESETS[base.model])
    print("strategy | mesh | parameters M | state GiB per device")
    for strategy in STRATEGIES:
        config = dataclasses.replace(base, strategy=strategy)
        mesh = make_mesh(config)
        state = abstract_state(task.networks, make_optimizer(config), config, mesh)
        count = sum(x.size for x in jax.tree.leaves(state.params))
        sizes = " ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1)
        print(f"{strategy} | {sizes} | {count / 1e6:.1f} | {held(state) / 2**30:.2f}")


if __name__ == "__main__":
    main()
