"""`mode="reference"` against the original's loop in torch, with converted weights.

The loop, the cameras, the reconstructor and the rasterizer are written here from their
published maths, with torch and numpy; UNet and autoencoder are diffusers'. Both sides
get their weights from the same files, of which ours reads the converted ones. The noise
of the encoder's posterior is handed over.
"""

import jax
import numpy as np
import pytest
import safetensors.numpy

from videomv_jax.convert import mapping, reconstructor, unet, vae
from videomv_jax.diffusion.process import sample_noise
from videomv_jax.model_folder import abstract, load_model
from videomv_jax.models.reconstructor import Reconstructor, ReconstructorConfig
from videomv_jax.models.unet import UNet, UNetConfig
from videomv_jax.models.vae import VAE, VAEConfig
from videomv_jax.sampling import samplers
from videomv_jax.sampling.loop import start
from videomv_jax.sampling.programs import Condition, Programs

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# With seed 7 a Gaussian of step 30 lies on a tile's border: there the original's own
# rule makes 6e-4 of 1e-6, and no two programs agree.
SIZE, VIEWS, CHOSEN, GUIDANCE, SEED = 16, 6, (0, 2, 3, 5), 3.0, 8
FOV, DISTANCE, ELEVATION = 39.6, 2.0, 15.0
LATENT = SIZE // 2
TEXT = 24
NETWORKS = {
    "unet": UNetConfig(
        dim=32,
        multipliers=(1, 2),
        res_blocks=1,
        attention_levels=1,
        head_dim=8,
        num_heads=8,
        context_dim=TEXT,
        groups=8,
    ),
    "vae": VAEConfig(channels=8, multipliers=(1, 1), layers=1, groups=4),
    "reconstructor": ReconstructorConfig(
        down_channels=(8, 16),
        down_attention=(False, True),
        up_channels=(16,),
        up_attention=(True,),
        layers=1,
        heads=2,
        groups=4,
    ),
}
SETTINGS = [
    "unet.head_dim=8",
    "unet.groups=8",
    "vae.groups=4",
    "reconstructor.groups=4",
    "reconstructor.heads=2",
    f"cameras.size={SIZE}",
    f"cameras.views={VIEWS}",
    f"sampling.views_3d={list(CHOSEN)}",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights by the names of the released files, and those files."""
    rng = np.random.default_rng(0)

    def draw(name, shape):
        x = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            return 0.7 * x / np.float32(np.sqrt(np.prod(shape[1:])))
        return 0.1 * x + np.float32(name.endswith("weight"))

    def random(part, kind, table):
        module = abstract(lambda rngs: kind(NETWORKS[part], rngs=rngs))
        shapes = mapping.foreign_shapes(table(module), mapping.shapes(module))
        return {name: draw(name, shape) for name, shape in shapes.items()}

    made = {
        "unet": random("unet", UNet, unet.entries),
        "vae": random("vae", VAE, vae.entries),
        "lgm": random("reconstructor", Reconstructor, reconstructor.entries),
    }
    # Gaussians that are seen: large enough, and most of them within the image.
    made["lgm"]["conv.bias"][4:7] = -1.0
    folder = tmp_path_factory.mktemp("files")
    videomv = made["unet"] | {f"lgm_big.{k}": x for k, x in made["lgm"].items()}
    first = {f"first_stage_model.{k}": x for k, x in made["vae"].items()}
    safetensors.numpy.save_file(videomv, folder / "t2v.safetensors")
    safetensors.numpy.save_file(first, folder / "vae.safetensors")
    return folder, made


# --- the original's cameras ---------------------------------------------------------


def condition():
    """Camera-to-world matrices as the UNet is told: OpenGL columns, z up."""
    a, e = 2 * np.pi * np.arange(VIEWS) / VIEWS, np.deg2rad(ELEVATION)
    back = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), 0 * a + np.sin(e)])
    right = np.stack([-np.sin(a), np.cos(a), 0 * a])
    up = np.cross(back, right, axis=0)
    matrix = np.tile(np.eye(4), (VIEWS, 1, 1))
    matrix[:, :3] = np.stack([right, up, back, DISTANCE * back], -1).transpose(1, 0, 2)
    return matrix


def gaussian_branch():
    """Rays [f, 6, s, s], and world-to-camera matrices with OpenCV axes."""
    c2w = condition()
    c2w[:, 1] *= -1
    c2w[:, [1, 2]] = c2w[:, [2, 1]]
    lifted = np.eye(4)
    lifted[2, 3] = np.linalg.norm(c2w[0, :3, 3])
    c2w = lifted @ np.linalg.inv(c2w[0]) @ c2w
    focal = SIZE / 2 / np.tan(np.deg2rad(FOV) / 2)
    j, i = np.mgrid[:SIZE, :SIZE]
    local = [(i - SIZE / 2 + 0.5) / focal, -(j - SIZE / 2 + 0.5) / focal, -1 + 0 * i]
    direction = np.einsum("fij,jhw->fihw", c2w[:, :3, :3], np.stack(local))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    origin = np.broadcast_to(c2w[:, :3, 3, None, None], direction.shape)
    rays = np.concatenate([np.cross(origin, direction, axis=1), direction], 1)
    c2w[:, :3, 1:3] *= -1
    return rays.astype(np.float32), np.linalg.inv(c2w)


# --- LGM ----------------------------------------------------------------------------


def lgm(w, x):
    """Gaussians [b, n, 14] of images and rays [b, 4, 9, s, s], as VideoMV's copy."""
    import torch
    from torch.nn import functional as F

    half = 0.5**0.5
    b = len(x)

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def norm(x, name):
        return F.group_norm(x, 4, w[f"{name}.weight"], w[f"{name}.bias"])

    def net(x, name):
        y = conv(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        y = conv(F.silu(norm(y, f"{name}.norm2")), f"{name}.conv2", padding=1)
        if f"{name}.shortcut.weight" in w:
            x = conv(x, f"{name}.shortcut")
        return (x + y) * half

    def attend(x, name):
        if f"{name}.norm.weight" not in w:
            return x
        n, c, h, wide = x.shape
        y = norm(x, f"{name}.norm").reshape(b, 4, c, h, wide)
        y = y.permute(0, 1, 3, 4, 2).reshape(b, -1, c)
        qkv = y @ w[f"{name}.attn.qkv.weight"].T
        q, k, v = qkv.reshape(b, -1, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = ((q * (c // 2) ** -0.5) @ k.mT).softmax(-1) @ v
        y = y.permute(0, 2, 1, 3).reshape(b, -1, c)
        y = y @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        y = y.reshape(b, 4, h, wide, c).permute(0, 1, 4, 2, 3)
        return (x + y.reshape(x.shape)) * half

    def layer(x, block, i):
        return attend(net(x, f"unet.{block}.nets.{i}"), f"unet.{block}.attns.{i}")

    x = conv(x.reshape(-1, 9, SIZE, SIZE), "unet.conv_in", padding=1)
    skips = [x]
    for level in range(2):
        x = layer(x, f"down_blocks.{level}", 0)
        skips.append(x)
        if level == 0:
            x = conv(x, "unet.down_blocks.0.downsample", stride=2, padding=1)
            skips.append(x)
    x = net(x, "unet.mid_block.nets.0")
    x = net(attend(x, "unet.mid_block.attns.0"), "unet.mid_block.nets.1")
    for i in range(2):
        x = layer(torch.cat([x, skips.pop()], 1), "up_blocks.0", i)
    x = conv(F.silu(norm(x, "unet.norm_out")), "unet.conv_out", padding=1)
    x = conv(x, "conv")
    x = x.reshape(b, 4, 14, *x.shape[2:]).permute(0, 1, 3, 4, 2).reshape(b, -1, 14)
    parts = [
        x[..., :3].clamp(-1, 1),
        x[..., 3:4].sigmoid(),
        0.1 * F.softplus(x[..., 4:7]),
        F.normalize(x[..., 7:11], dim=1),
        0.5 * torch.tanh(x[..., 11:]) + 0.5,
    ]
    return torch.cat(parts, -1)


# --- the rasterizer -----------------------------------------------------------------


def rasterize(gaussians, view, size, background):
    """Colours [f, 3, h, w] of Gaussians [n, 14] as the CUDA rasterizer defines them."""
    import torch

    g = gaussians.double()
    tan = np.tan(np.deg2rad(FOV) / 2)
    focal, tiles = size / (2 * tan), -(-size // 16)
    w, x, y, z = g[:, 7:11].T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    axes = torch.stack([torch.stack(r, -1) for r in rows], -2) * g[:, None, 4:7]
    sigma = axes @ axes.mT
    row, column = torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij")
    out = []
    for matrix in torch.from_numpy(view):
        p = g[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        kept = p[:, 2] > 0.2
        p, own, cov = p[kept], g[kept], sigma[kept]
        x, y, z = p.T
        px, py = ((v / z / tan + 1) * size / 2 - 0.5 for v in (x, y))
        tx, ty = ((v / z).clamp(-1.3 * tan, 1.3 * tan) * z for v in (x, y))
        zero = torch.zeros_like(z)
        jacobian = torch.stack(
            [
                torch.stack([focal / z, zero, -focal * tx / z**2], -1),
                torch.stack([zero, focal / z, -focal * ty / z**2], -1),
            ],
            -2,
        )
        m = jacobian @ matrix[:3, :3]
        flat = m @ cov @ m.mT + 0.3 * torch.eye(2, dtype=torch.float64)
        a, b, c = flat[:, 0, 0], flat[:, 0, 1], flat[:, 1, 1]
        det = a * c - b * b
        middle = (a + c) / 2
        largest = middle + (middle**2 - det).clamp(min=0.1).sqrt()
        radius = (3 * largest.sqrt()).ceil()
        low = [((v - radius) / 16).trunc().clamp(0, tiles) for v in (px, py)]
        high = [((v + radius + 15) / 16).trunc().clamp(0, tiles) for v in (px, py)]
        order = torch.argsort(z, stable=True)
        px, py, a, b, c, det = (v[order, None, None] for v in (px, py, a, b, c, det))
        low, high = ([v[order, None, None] for v in pair] for pair in (low, high))
        inside = (column // 16 >= low[0]) & (column // 16 < high[0])
        inside &= (row // 16 >= low[1]) & (row // 16 < high[1])
        dx, dy = px - column, py - row
        power = (-0.5 * (c * dx * dx + a * dy * dy) + b * dx * dy) / det
        alpha = (own[order, 3, None, None] * power.exp()).clamp(max=0.99)
        alpha = torch.where(inside & (alpha >= 1 / 255), alpha, 0.0)
        # A pixel stops before what would take it below 1e-4; all later ones would too.
        after = torch.cumprod(1 - alpha, 0)
        alpha = torch.where(after < 1e-4, 0.0, alpha)
        through = torch.cumprod(1 - alpha, 0)
        before = torch.cat([torch.ones_like(through[:1]), through[:-1]])
        color = torch.einsum("nhw,nc->chw", alpha * before, own[order, 11:])
        out.append(color + through[-1] * background)
    return torch.stack(out).float()


# --- the loop -----------------------------------------------------------------------


def their_trajectory(pipeline, made, noise, context, drawn):
    """Latents after every step, and clean ones as each step saw them."""
    import diffusers
    import torch

    network = diffusers.UNet3DConditionModel.from_pretrained(pipeline / "unet").eval()
    autoencoder = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae").eval()
    w = {k: torch.from_numpy(x) for k, x in (made["lgm"] | made["unet"]).items()}
    # The embedding of cameras is added to that of time, which diffusers hands to every
    # residual block.
    mlp = torch.nn.Sequential(
        torch.nn.Linear(16, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128)
    )
    own = {k.split(".", 1)[1]: x for k, x in w.items() if k.startswith("camera_emb")}
    mlp.load_state_dict(own)
    cameras = torch.from_numpy(condition().reshape(VIEWS, 16)).float()
    embedded = mlp(cameras).repeat(2, 1)  # both branches

    def with_cameras(module, args):
        return (args[0], args[1] + embedded, *args[2:])

    count = 0
    for module in network.modules():
        if type(module).__name__ == "ResnetBlock2D":
            module.register_forward_pre_hook(with_cameras)
            count += 1
    assert count == 2 + 2 + 4
    rays, view = gaussian_branch()
    rays = torch.from_numpy(rays[list(CHOSEN)])
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - beta)

    def project(x0, drawn):
        """x0 [c, f, h, w] of one branch, by way of Gaussians."""
        z = x0[:, list(CHOSEN)].permute(1, 0, 2, 3) / 0.18215
        images = (autoencoder.decode(z).sample * 0.5 + 0.5).clamp(0, 1)
        inputs = torch.cat([(images - mean) / std, rays], 1)
        gaussians = lgm(w, inputs[None])[0]
        renders = rasterize(gaussians, view, 2 * SIZE, 0.5).clamp(0, 1)
        spreads.append(float(renders.std()))
        posterior = autoencoder.encode(renders[:, :, ::2, ::2] * 2 - 1).latent_dist
        z = posterior.mean + posterior.std * drawn.permute(0, 3, 1, 2)
        return 0.18215 * z.permute(1, 0, 2, 3)

    x, xs, spreads = torch.from_numpy(noise).permute(3, 0, 1, 2), [], []
    x0s = []
    for step in range(50):
        t = 981 - 20 * step
        output = network(torch.stack([x, x]), t, torch.from_numpy(context)).sample
        root, spread = np.sqrt(1 / bar[t]), np.sqrt(1 / bar[t] - 1)
        guide = lambda c, u: u + GUIDANCE * (c - u)  # noqa: E731
        if step in (20, 30, 40):
            branches = [root * x - spread * e for e in output]
            both = zip(branches, torch.from_numpy(drawn[step]), strict=True)
            x0 = guide(*(project(*pair) for pair in both))
        else:
            x0 = root * x - spread * guide(*output)
        epsilon = (root * x - x0) / spread
        before = bar[max(t - 20, 0)]
        x = (np.sqrt(before) * x0 + np.sqrt(1 - before) * epsilon).float()
        xs.append(x.numpy())
        x0s.append(x0.float().numpy())
    assert min(spreads) > 0.02, "the renders show nothing"
    return (np.stack(v).transpose(0, 2, 3, 4, 1) for v in (xs, x0s))


def test_reference_mode_equals_the_originals_loop(checkpoint, convert, tmp_path):
    import torch

    folder, made = checkpoint
    model_dir, pipeline = tmp_path / "model", tmp_path / "pipeline"
    settings = [word for s in SETTINGS for word in ("--set", s)]
    convert(folder, "--to", model_dir, *settings)
    convert(model_dir, "--as", "diffusers", "--to", pipeline)
    model = load_model(model_dir, dtype="float32")
    assert model.reconstructor.config.quaternion_norm == "components"
    parts = {n: getattr(model, n) for n in NETWORKS}
    programs = Programs(model.config, parts)

    shape = (1, VIEWS, LATENT, LATENT, 4)
    noise = sample_noise(jax.random.key(SEED), shape)
    rng = np.random.default_rng(1)
    context = rng.standard_normal((2, 5, TEXT), dtype=np.float32)
    told = Condition(jax.numpy.asarray(context), programs.cameras, None)
    key = jax.random.fold_in(jax.random.key(SEED), 1)
    drawn = {
        step: np.array(
            jax.random.normal(jax.random.fold_in(key, step), (2, *shape[1:]))
        )
        for step in (20, 30, 40)
    }
    # Many small operations: waiting threads would take longer than the work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        given = np.array(noise)[0]
        xs, x0s = their_trajectory(pipeline, made, given, context, drawn)
    torch.set_num_threads(threads)

    table = samplers.project_at_indices(samplers.ddim(programs.schedule, 50))
    state = start(noise)
    numbers = np.float32(GUIDANCE), np.float32(0), np.uint32(SEED)
    # Compiling is what takes time here, so LLVM's part is left out.
    traced = programs.advance.trace(
        programs.weights,
        told,
        table,
        state,
        np.int32(1),
        *numbers,
        aware=True,
        mode="reference",
    )
    options = {"xla_backend_optimization_level": 0}
    run = traced.lower().compile(compiler_options=options)
    for step in range(50):
        state = run(programs.weights, told, table, state, np.int32(step + 1), *numbers)
        for ours, wanted in ((state.x[0], xs[step]), (state.x0[0], x0s[step])):
            error = np.abs(ours - wanted).max() / np.abs(wanted).max()
            assert error < 1e-4, (step, error)
    assert int(state.dropped) == 0
