"""The real compiler: one small step compiled for eight cores of TPU v3, without a TPU."""

import importlib.util
import json
import os
import re
import sys

import jax
import pytest

from biggan_jax import cli
from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.gan import state as state_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import child
from biggan_jax.plan import compile as compile_lib

V3_8 = slices.find("v3-8")
ARGS = ("--config.batch_size=16", "--config.model.g_ch=8", "--config.model.d_ch=8")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler, libtpu"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of these tests, where plans of the module's config are kept."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield compile_lib.cache_folder()
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def small():
    pairs = [tuple(a.removeprefix("--config.").split("=")) for a in ARGS]
    return config_lib.resolve(config_lib.load("configs/digits.py", pairs), V3_8.devices)


@pytest.fixture(scope="module")
def facts(cache, small):
    said = []
    found = compile_lib.facts(small, V3_8, quick=True, say=said.append)
    assert said[0] == "compiling digits for v3-8 (quick) ..." and said[-1].startswith("compiled")
    return found


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.multiprocess
@needs_libtpu
def test_memory_is_what_the_shapes_say(facts, small):
    state = jax.eval_shape(lambda: state_lib.init(small))
    g, d = count(state.g_params), count(state.d_params)
    assert facts["parameters"] == {"G": g, "D": d}
    m = facts["memory"]
    assert m["params"] == 4 * (g + d)
    # Without a first moment, the second alone; and counts of 4 bytes.
    assert 0 < m["optimizer"] - 4 * (g + d) <= 4 * 4
    assert m["ema"] == 4 * (g + count(state.ema_batch_stats))
    # Two D steps of 16 images over 8 devices: bytes of 16 x 16 x 3 pixels, and a label.
    assert m["batch"] == 2 * 2 * (16 * 16 * 3 + 4)
    assert m["padding"] > 0 and m["temporaries"] > 0
    resident = m["params"] + m["optimizer"] + m["ema"] + m["statistics"] + m["batch"]
    assert resident < m["peak"] < V3_8.chip.usable_bytes and facts["fits"]


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.multiprocess
@needs_libtpu
def test_what_is_sent_is_the_gradients_and_little_else(facts):
    assert set(facts["collectives"]) == {"all-reduce"}
    gradients = 4 * (facts["parameters"]["G"] + 2 * facts["parameters"]["D"])
    # Also sums of batch norm and scalars.
    assert gradients <= facts["collectives"]["all-reduce"]["bytes"] < 1.2 * gradients
    assert facts["unknown_loops"] == 0
    assert facts["flops"] > 1e6 and facts["bytes"] > facts["memory"]["params"]
    assert facts["cycles"]["convolutions"] > 0 and facts["cycles"]["power_iteration"] > 0


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.multiprocess
@needs_libtpu
def test_a_second_plan_is_read_and_a_limit_is_kept(facts, cache, capsys, monkeypatch):
    monkeypatch.setattr(compile_lib, "_ask", lambda *_: pytest.fail("compiled again"))
    argv = ["plan", "--config=configs/digits.py", "--slice=v3-8", "--quick", "--json", *ARGS]
    assert cli.main(argv) == 0
    (row,) = json.loads(capsys.readouterr().out)["plans"]
    assert row["cached"] and row["memory"] == facts["memory"] and row["images_a_device"] == 2
    assert len(list(cache.iterdir())) == 1

    # Each setting that is tried has to be compiled: here it is made up that they take as much.
    monkeypatch.setattr(compile_lib, "_ask", lambda *_: dict(facts))
    gib = facts["memory"]["peak"] / slices.GIB
    assert cli.main([*argv[:4], *ARGS, f"--hbm-limit={gib / 2}"]) == 2
    out = capsys.readouterr().out
    assert f"does not fit: needs {gib:.2f} GiB of {gib / 2:.2f}" in out
    assert "nothing that was tried fits" in out


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.multiprocess
@needs_libtpu
def test_two_slices_are_one_program(cache, tmp_path):
    """Collectives stay within a slice, and sums alone go between: as much as the parameters."""
    where = slices.find("v5e-4x2")
    pairs = [tuple(a.removeprefix("--config.").split("=")) for a in (*ARGS, "parallel=fsdp")]
    config = config_lib.resolve(config_lib.load("configs/digits.py", pairs), where.devices)
    text = tmp_path / "step.hlo"
    found = compile_lib.facts(config, where, quick=True, hlo=str(text))
    groups = re.findall(r" all-(?:gather|reduce)\(.*replica_groups=(\S+?),?\s", text.read_text())
    assert set(groups) == {"{{0,1,2,3}}"} and len(groups) > 10
    assert set(re.findall(r'_megascale_transfer_type="(\w+)"', text.read_text())) == {"ALL_REDUCE"}
    held = 4 * sum(found["parameters"].values())
    assert held / 8 < found["collectives"]["between-slices"]["bytes"] < 4 * held


@pytest.mark.aot
@pytest.mark.multiprocess
@needs_libtpu
def test_a_topology_that_libtpu_does_not_know_is_one_sentence(cache, small):
    where = slices.find("v5e:3x3")
    with pytest.raises(ConfigError, match="libtpu knows no topology 'v5e:3x3'"):
        compile_lib.facts(small, where)


@pytest.mark.parametrize(
    ("message", "need", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total"
            " memory required for HLO temporaries (2.00T) exceeds available HBM (15.48G).",
            2 * 2**40,
            15.48 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space"
            " hbm. Used 24.10G of 15.48G hbm. Exceeded hbm capacity by 8.62G.",
            24.10 * 2**30,
            15.48 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: something new", None, None),
    ],
)
def test_need_and_limit_are_read_from_the_compilers_words(message, need, limit):
    assert child.out_of_memory(message) == (need, limit)


def test_without_libtpu_or_for_gpus_a_sentence_says_what_is_missing(monkeypatch):
    with pytest.raises(ConfigError, match="a compile for GPUs needs XLA's GPU compiler"):
        compile_lib.check(slices.find("gpu:h100x8"))
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'biggan-jax\[plan\]'"):
        compile_lib.check(V3_8)


def test_the_cache_depends_on_config_slice_level_and_source(small, monkeypatch, cache):
    def place(config=small, where=V3_8, quick=False):
        return compile_lib._place(config, where, quick)

    assert place() == place() and place().parent == cache
    other = config_lib.resolve(config_lib.load("configs/digits.py"), 8)
    places = [place(), place(config=other), place(where=slices.find("v2-8")), place(quick=True)]
    monkeypatch.setattr(compile_lib, "_version", lambda name: "0.0.1")
    places.append(place())
    monkeypatch.setattr(compile_lib, "_source_hash", lambda: "")
    places.append(place())
    assert len(set(places)) == len(places)


def test_a_child_that_dies_is_told_with_what_it_said(small, cache, monkeypatch, tmp_path):
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho libtpu has lost heart >&2\nexit 7\n")
    dying.chmod(0o755)
    monkeypatch.setattr(compile_lib, "check", lambda where: None)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(RuntimeError, match=r"ended with code 7:\nlibtpu has lost heart"):
        compile_lib.facts(small, V3_8)
