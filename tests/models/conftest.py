"""What tests of networks share: numeric fixtures of the original and checks.

The fixtures under `tests/golden` hold weights, inputs and outputs of the PyTorch
modules, float32 on a CPU, in their names and layouts; all weights are random, those
included that start at zero. Errors are relative to the largest value of an array; a
faithful port stays below 2e-5.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videomv_jax.convert import mapping
from videomv_jax.models.unet import UNetConfig

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """Reader of a fixture: `config`, and `param`, `in_`, `out` by name."""

    def read(name: str) -> SimpleNamespace:
        with np.load(GOLDEN / f"{name}.npz") as z:
            arrays = {k: z[k] for k in z.files}
        parts = {
            part: {
                k.split("/", 1)[1]: x
                for k, x in arrays.items()
                if k.startswith(f"{part}/")
            }
            for part in ("param", "in", "out")
        }
        return SimpleNamespace(
            config=json.loads(str(arrays["config"])),
            # Stored as float16 on a grid where the cast is exact.
            param={k: x.astype(np.float32) for k, x in parts["param"].items()},
            in_=parts["in"],
            out=parts["out"],
        )

    return read


@pytest.fixture(scope="session")
def unet_config():
    """The config of a UNet fixture, with some fields changed."""

    def read(fixture: SimpleNamespace, **changes) -> UNetConfig:
        c = fixture.config
        return UNetConfig(
            dim=c["dim"],
            multipliers=tuple(c["dim_mult"]),
            res_blocks=c["num_res_blocks"],
            attention_levels=len(c["attn_scales"]),
            head_dim=c["head_dim"],
            num_heads=c["num_heads"],
            context_dim=c["context_dim"],
            dtype="float32",
            **changes,
        )

    return read


@pytest.fixture(scope="session")
def filled():
    """Builder of a module with random values everywhere, also where it starts at 0."""

    def build(make, seed: int = 0) -> nnx.Module:
        module = nnx.eval_shape(make)
        rng = np.random.default_rng(seed)

        def draw(path, shape):
            x = rng.standard_normal(shape).astype(np.float32)
            if path.endswith(("bias", "scale")):
                return 0.1 * x + np.float32(path.endswith("scale"))
            outputs = shape[0] if len(shape) == 4 else shape[-1]
            return x * np.float32(np.sqrt(outputs / x.size))

        shapes = mapping.shapes(module)
        mapping.assign(module, {path: draw(path, s) for path, s in shapes.items()})
        return module

    return build


@pytest.fixture(scope="session")
def gradients():
    """Gradients of a loss by parameter path; checked: finite and not all zero."""

    def check(loss, module) -> dict[str, np.ndarray]:
        state = nnx.jit(nnx.grad(loss))(module)
        found = {
            ".".join(map(str, path)): np.asarray(p.get_value())
            for path, p in nnx.to_flat_state(state)
        }
        assert found.keys() == mapping.shapes(module).keys()
        for path, x in found.items():
            assert np.isfinite(x).all(), path
            assert np.abs(x).max() > 0, path
        return found

    return check


@pytest.fixture(scope="session")
def product_types():
    """Types of the operands of every product and convolution in a function."""

    def types(fn, *args) -> list[jnp.dtype]:
        found = []

        def walk(jaxpr):
            for equation in jaxpr.eqns:
                if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                    found.extend(v.aval.dtype for v in equation.invars)
                for value in jax.tree.leaves(
                    equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")
                ):
                    if hasattr(value, "jaxpr"):
                        walk(value.jaxpr)
                    elif hasattr(value, "eqns"):
                        walk(value)

        walk(jax.make_jaxpr(fn)(*args).jaxpr)
        return found

    return types
