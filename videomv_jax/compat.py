"""Everything that differs between JAX versions or installed backends."""

import contextlib
import contextvars
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target", default=None
)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Programs traced inside are for another platform than this process's own."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def _platform() -> str:
    return _target.get() or jax.default_backend()


def has_cuda() -> bool:
    """Whether programs are for an NVIDIA GPU."""
    return _platform() == "gpu"


def has_hopper() -> bool:
    """Whether they are for an H100, H200 or GH200: what `compiling_for` a GPU means."""
    if not has_cuda():
        return False
    return _target.get() is not None or jax.devices()[0].compute_capability == "9.0"


def on_cpu() -> bool:
    """Whether programs are for the CPU."""
    return _platform() == "cpu"


def compiler_options(several: bool = False) -> dict[str, bool | int | str]:
    """XLA's options for the platform: the only place where any are set.

    On NVIDIA GPUs, linear layers of one input stay apart: merged, XLA would join their
    weights anew on every call. And products are cuBLAS's where XLA would not put a norm
    or an activation into its own: cuBLAS also adds residuals (docs/performance.md). In
    programs for several devices nothing is moved about to hide transfers behind it: to
    hide 6 GB of gradients a training step wanted 42 GB more memory (docs/scale.md).
    """
    if not has_cuda():
        return {}
    options = {"xla_gpu_dot_merger_threshold_mb": 0, "xla_gpu_triton_gemm_any": False}
    if several:
        options["xla_gpu_enable_latency_hiding_scheduler"] = False
    return options


def compiling_pool() -> ThreadPoolExecutor:
    """Threads that compile, which is mostly serial and leaves Python's lock alone.

    One where XLA tries kernels out while it compiles: they disturb each other.
    """
    return ThreadPoolExecutor(1 if has_cuda() else None)


def flops_of_hlo(text: str) -> float:
    """Operations of a compiled program, as `Compiled.cost_analysis` counts them.

    JAX has no public way for the text of a program that this process cannot run.
    """
    from jaxlib import _hlo, _jax  # pyright: ignore[reportAttributeAccessIssue]

    module = _hlo.hlo_module_from_text(_without_sparse_core(text))
    client = jax.devices("cpu")[0].client
    return _jax.hlo_module_cost_analysis(client, module)["flops"]


def _without_sparse_core(text: str) -> str:
    """A program whose gathers on a SparseCore are something else without operations.

    jaxlib's parser does not take how libtpu 0.0.52 writes them: started with nothing,
    given their operands later.
    """
    part = r"^ *(%\S+) = .* async-(?:start\(\)|update\().*\n"
    names = re.findall(part, text, re.MULTILINE)
    text = re.sub(part, "", text, flags=re.MULTILINE)
    for name in names:
        text = text.replace(f"async-done({name})", "iota(), iota_dimension=0")
    return text
