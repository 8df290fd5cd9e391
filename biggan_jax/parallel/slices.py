"""Slices of TPUs and hosts of GPUs by the names users know, with their makers' published figures.

A name says a generation and a number. For v2, v3, v4, v5p and tpu7x the number counts cores, two
a chip; for v5e and v6e it counts chips. `v3:8x8` names a topology in chips instead. `v4-128x2` are
two slices v4-128, which the data centre's network connects.
"""

import dataclasses
import difflib
import math
import re

from biggan_jax import config as config_lib

GIB = 2**30
_DOCS = "cloud.google.com/tpu/docs"
# CACM 63(7): clocks, float32 peaks, links of 496 and 656 Gbit/s, four a chip. The pages agree: 340
# TB/s of all-reduce in a v3 pod of 1024 chips are 332 GB/s a chip, 51.2 in one of 256 v5e are 200.
_CACM = 'Jouppi et al., "A Domain-Specific Supercomputer", CACM 2020'
_ISCA = 'Jouppi et al., "TPU v4", ISCA 2023'
_FROM_PEAK = "bf16 peak / (2 x 128 x 128 x matrix units), both from " + _DOCS
# Google's page says two 256 x 256 units a core of v6e, which would need 3.5 GHz. The compiler's
# cycles of an 8192-cubed product make 185,000 (v6e) and 211,000 (tpu7x) multiplications each, more
# than two and three units can; four a core give 1.75 and 2.2 GHz.
_DERIVED = (
    "not published; bf16 peak / (2 x 256 x 256 x 4), the fewest units the compiler's counts fit"
)

