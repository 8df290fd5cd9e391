import json

import pytest

from benchmarks import pod_cycles
from biggan_jax.plan import compile as compile_lib
from biggan_jax.plan import hlo

ARGS = ("--config=configs/biggan128.py", "--slice=v3-512", "--json")
FACTS = {
    "fits": True,
    "quick": False,
    "compile_seconds": 1.4,
    "versions": {"jax": "1", "libtpu": "2"},
    "memory": {"params": 2**30, "peak": 3 * 2**29},
    "flops": 61.5e10,
    "bytes": 1e9,
    "roofline_seconds": None,
    "cycles": dict.fromkeys(hlo.KINDS, 0) | {"convolutions": 47_000_000, "attention": 9_400_000},
    "collectives": {"all-reduce": {"count": 2, "bytes": 328e6}},
}


def test_cycles_become_milliseconds(capsys, monkeypatch):
    asked = []

    def facts(config, where, **how):
        asked.append((config.model.dtype, where.name, how["hlo"]))
        return FACTS

    monkeypatch.setattr(compile_lib, "facts", facts)
    pod_cycles.main([*ARGS, "--config.model.dtype=bfloat16", "--hlo=x.hlo"])
    got = json.loads(capsys.readouterr().out)
    assert asked == [("bfloat16", "v3-512", "x.hlo")]
    # At 940 MHz; links: 2 x 255 / 256 x 328 MB at 328 GB/s.
    assert got["total_ms"] == 60.0 and got["parts_ms"]["convolutions"] == 50.0
    assert got["parts_ms"]["attention"] == 10.0 and set(got["parts_ms"]) == set(hlo.KINDS)
    assert got["flop_bound_ms"] == 10.0 and got["link_ms"] == 1.99
    assert got["images_a_device"] == 4 and got["memory_gib"]["peak"] == 1.5


def test_what_does_not_fit_has_no_total(capsys, monkeypatch):
    said = {"fits": False, "compiler_says": "Ran out of memory"}
    monkeypatch.setattr(compile_lib, "facts", lambda *_, **__: FACTS | said)
    pod_cycles.main(ARGS)
    got = json.loads(capsys.readouterr().out)
    assert got["total_ms"] is None and got["compiler_says"] == "Ran out of memory"


def test_an_unknown_argument_is_refused(capsys):
    with pytest.raises(SystemExit) as e:
        pod_cycles.main([*ARGS, "--config.batch_size"])
    assert e.value.code == 2 and "--config.batch_size" in capsys.readouterr().err
