"""gsplat on the same scene, where it is installed: only then is torch imported."""

from importlib import import_module, metadata, util
from typing import Any, NamedTuple

import numpy as np

from videomv_kernels.benchmark.queue import queue_ms
from videomv_kernels.benchmark.scenes import Work

_NEAR, _FAR = 0.2, 1e3


class Rendered(NamedTuple):
    """Channels r, g, b, depth, alpha, and the gradients of the scene by name."""

    image: np.ndarray
    grads: dict[str, np.ndarray]


def version() -> str | None:
    """Of gsplat, None where it or a GPU for torch is missing."""
    if util.find_spec("gsplat") is None or util.find_spec("torch") is None:
        return None
    import torch

    return metadata.version("gsplat") if torch.cuda.is_available() else None


def measure(
    work: Work, scene: dict[str, np.ndarray], weights: np.ndarray, calls: int
) -> tuple[dict[str, Any], Rendered]:
    """Times and memory as of `rasterizer.run`, and what was rendered."""
    import torch

    gsplat = import_module("gsplat")

    fields = {name: torch.tensor(x, device="cuda") for name, x in scene.items()}
    matrices, lenses = fields.pop("world_to_camera"), fields.pop("intrinsics")
    factors = torch.tensor(weights, device="cuda")
    cameras = torch.zeros((*lenses.shape[:-1], 3, 3), device="cuda")
    cameras[..., 0, 0], cameras[..., 1, 1] = lenses[..., 0], lenses[..., 1]
    cameras[..., 0, 2], cameras[..., 1, 2] = lenses[..., 2], lenses[..., 3]
    cameras[..., 2, 2] = 1
    for field in fields.values():
        field.requires_grad_()

    def render():
        colors, alphas, _ = gsplat.rasterization(
            **fields,
            viewmats=matrices,
            Ks=cameras,
            width=work.size,
            height=work.size,
            near_plane=_NEAR,
            far_plane=_FAR,
            render_mode="RGB+D",
            packed=False,
        )
        return torch.cat([colors, alphas], -1)

    def both():
        for field in fields.values():
            field.grad = None
        image = render()
        (image * factors).sum().backward()
        return image

    def forward():
        with torch.no_grad():
            return render()

    row: dict[str, Any] = {}
    for name, call in (("forward", forward), ("both", both)):
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        row[f"{name}_mib"] = peak / 2**20
        row[f"{name}_ms"] = queue_ms(call, lambda _: torch.cuda.synchronize(), calls)
    image = both().detach().cpu().numpy()
    grads = {}
    for name, field in fields.items():
        assert field.grad is not None
        grads[name] = field.grad.cpu().numpy()
    return row, Rendered(image, grads)
