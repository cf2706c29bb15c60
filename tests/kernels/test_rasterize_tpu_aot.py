"""Forward and backward compile for TPUs that are not there."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from videomv_kernels.rasterize import RasterConfig, rasterize

pytestmark = pytest.mark.tpu_aot
TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@pytest.fixture(scope="module", params=TARGETS)
def sharding(request):
    """The first chip of a topology."""
    pytest.importorskip("libtpu", reason="needs libtpu: pip install videomv-jax[tpu]")
    # Do not ask the cloud which machine this is; there are no chips to lock.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    name = TARGETS[request.param]
    devices = topologies.get_topology_desc(name, platform="tpu").devices
    return NamedSharding(Mesh(np.array(devices[:1]), ("chip",)), PartitionSpec())


def test_compiles(sharding):
    """The whole gradient, chosen by the platform, with room in VMEM and SMEM."""
    n, views = 256, 2

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    inputs = dict(
        means=array(n, 3),
        quats=array(n, 4),
        scales=array(n, 3),
        opacities=array(n),
        colors=array(n, 3),
        world_to_camera=array(views, 4, 4),
        intrinsics=array(views, 4),
    )

    def loss(inputs):
        config = RasterConfig(pairs_per_view=2000)
        out = rasterize(**inputs, height=40, width=64, config=config)
        return jnp.square(out.rgb).sum() + (out.alpha * out.depth).sum()

    lowered = jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("tpu",))
    compiled = lowered.compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
    assert compiled.memory_analysis().temp_size_in_bytes < 64 << 20
