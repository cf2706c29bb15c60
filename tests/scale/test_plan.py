"""Plans: bounds, the search, what is written; the compiler itself is slow."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from typer.testing import CliRunner

from videomv_jax import compat, presets
from videomv_jax.cli.main import app
from videomv_jax.models.unet import UNetConfig
from videomv_jax.scale import hlo, report
from videomv_jax.scale import plan as module
from videomv_jax.scale.chips import CHIPS, bounds, chip_of
from videomv_jax.scale.collectives import SLICES, collectives, totals
from videomv_jax.scale.plan import Plan
from videomv_jax.scale.program import needed, read
from videomv_jax.sharding import BATCH_AXES, STRATEGIES, make_mesh
from videomv_jax.training.config import TrainConfig
from videomv_jax.types import InputError

GIB = 2**30
PLAN = Plan(
    topology="v5e:2x4",
    strategy="fsdp",
    mesh={"data": 1, "fsdp": 8, "tensor": 1, "view": 1},
    batch=8,
    parameters=10_000_000,
    fits=True,
    total_bytes=8 * GIB,
    argument_bytes=3 * GIB,
    temporary_bytes=5 * GIB,
    model_flops=1e12,
    flops=1.97e12,
    bytes=0.819e9,
    sent={"all-gather fsdp": 3e8, "all-reduce data": 1e8},
)
LARGE = dataclasses.replace(
    PLAN, strategy="dp", fits=False, total_bytes=40 * GIB, flops=None, sent={}
)


def test_bounds():
    least = PLAN.bounds
    assert least is not None
    assert (least.compute, least.memory) == pytest.approx((10e-3, 1e-3))
    assert least.network == pytest.approx(2e-3)
    assert least.overlapped == pytest.approx(10e-3)
    assert least.in_a_row == pytest.approx(12e-3)
    assert LARGE.bounds is None
    two = dataclasses.replace(PLAN, slices=2, sent=PLAN.sent | {"all-reduce slices": 9})
    assert two.bounds == PLAN.bounds and two.sent_between_slices == 9
    assert bounds(CHIPS["v6e"], 0, 0, 4e11).network == 1
    with pytest.raises(InputError, match="known: v5e"):
        chip_of("v5:2x4")


@pytest.mark.parametrize(
    "first, each, wanted", [(2, 1, 13), (14.5, 1, 1), (1, 0.3, 49)]
)
def test_search(monkeypatch, first, each, wanted):
    """Memory `first + each * n`, bent a little, of a chip of 16 GiB."""
    compiled = []

    def fake(config, topology, say, cache, slices, step):
        assert step == "denoise"
        units = config.batch_size // 8
        compiled.append(units)
        total = (first + each * units + 0.01 * (units % 3)) * GIB
        return dataclasses.replace(
            PLAN, batch=config.batch_size, total_bytes=total, fits=total <= 16 * GIB
        )

    monkeypatch.setattr(module, "plan", fake)
    monkeypatch.setattr(module, "_devices", lambda topology, slices: None)
    config = TrainConfig(stage="diffusion", strategy="fsdp")
    best = module.largest_batch(config, "v5e:2x4", print, None, step="denoise")
    assert best.batch == 8 * wanted
    assert len(compiled) == len(set(compiled)) <= 7


def test_search_where_nothing_fits(monkeypatch):
    monkeypatch.setattr(module, "plan", lambda *_: LARGE)
    monkeypatch.setattr(module, "_devices", lambda topology, slices: None)
    config = TrainConfig(stage="diffusion", strategy="fsdp")
    assert module.largest_batch(config, "v5e:2x4", print, None) is None


def test_report(tmp_path):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table([PLAN, LARGE]))
    text = console.export_text()
    assert "fsdp=8" in text and "12.0" in text and "40.00" in text
    report.write_csv(tmp_path / "plan.csv", [PLAN, LARGE])
    with (tmp_path / "plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["step ms, overlapped"] == "10.0"
    assert rows[1]["fits"] == "no" and rows[1]["step ms, overlapped"] == "-"
    report.write_plot(tmp_path / "plan.svg", [PLAN, LARGE])
    texts = "".join(ET.parse(tmp_path / "plan.svg").getroot().itertext())
    assert "does not fit" in texts and "temporaries" in texts


def test_the_command(monkeypatch, tmp_path):
    """Everything but the compiler: every strategy, a table and two files."""
    asked = []

    def fake(config, topology, say, cache, slices, step):
        asked.append((config.strategy, config.batch_size, topology, slices, step))
        fits = config.strategy != "dp"
        return dataclasses.replace(PLAN if fits else LARGE, strategy=config.strategy)

    monkeypatch.setattr(module, "plan", fake)
    config = Path(__file__).parents[2] / "configs" / "text_to_views.py"
    command = ["plan", "--config", str(config), "--topology", "v5e:2x4", "--compare"]
    more = ["--slices", "2", "--set", "batch_size=16", "--out", str(tmp_path / "new")]
    more += ["--step", "denoise"]
    done = CliRunner().invoke(app, command + more)
    assert done.exit_code == 0, done.output
    assert asked == [(name, 16, "v5e:2x4", 2, "denoise") for name in STRATEGIES]
    with (tmp_path / "new" / "plan.csv").open() as file:
        fits = {row["strategy"]: row["fits"] for row in csv.DictReader(file)}
    assert fits == {name: "no" if name == "dp" else "yes" for name in STRATEGIES}
    assert (tmp_path / "new" / "plan.svg").exists()
    done = CliRunner().invoke(app, [*command, "--strategy", "tp"])
    assert done.exit_code == 2 and "--compare" in done.output


def test_refusals():
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.5G of "
        "15.75G hbm. Exceeded hbm capacity by 6.75G."
    )
    assert needed(error) == 22.5 * GIB
    error = RuntimeError(
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
        "total memory required for HLO temporaries (28.27G) exceeds available HBM "
        "(15.75G). HLO module: jit_step."
    )
    assert needed(error) == 28.27 * GIB
    with pytest.raises(RuntimeError, match="something else"):
        needed(RuntimeError("something else"))
    config = TrainConfig(stage="diffusion", model="tinny")
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        module.plan(config, "v5e:2x4", print, None)
    with pytest.raises(InputError, match="want 'diffusion'"):
        module.plan(TrainConfig(stage="joint"), "v5e:2x4", print, None)
    with pytest.raises(InputError, match="unknown step 'noise'"):
        module.plan(TrainConfig(stage="diffusion"), "v5e:2x4", print, None, 1, "noise")


def test_the_other_process_refuses():
    """No such slice, or no libtpu: what it says comes through."""
    config = TrainConfig(stage="diffusion", model="tiny")
    with pytest.raises(InputError, match="topology: 'v5e:3x5'|libtpu is not installed"):
        module.plan(config, "v5e:3x5", print, None)


HLO = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: f32[8,4]) -> f32[8,8] {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  %r = f32[4,8]{0,1:T(8,128)S(1)} transpose(%p), dimensions={1,0}
  %s = ((), (), (s32[8]{0:T(128)}, s32[1]{0:S(2)})) async-start(), \
async_execution_thread="sparsecore", calls=%beside
  %u = ((f32[8,4]{1,0:T(8,128)}), f32[8,4]{1,0:T(8,128)}, (s32[8]{0:T(128)})) \
async-update(%s, %p, %r), output_to_operand_aliasing={{2,0}: (0, {2,0})}
  %e = f32[8,4]{1,0:T(8,128)} async-done(%u)
  ROOT %d = f32[8,8]{1,0:T(8,128)} dot(%p, %r), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}
"""
ALLOCATIONS = """BufferAssignment:
allocation 0: size 4096, page 0, parameter 0, shape |f32[8,4]| at ShapeIndex {}:
 value: <1 p @0> (size=4096,offset=0): f32[8,4]{1,0:T(8,128)}
allocation 1: size 512, page 0, constant:
allocation 2: size 1000000, color 1, page 0, preallocated-temp:
allocation 3: size 5000, page 0, output shape is |f32[8,8]|, maybe-live-out:
allocation 4: size 70000, page 0, preallocated-temp:
"""


