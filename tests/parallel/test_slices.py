import math

import pytest

from biggan_jax.config import ConfigError
from biggan_jax.parallel import slices


@pytest.mark.parametrize(
    ("name", "chips", "cores", "devices", "hosts", "topology"),
    [
        # v2, v3: the number counts cores; each is a device.
        ("v2-8", 4, 8, 8, 1, "2x2"),
        ("v2-512", 256, 512, 512, 64, "16x16"),
        ("v3-8", 4, 8, 8, 1, "2x2"),
        ("v3-32", 16, 32, 32, 4, "4x4"),
        ("v3-128", 64, 128, 128, 16, "8x8"),
        ("v3-256", 128, 256, 256, 32, "8x16"),
        ("v3-512", 256, 512, 512, 64, "16x16"),
        ("v3-2048", 1024, 2048, 2048, 256, "32x32"),
        # v4, v5p: the number counts cores; the two of a chip are one device.
        ("v4-8", 4, 8, 4, 1, "2x2x1"),
        ("v4-128", 64, 128, 64, 16, "4x4x4"),
        ("v5p-128", 64, 128, 64, 16, "4x4x4"),
        ("v5p-12288", 6144, 12288, 6144, 1536, "16x16x24"),
        # v5e, v6e: the number counts chips.
        ("v5e-1", 1, 1, 1, 1, "1x1"),
        ("v5e-8", 8, 8, 8, 1, "2x4"),
        ("v5litepod-16", 16, 16, 16, 4, "4x4"),
        ("v6e-256", 256, 256, 256, 64, "16x16"),
        # tpu7x: the number counts cores; each is a device.
        ("tpu7x-8", 4, 8, 8, 1, "2x2x1"),
        ("TPU7x-64", 32, 64, 64, 8, "2x4x4"),
        # Topologies in chips, and GPUs.
        ("v3:8x8", 64, 128, 128, 16, "8x8"),
        ("v5:2x2x4", 16, 32, 16, 4, "2x2x4"),
        ("gpu:h100x8", 8, 8, 8, 1, ""),
        ("gpu:a100x16", 16, 16, 16, 2, ""),  # Two hosts, as two slices.
        ("gpu:h100", 1, 1, 1, 1, ""),
        # Several slices.
        ("v4-128x2", 128, 256, 128, 32, "4x4x4"),
        ("v5e-8x4", 32, 32, 32, 4, "2x4"),
    ],
)
def test_names(name, chips, cores, devices, hosts, topology):
    found = slices.find(name)
    assert (found.chips, found.cores, found.devices) == (chips, cores, devices)
    assert (found.hosts, found.topology) == (hosts, topology)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v3-500", "nearest is v3-512; there are v3-8, v3-32"),
        ("v4-12", "no v4 slice of 12 cores; nearest is v4-8"),
        ("v4-9", "no v4 slice of 9 cores"),  # Half a chip.
        ("v5e-5", "no v5e slice of 5 chips; nearest is v5e-4"),
        ("v3-64x", "did you mean 'v3-64'?"),
        ("v4-128x0", "several such as v4-128x2"),
        ("v4-12x2", "no v4 slice of 12 cores"),
        ("v9-8", "must be a TPU slice such as v3-512"),
        ("", "must be a TPU slice"),
        ("v3:8x8x8", "a topology of v3 has 2 sides"),
        ("v4:4x4", "a topology of v4 has 3 sides of at least 1, as in v4:4x4x4"),
        ("v3:0x8", "at least 1"),
        ("gpu:h300x8", "gpu:h100xN"),
        ("gpu:h100x0", "gpu:h100xN"),
        ("gpu:v3x8", "gpu:h100xN"),
    ],
)
def test_bad_names_are_one_sentence(name, said):
    with pytest.raises(ConfigError) as e:
        slices.find(name)
    assert said in str(e.value) and f"--slice={name}:" in str(e.value)
    assert "\n" not in str(e.value) and str(e.value)[-1] in ".?"


@pytest.mark.parametrize("chip", slices.CHIPS.values(), ids=lambda c: c.name)
def test_every_listed_name_is_found_and_its_sides_make_its_chips(chip):
    for name in slices.names(chip):
        found = slices.find(name)
        assert found.chip is chip
        if found.topology:
            assert math.prod(int(side) for side in found.topology.split("x")) == found.chips


@pytest.mark.parametrize("chip", slices.CHIPS.values(), ids=lambda c: c.name)
def test_figures_agree_with_each_other(chip):
    """Clock x matrix units = peak; the units a chip has are published apart from both."""
    units = {"v2": 2, "v3": 4, "v4": 8, "v5e": 4, "v5p": 8}  # Of 128 x 128.
    if chip.name in units:
        assert chip.clock * 2 * 128**2 * units[chip.name] == pytest.approx(chip.bf16, rel=0.01)
    if chip.platform == "tpu":
        assert chip.usable_bytes * chip.devices == pytest.approx(chip.hbm_bytes, rel=0.07)
    assert chip.source and chip.clock_source


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v3", "v3"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, name):
    chip = slices.of_device(kind)
    assert chip is slices.CHIPS[name]
    half = 2 if chip.platform == "gpu" else 1
    assert slices.matrix_rate(chip, "float32") == chip.bf16 / half
    assert slices.matrix_rate(chip, "bfloat16") == chip.bf16


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090"])
def test_devices_without_figures(kind):
    assert slices.of_device(kind) is None