_2D = {4: "2x2", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_2D_V3 = _2D | {512: "16x32", 1024: "32x32"}
_2D_LITE = {1: "1x1", 8: "2x4"} | _2D
_3D = {
    **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"},
    **{256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"},
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip or GPU as its maker publishes it; rates are peaks, and None is not published.

    Attributes:
      name: the generation, as users write it.
      platform: "tpu" or "gpu".
      compiler_name: what libtpu calls it in a topology.
      cores: TensorCores a chip.
      named_by_cores: whether the number in a name counts cores.
      devices: JAX devices a chip.
      hbm_bytes: a chip.
      usable_bytes: of HBM a device, that the compiler hands out (libtpu 0.0.52's own message).
      bf16: FLOP/s a chip; what convolutions and products run at by default, float32 ones too.
      f32: FLOP/s a chip.
      hbm_rate: bytes/s a chip.
      link_rate: bytes/s that a chip sends over all its links together, one way.
      network_rate: bytes/s a chip of the network between slices, its share of the host's.
      clock: Hz of a core.
      clock_source: where the clock is from.
      source: where the other figures are from.
      shapes: {chips: topology} of the slices to be had.
      chips_a_host: chips that a host (one process) has.
    """

    name: str
    platform: str
    compiler_name: str
    cores: int
    named_by_cores: bool
    devices: int
    hbm_bytes: float
    usable_bytes: float | None
    bf16: float
    f32: float | None
    hbm_rate: float
    link_rate: float | None
    clock: float | None
    clock_source: str
    source: str
    shapes: dict[int, str]
    chips_a_host: int
    network_rate: float | None = None


def _tpu(name, compiler_name, cores, by_cores, devices, hbm, usable, **rest):
    return Chip(
        name=name,
        platform="tpu",
        compiler_name=compiler_name,
        cores=cores,
        named_by_cores=by_cores,
        devices=devices,
        hbm_bytes=hbm * GIB,
        usable_bytes=usable * GIB,
        chips_a_host=4,
        **rest,
    )


def _gpu(name, hbm, bf16, f32, hbm_rate, link_rate, source):
    return Chip(
        name=name,
        platform="gpu",
        compiler_name=name,
        cores=1,
        named_by_cores=False,
        devices=1,
        hbm_bytes=hbm * 1e9,
        usable_bytes=None,
        bf16=bf16,
        f32=f32,
        hbm_rate=hbm_rate,
        link_rate=link_rate,
        clock=None,
        clock_source="not used",
        source=source,
        shapes={},
        chips_a_host=8,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v2", "v2", 2, True, 2, 16, 7.48, bf16=46e12, f32=3e12, hbm_rate=700e9,
             link_rate=4 * 496e9 / 8, clock=700e6, clock_source=_CACM, source=_CACM,
             shapes={n: s for n, s in _2D.items() if n != 32}),
        _tpu("v3", "v3", 2, True, 2, 32, 15.48, bf16=123e12, f32=4e12, hbm_rate=900e9,
             link_rate=4 * 656e9 / 8, clock=940e6, clock_source=_CACM,
             source=f"{_CACM}; {_DOCS}/v3", shapes=_2D_V3),
        _tpu("v4", "v4", 2, True, 1, 32, 30.75, bf16=275e12, f32=None, hbm_rate=1200e9,
             link_rate=6 * 50e9, clock=1050e6, clock_source=_ISCA,
             source=f"{_ISCA}; {_DOCS}/v4", shapes=_3D),
        _tpu("v5e", "v5e", 1, False, 1, 16, 15.75, bf16=197e12, f32=None, hbm_rate=819e9,
             link_rate=400e9 / 2, clock=1.5e9, clock_source=_FROM_PEAK, source=f"{_DOCS}/v5e",
             shapes=_2D_LITE, network_rate=6.4e12 / 256 / 8),
        _tpu("v5p", "v5p", 2, True, 1, 95, 95.73, bf16=459e12, f32=None, hbm_rate=2765e9,
             link_rate=1200e9 / 2, clock=1.75e9, clock_source=_FROM_PEAK, source=f"{_DOCS}/v5p",
             shapes=_3D | {6144: "16x16x24"}, network_rate=50e9 / 8),
        _tpu("v6e", "v6e", 1, False, 1, 32, 31.24, bf16=918e12, f32=None, hbm_rate=1638e9,
             link_rate=800e9 / 2, clock=1.75e9, clock_source=_DERIVED, source=f"{_DOCS}/v6e",
             shapes=_2D_LITE, network_rate=25.6e12 / 256 / 8),
        _tpu("tpu7x", "tpu7x", 2, True, 2, 192, 94.74, bf16=2307e12, f32=None, hbm_rate=7380e9,
             link_rate=1200e9 / 2, clock=2.2e9, clock_source=_DERIVED, source=f"{_DOCS}/tpu7x",
             shapes=_3D),
        _gpu("a100", 80, 312e12, 19.5e12, 2039e9, 600e9 / 2, "NVIDIA A100 80GB SXM data sheet"),
        _gpu("h100", 80, 989e12, 67e12, 3350e9, 900e9 / 2, "NVIDIA H100 SXM data sheet"),
        _gpu("h200", 141, 989e12, 67e12, 4800e9, 900e9 / 2, "NVIDIA H200 SXM data sheet"),
    )
}  # fmt: skip
_ALIASES = {"v5litepod": "v5e", "v5": "v5p", "v7x": "tpu7x"}
_NAME = re.compile(r"([a-z0-9]+)-(\d+)(?:x(\d+))?")
_TOPOLOGY = re.compile(r"([a-z0-9]+):(\d+(?:x\d+){1,2})")
_GPU = re.compile(r"gpu:([a-z0-9]+?)(?:x(\d+))?")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A number of chips that are wired together, or several such slices of one shape.

    Attributes:
      name: as it was asked for, in lower case.
      chip: what it is made of.
      chips: how many, of all slices.
      topology: how those of a slice are wired, in chips ("8x8"); "" for GPUs.
      slices: how many slices; of GPUs, hosts.
    """

    name: str
    chip: Chip
    chips: int
    topology: str
    slices: int = 1

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.chips * self.chip.devices

    @property
    def cores(self) -> int:
        """TensorCores; of GPUs, GPUs."""
        return self.chips * self.chip.cores

    @property
    def hosts(self) -> int:
        """Processes of JAX. Eight chips of v5e or v6e are one host, as all GPUs up to eight are."""
        single = 8 if not self.chip.named_by_cores else self.chip.chips_a_host
        chips = self.chips // self.slices
        hosts = 1 if chips <= single else math.ceil(chips / self.chip.chips_a_host)
        return hosts * self.slices

    def describe(self) -> dict[str, object]:
        """Returns the facts for programs."""
        chip = dataclasses.asdict(self.chip)
        del chip["shapes"]
        counts = {"chips": self.chips, "cores": self.cores, "devices": self.devices}
        counts |= {"hosts": self.hosts, "slices": self.slices}
        return {"name": self.name, "topology": self.topology, **counts, "chip": chip}


def names(chip: Chip) -> list[str]:
    """Returns the names of the slices of a generation, small ones first."""
    if chip.platform == "gpu":
        return [f"gpu:{chip.name}x{n}" for n in (1, 2, 4, 8)]
    factor = chip.cores if chip.named_by_cores else 1
    return [f"{chip.name}-{n * factor}" for n in sorted(chip.shapes)]


# What JAX calls a device, in lower case, begins with one of these; longer ones first.
_KINDS = {
    "nvidia h100 80gb hbm3": "h100",
    "nvidia h200": "h200",
    "nvidia a100-sxm4-80gb": "a100",
    "tpu v5 lite": "v5e",
    "tpu v6 lite": "v6e",
    "tpu v5": "v5p",
    "tpu v2": "v2",
    "tpu v3": "v3",
    "tpu v4": "v4",
    "tpu7x": "tpu7x",
}


def of_device(kind: str) -> Chip | None:
    """Returns the chip of a device by JAX's `device_kind`, None if its figures are not known."""
    found = [name for start, name in _KINDS.items() if kind.lower().startswith(start)]
    return CHIPS[found[0]] if found else None


def matrix_rate(chip: Chip, dtype: str) -> float:
    """Returns the FLOP/s of a chip's matrix units for arrays of a dtype, at JAX's usual precision.

    TPUs multiply float32 arrays in bfloat16; GPUs in TF32, which all of these do at half the rate
    of bfloat16 (their data sheets, without sparsity).
    """
    return chip.bf16 / 2 if chip.platform == "gpu" and dtype == "float32" else chip.bf16


def find(name: str) -> Slice:
    """Returns the slice of a name.

    Args:
      name: `v3-512`, `v5e-16` (also `v5litepod-16`), `tpu7x-64`; `v4-128x2`, two slices;
        `v3:8x8`, a topology in chips; or `gpu:h100x8`; `gpu:h100` is one of them.

    Raises:
      ConfigError: naming the nearest slice and what is allowed.
    """
    asked = name.strip().lower()
    if match := _GPU.fullmatch(asked):
        chip, count = CHIPS.get(match[1]), int(match[2] or 1)
        if chip is not None and chip.platform == "gpu" and count:
            hosts = 1 if count % chip.chips_a_host else count // chip.chips_a_host
            return Slice(asked, chip, count, "", hosts)
    elif match := _NAME.fullmatch(asked):
        chip, count, times = _tpu_chip(match[1]), int(match[2]), int(match[3] or 1)
        if chip is not None and times:
            chips = count // chip.cores if chip.named_by_cores else count
            if chips in chip.shapes and names(chip).count(f"{chip.name}-{count}"):
                return Slice(asked, chip, times * chips, chip.shapes[chips], times)
            raise config_lib.ConfigError(_no_such_size(name, chip, count))
    elif match := _TOPOLOGY.fullmatch(asked):
        chip = _tpu_chip(match[1])
        sides = [int(side) for side in match[2].split("x")]
        if chip is not None:
            wanted = len(next(iter(chip.shapes.values())).split("x"))
            if len(sides) == wanted and all(sides):
                return Slice(asked, chip, math.prod(sides), match[2])
            example = chip.shapes[max(n for n in chip.shapes if n <= 64)]
            raise config_lib.ConfigError(
                f"--slice={name}: a topology of {chip.name} has {wanted} sides of at least 1, as in"
                f" {chip.name}:{example}."
            )
    raise config_lib.ConfigError(_no_such_name(name, asked))


def _tpu_chip(word):
    chip = CHIPS.get(_ALIASES.get(word, word))
    return chip if chip is not None and chip.platform == "tpu" else None


def _no_such_size(name, chip, count):
    known = names(chip)
    nearest = min(known, key=lambda n: abs(int(n.split("-")[1]) - count))
    counts = "cores" if chip.named_by_cores else "chips"
    return (
        f"--slice={name}: there is no {chip.name} slice of {count} {counts}; nearest is {nearest};"
        f" there are {', '.join(known)}."
    )


def _no_such_name(name, asked):
    everything = [n for chip in CHIPS.values() for n in names(chip)]
    near = difflib.get_close_matches(asked, everything, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return (
        f"--slice={name}: must be a TPU slice such as v3-512, v4-64, v5e-16, v5p-128, v6e-256 or"
        f" tpu7x-64, several such as v4-128x2, a topology such as v3:8x8, or gpu:a100xN,"
        f" gpu:h100xN or gpu:h200xN{hint}"
    )