def test_what_the_compiler_writes_is_read(tmp_path):
    start = "module_0000.jit_step.cl_1.after_optimizations"
    (tmp_path / f"{start}_after_buffer_assignment.txt").write_text(HLO)
    memory = tmp_path / f"{start}-buffer-assignment.txt"
    memory.write_text(ALLOCATIONS)
    found = read(tmp_path)
    assert (found.arguments, found.temporaries, found.others) == (4096, 70000, 5512)
    assert (found.hlo, found.flops) == (HLO, 2 * 8 * 8 * 4)
    # Each array takes a tile; %r lies in the chip.
    assert found.bytes == 3 * 4096
    memory.write_text("something else")
    with pytest.raises(RuntimeError, match="cannot read"):
        read(tmp_path)


SMALL = dataclasses.replace(
    presets.TINY,
    unet=UNetConfig(
        dim=64,
        multipliers=(1,),
        res_blocks=1,
        attention_levels=1,
        head_dim=32,
        num_heads=2,
        context_dim=128,
    ),
    cameras=dataclasses.replace(presets.TINY.cameras, views=8, size=64),
    sampling=dataclasses.replace(presets.TINY.sampling, views_3d=(0, 2, 4, 6)),
)


LOOP = """HloModule jit_loop, is_scheduled=true

%more (c: (u32[], f32[8,8], f32[8,8])) -> pred[] {
  %c = (u32[]{:T(128)}, f32[8,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %limit = u32[]{:T(128)} constant(8)
  %at = u32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %below = pred[]{:T(512)} compare(%at, %limit), direction=LT
}

%body (b: (u32[], f32[8,8], f32[8,8])) -> (u32[], f32[8,8], f32[8,8]) {
  %b = (u32[]{:T(128)}, f32[8,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %one = u32[]{:T(128)} constant(1)
  %i = u32[]{:T(128)} get-tuple-element(%b), index=0, metadata={op_name="i"}
  %j = u32[]{:T(128)} add(%i, %one)
  %k = u32[]{:T(128)} add(%j, %STEP)
  %x = f32[8,8]{1,0} get-tuple-element(%b), index=1
  %y = f32[8,8]{1,0} get-tuple-element(%b), index=2
  %z = f32[8,8]{1,0} collective-permute(%y), channel_id=1, \
source_target_pairs={{0,1},{1,0}}
  %d = f32[8,8]{1,0} dot(%x, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (u32[]{:T(128)}, f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%k, %d, %z)
}

ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %none = u32[]{:T(128)} constant(0)
  %from = u32[]{:T(128)} copy(%none)
  %start = (u32[]{:T(128)}, f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%from, %p, %p)
  %loop = (u32[]{:T(128)}, f32[8,8]{1,0}, f32[8,8]{1,0}) while(%start), \
condition=%more, body=%body
  ROOT %out = f32[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize("step, turns", [("one", 4), ("i", 1)])
def test_a_loop_that_does_not_say_how_often_it_turns(step, turns):
    """It counts to 8 by twos; or doubles its counter, which nobody follows."""
    text = LOOP.replace("STEP", step)
    assert hlo.trips(hlo.computations(text)[0]) == {"loop": turns}
    products = 2 * 8 * 8 * 8
    found = compat.flops_of_hlo(hlo.unrolled(text))
    assert turns * products <= found < (turns + 1) * products
    (exchange,) = collectives(text, {"data": 2})
    assert (exchange.count, exchange.sent_bytes) == (turns, 8 * 8 * 4)


@pytest.fixture
def plan_small(monkeypatch, tmp_path):
    """`plan(said, step, **fields)` of a small model on a small slice."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(module, "PRESETS", {"small": SMALL})

    def plan(said, step="train", **fields):
        config = TrainConfig(
            stage="diffusion", model="small", batch_size=8, objects=8, **fields
        )
        found = module.plan(config, "v5e:2x4", said.append, tmp_path, step=step)
        print({what: f"{size / 1e6:.1f} MB" for what, size in found.sent.items()})
        return found

    return plan


