"""Counts of `snippet.hlo`, which is in the compiler's own form and can be counted by hand."""

import pathlib

import pytest

from biggan_jax.plan import hlo

TEXT = (pathlib.Path(__file__).parent / "snippet.hlo").read_text()


@pytest.fixture
def program():
    return hlo.Program(TEXT)


def test_collectives_count_bytes_of_what_is_sent(program):
    assert program.collectives() == {
        # f32[64] and bf16[3,3,16,32] once, f32[256] in each of the 7 rounds of the loop.
        "all-reduce": {"count": 1 + 7, "bytes": 256 + 4608 * 2 + 7 * 1024},
        "all-gather": {"count": 1, "bytes": 1024},  # What it makes, of a start with both sides.
        "reduce-scatter": {"count": 1, "bytes": 1024},  # What it takes.
        "collective-permute": {"count": 1, "bytes": 128},  # Without the flags of its start.
    }


SEND = """ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[4,8]{1,0}, u32[], token[]) send(%p, %token), channel_id=6, is_host_transfer=true,\
 frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %other = (f32[4,8]{1,0}, u32[], token[]) send(%p, %token), channel_id=7, is_host_transfer=true
  ROOT %sum = f32[4,8]{1,0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_what_goes_to_other_slices_is_told_apart():
    assert hlo.Program(SEND).collectives() == {
        "between-slices": {"count": 1, "bytes": 128},
        "all-reduce": {"count": 1, "bytes": 128},
    }


# The form in which the compiler for v5e writes a gather beside convolutions; a line a step.
GATHER = """ all-gather(%p), channel_id={channel}, replica_groups={{{{0,1}}}}, dimensions={{0}},\
 use_global_device_ids=true, frontend_attributes={{chain_id="{chain}"}}"""
STEPS = """%start (p: bf16[4,8]) -> bf16[8,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %flag = u32[] custom-call(), channel_id=7, frontend_attributes={{chain_id="3"}}
  ROOT %gather.1 = bf16[8,8]{{1,0}}{first}
}}

%async_collective_fusion.1 (p: bf16[4,8]) -> bf16[8,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  ROOT %gather.2 = bf16[8,8]{{1,0}}{second}
}}

ENTRY %main (p: bf16[4,8]) -> bf16[8,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %one = bf16[8,8]{{1,0}} fusion(%p), kind=kCustom, calls=%start
  ROOT %two = bf16[8,8]{{1,0}} fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
}}
"""


@pytest.mark.parametrize(("second", "count"), [((7, 3), 1), ((7, 4), 2), ((8, 3), 2)])
def test_the_steps_of_one_gather_count_once(second, count):
    lines = [GATHER.format(channel=i, chain=k) for i, k in ((7, 3), second)]
    found = hlo.Program(STEPS.format(first=lines[0], second=lines[1])).collectives()
    assert found == {"all-gather": {"count": count, "bytes": count * 128}}


def test_cycles_are_of_what_runs_and_as_often(program):
    expected = dict.fromkeys(hlo.KINDS, 0)
    # The fusion is named after its ReLU and is timed by the convolution inside; the cycles written
    # beside that one and in a computation that nobody calls are not counted.
    expected |= {"convolutions": 4000, "power_iteration": 300, "optimizer_ema": 50}
    assert program.cycles() == expected | {"reductions": 7 * 100, "other": 7 * 10}


def test_loops_multiply_flops_and_bytes(program):
    # A side of 8 has 22 products with a kernel of 3: those with the padding are none.
    conv, product = 2 * (4 * 32 * 16) * 22 * 22, 2 * 64 * 32
    outside = (16384 + 8192 + 9216) + (256 + 8192 + 128) + 3 * 1024
    inside = 2 * 1024 + (256 + 8192 + 128)
    flops, moved = program.loop_factors()
    assert flops == pytest.approx((conv + product + 7 * product) / (conv + 2 * product), rel=1e-12)
    assert moved == pytest.approx((outside + 7 * inside) / (outside + inside), rel=1e-12)
    assert program.unknown_loops == []


def test_a_loop_whose_length_is_not_told_is_named_and_counts_once():
    program = hlo.Program(TEXT.replace("direction=LT", "direction=NE"))
    assert program.unknown_loops == ["while.1"]
    assert program.cycles()["reductions"] == 100
    known = TEXT.replace(
        "body=%body,", 'body=%body, backend_config={"known_trip_count":{"n":"5"}},'
    )
    assert hlo.Program(known).cycles()["reductions"] == 500


@pytest.mark.parametrize(
    ("op_name", "kind"),
    [
        ("jit(step)/transpose(jvp(Generator))/block1/conv1/conv_general_dilated", "convolutions"),
        ("jit(step)/Generator/attention64/theta/conv_general_dilated", "convolutions"),
        ("jit(step)/Discriminator/block1/conv1/conv1.normalized/dot_general", "power_iteration"),
        ("jit(step)/jvp(Generator)/linear/linear.normalized/reduce_sum", "power_iteration"),
        ("jit(step)/jvp(Discriminator)/attention64/bqd,bkd->bqk/dot_general", "attention"),
        ("jit(step)/Generator/block1/conv0/broadcast_in_dim", "resampling"),
        ("jit(step)/jvp(Discriminator)/block1/conv_sc/reduce_sum", "resampling"),
        ("jit(step)/Generator/block1/bn0/reduce_sum", "reductions"),
        ("jit(step)/dot_general", "orthogonal"),
        ("jit(step)/mul", "optimizer_ema"),
        ("jit(step)/reduce_sum", "optimizer_ema"),
        ("jit(step)/jit(_normal)/erf_inv", "other"),
        ("jit(step)/jit(_threefry_split)/Update._keys/add", "other"),
        ("jit(step)/Generator/block1/jit(relu)/max", "other"),
        ("", "other"),
    ],
)  # fmt: skip
def test_kinds(op_name, kind):
    assert hlo.kind_of(op_name) == kind


def test_shape_bytes():
    assert hlo.shape_bytes("(f32[2,3]{1,0:T(8,128)}, /*index=1*/pred[5], bf16[])") == 24 + 5 + 2
    assert hlo.shape_bytes("f8e4m3fn[10]{0}") == 10
    assert hlo.shape_bytes("s4[10]") == 5
    assert hlo.shape_bytes("token[]") == 0


@pytest.mark.parametrize(
    ("window", "given", "kernel", "made", "count"),
    [
        ("size=3 pad=1_1", 8, 3, 8, 22),
        ("size=3 stride=2 pad=0_1", 8, 3, 4, 11),
        ("size=3 pad=2_2 rhs_dilate=2", 8, 3, 8, 20),
        ("size=128 pad=1_1", 128, 128, 3, 3 * 128 - 2),  # The gradient of a kernel.
        ("size=2 pad=-1_-1", 8, 2, 5, 10),
        # A product of four batches: each entry meets its own.
        ("size=4 stride=3 lhs_dilate=4", 4, 4, 4, 4),
    ],
)
def test_products_of_a_window(window, given, kernel, made, count):
    parts = dict(part.split("=") for part in window.split())
    two = " ".join(f"{key}={'0_0' if key == 'pad' else 1}x{value}" for key, value in parts.items())
    assert hlo._products(f"window={{{two}}}", 1, given, kernel, made) == count
    assert hlo._products(f"window={{{window}}}", 0, given, kernel, made) == count
    assert hlo._products("dim_labels=bf_io->bf", 0, given, 1, given) == given
