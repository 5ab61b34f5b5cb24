"""What a compiled step exchanges and moves, read from its text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lae_jax.compile import hlo

# As a TPU's and a GPU's compiler write it: layouts with brackets, tuples, started and finished operations, a loop.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[64]{0:T(128)})->f32[64]{0:T(128)}}

%body.1 (arg.1: (s32[], f32[64])) -> (s32[], f32[64]) {
  %arg.1 = (s32[]{:T(128)}, f32[64]{0:T(128)S(1)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %sum = f32[64]{0:T(128)} get-tuple-element(%arg.1), index=1
  %all-reduce.3 = f32[64]{0:T(128)} all-reduce(%sum), channel_id=2, replica_groups={{0,1}}, to_apply=%add
  ROOT %both = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%count, %all-reduce.3)
}

%condition.1 (arg.2: (s32[], f32[64])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0:T(128)} parameter(0)
  %start = (f32[64]{0}, f32[2,64]{1,0}) all-gather-start(%x), dimensions={0}
  %done = f32[2,64]{1,0} all-gather-done(%start)
  %halves = bf16[2,64]{1,0:T(8,128)(2,1)} fusion(%done), kind=kLoop, calls=%fused
  %pair = (f32[64]{0}, bf16[2,64]{1,0}) all-reduce-start(%x, %halves), to_apply=%add
  %paired = (f32[64]{0}, bf16[2,64]{1,0}) all-reduce-done(%pair)
  %begin = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%zero, %x)
  %loop = (s32[], f32[64]{0}) while(%begin), condition=%condition.1, body=%body.1, config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[64]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def test_types_have_sizes():
    assert hlo.size("f32[8,3]{1,0:T(8,128)}") == 96 and hlo.size("pred[]") == 1 and hlo.size("bf16[5]") == 10
    assert hlo.size("(s32[], u8[2,2], f8e4m3fn[3], f64[])") == 4 + 4 + 3 + 8


def test_collectives_count_as_often_as_they_run():
    gather, *rest = sorted(hlo.exchanges(TEXT), key=lambda one: one.kind)
    assert gather == hlo.Exchange("all-gather", 1, 2 * 64 * 4)
    assert rest == [hlo.Exchange("all-reduce", 4, (64 * 4 + 128 * 2) + 3 * 64 * 4)]


def test_a_loop_of_a_tpu_runs_until_its_counter_reaches_a_constant():
    """The compiler of TPUs writes no trip count."""
    told = TEXT.replace(', config={"known_trip_count":{"n":"3"}}', "").replace(
        "  ROOT %less = pred[]{:T(512)} constant(true)\n",
        "  %three = s32[]{:T(128)} constant(3)\n"
        "  %counter = s32[]{:T(128)} get-tuple-element(%arg.2), index=0\n"
        "  ROOT %less = pred[]{:T(512)} compare(%counter, %three), direction=LT\n",
    )
    assert "known_trip_count" not in told
    assert hlo.exchanges(told) == hlo.exchanges(TEXT) and hlo.traffic(told) == hlo.traffic(TEXT)
    unknown = told.replace("direction=LT", "direction=NE")
    assert hlo.traffic(unknown) == hlo.traffic(TEXT) - 2 * 512
    assert hlo.loop_factor(TEXT) == hlo.traffic(TEXT) / hlo.traffic(unknown) and hlo.loop_factor(unknown) == 1


def test_the_bytes_that_instructions_move():
    gather, fused, pair = 256 + 512, 512 + 256, (256 + 256) * 2
    assert hlo.traffic(TEXT) == gather + fused + pair + 3 * 512


@pytest.mark.parametrize("length", [1, 5])
def test_the_text_of_this_jax_is_read(length):
    """A loop of all-reduces, an all-gather and a product on 8 devices, as XLA writes them for CPUs."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("batch",))

    def step(x):
        def once(carry, _):
            return carry + jax.lax.pmean(jnp.sin(carry), "batch"), None

        looped, _ = jax.lax.scan(once, x, None, length=length)
        return jax.lax.all_gather(looped @ looped.T, "batch")

    mapped = jax.shard_map(step, mesh=mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec(), check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 16), jnp.float32)).compile().as_text()
    found = {one.kind: (one.count, one.bytes) for one in hlo.exchanges(text)}
    assert found == {"all-reduce": (length, length * 4 * 16 * 4), "all-gather": (1, 8 * 4 * 4 * 4)}
    least = (length * 2 * 4 * 16 + 2 * 4 * 16) * 4  # each all-reduce and the product read and write once
    assert least <= hlo.traffic(text) < 20 * least
