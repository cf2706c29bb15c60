"""Reading HLO: kinds, groups, loops."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from videomv_jax.scale.collectives import SLICES, Collective, collectives, totals
from videomv_jax.scale.hlo import memory_traffic
from videomv_jax.sharding import make_mesh

MESH = {"data": 2, "fsdp": 1, "tensor": 1, "view": 4}

TEXT = """HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), channel_id=1, \
replica_groups={{0,4},{1,5},{2,6},{3,7}}, use_global_device_ids=true, to_apply=%add
}

%start (a: f32[2,4]) -> f32[8,4] {
  ROOT %h = f32[8,4]{1,0} all-gather(%a), channel_id=2, \
replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %g = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), channel_id=2, \
replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[8,4]{1,0} all-gather-done(%g)
  %u = f32[8,4]{1,0} fusion(%p), kind=kCustom, calls=%start
  %t = (bf16[3]{0}, bf16[3]{0}, bf16[3]{0}, bf16[3]{0}) all-to-all(%a, %b, %c, %e), \
replica_groups=[2,4]<=[4,2]T(1,0)
  %n = f32[2]{0} reduce-scatter(%p), \
replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, to_apply=%add
  %o = f32[2]{0} reduce-scatter(%p), \
replica_groups=mesh['a'=8] {'a':(1)2}, dimensions={0}, to_apply=%add
  %e = f32[8]{0} all-gather(%p), \
replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}
  %c = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
  %x = (f32[2,4]{1,0}, u32[], token[]) send(%b, %a), channel_id=9, \
is_host_transfer=true, frontend_attributes=\
{_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="all-reduce.1_0"}
  %w = (s32[], f32[8]) while(%i), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_every_kind():
    found = collectives(TEXT, MESH)
    assert found == [
        Collective("all-gather", "view", 1, 128, 96.0),
        Collective("all-to-all", "data+view", 1, 24, 18.0),
        Collective("reduce-scatter", "view", 1, 8, 24),
        Collective("reduce-scatter", "data", 1, 8, 8),
        Collective("all-gather", "view", 1, 32, 24),
        Collective("collective-permute", "view", 1, 16, 16),
        Collective("all-reduce", SLICES, 1, 32, 32),
        Collective("all-reduce", "data", 5, 32, 32.0),
    ]
    assert totals(found)["all-reduce", "data"] == 160


def test_unknown_groups_are_said():
    with pytest.raises(ValueError, match="cannot read"):
        collectives(TEXT.replace("[2,4]<=[8]", "[x]"), MESH)


TRAFFIC = """HloModule jit_f

%fused (a: f32[8,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %s = f32[8,128]{1,0:T(8,128)} add(%a, %a)
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %g = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %f = f32[8,128]{1,0:T(8,128)} fusion(%g, %g), kind=kLoop, calls=%fused
}

ENTRY %main (p: bf16[3,5,160]) -> bf16[3,5,160] {
  %p = bf16[3,5,160]{2,0,1:T(4,128)(2,1)} parameter(0)
  %c = (bf16[3,5,160]{2,0,1:T(4,128)(2,1)S(1)}, bf16[3,5,160]{2,0,1:T(4,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%p)
  %l = ((f32[64,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
async-start(%q), calls=%fused
  %d = f32[8,128]{1,0:T(8,128)S(1)} async-done(%l)
  %w = (s32[], f32[8,128]) while(%i), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_memory_traffic():
    """A copy into the chip, a slice into the chip, and five times a kernel."""
    assert memory_traffic(TRAFFIC) == 2 * 5 * 4 * 256 + 4096 + 5 * 3 * 4096


def test_a_real_program():
    mesh = make_mesh("fsdp", ici={"fsdp": 4})
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=split)
    whole = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(lambda x: 2 * x, out_shardings=whole).lower(x).compile()
    (one,) = collectives(compiled.as_text(), dict(mesh.shape))
    assert one == Collective("all-gather", "fsdp", 1, 16 * 8 * 4, 16 * 8 * 3.0)