@pytest.mark.slow
@pytest.mark.tpu_aot
@pytest.mark.parametrize(
    "strategy, remat, exchange",
    [
        ("dp", "none", "all-reduce data"),
        ("fsdp", "none", "all-gather fsdp"),
        ("fsdp", "offload", "all-gather fsdp"),
        ("tp", "none", "all-reduce tensor"),
        ("fsdp_tp", "none", "all-gather fsdp"),
        ("view", "none", "all-to-all view"),
        ("fsdp_view", "none", "all-to-all view"),
    ],
)
def test_a_small_model_for_a_small_slice(plan_small, strategy, remat, exchange):
    said = []
    found = plan_small(said, strategy=strategy, remat=remat)
    assert found.fits
    # Weights, average and two moments, float32, shared out, are what goes in.
    shares = found.mesh["fsdp"] * found.mesh["tensor"]
    assert found.argument_bytes > 4 * 4 * found.parameters / shares
    assert found.sent[exchange] > 0
    assert plan_small(said, strategy=strategy, remat=remat) == found
    assert "found in" in said[-1]


@pytest.mark.slow
@pytest.mark.tpu_aot
@pytest.mark.parametrize(
    "step, strategy, exchange",
    [
        ("denoise", "dp", "collective-permute data"),
        ("denoise", "fsdp", "all-gather fsdp"),
        ("denoise", "fsdp_view", "all-to-all view"),
        ("denoise_3d", "fsdp", "all-gather fsdp"),
    ],
)
def test_a_small_sampler_for_a_small_slice(plan_small, step, strategy, exchange):
    found = plan_small([], step, strategy=strategy)
    assert found.fits and found.step == step
    # Weights of every part that is read, bf16, shared out, are what goes in.
    assert found.argument_bytes > 2 * found.parameters / found.mesh["fsdp"]
    assert (found.parameters > 2_000_000) == (step == "denoise_3d")
    assert found.sent[exchange] > 0


@pytest.mark.slow
@pytest.mark.tpu_aot
def test_two_slices():
    """Gradients are summed within a slice, and their shares between slices."""
    pytest.importorskip("libtpu")
    devices = module._devices("v5e:2x4", 2)
    mesh = make_mesh("fsdp", devices=devices)
    assert mesh.shape["data"] == 2 and module._within_slice(mesh)["data"] == 1
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    over = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32, sharding=over)
    gradient = jax.jit(
        jax.grad(lambda w, x: jnp.square(x @ w).mean()), out_shardings=split
    )
    text = gradient.lower(w, x).compile().as_text()
    sent = totals(collectives(text, module._within_slice(mesh)))
    assert sent["all-reduce", SLICES] == 1024 * 1024 * 4 / 8
    assert sent["reduce-scatter", "fsdp"] > 0
