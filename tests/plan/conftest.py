"""A compiler that is made up, for what is said of its findings."""

import pytest

from biggan_jax.parallel.slices import GIB
from biggan_jax.plan import compile as compile_lib


@pytest.fixture
def compiled(monkeypatch):
    """Needs 1 GiB an image, half with remat, and 1 without ZeRO-1; returns what was compiled."""
    seen = []

    def facts(config, where, quick, say):
        images = config.batch_size // config.accumulation // where.devices
        need = images * GIB / (2 if config.model.remat else 1)
        need += GIB if config.parallel == "data" else 0
        seen.append((where.name, config.batch_size, config.accumulation, config.model.remat))
        common = {"quick": quick, "parameters": {"G": 1, "D": 2}, "compile_seconds": 1.0}
        if need > where.chip.usable_bytes:
            limit = {"limit_bytes": where.chip.usable_bytes, "need_bytes": need}
            return common | limit | {"fits": False, "memory": {}, "compiler_says": "too large"}
        work = config.batch_size / where.devices * (1.3 if config.model.remat else 1.0)
        counts = {"flops": work * 1e12, "bytes": 1.0, "roofline_seconds": None, "cycles": {}}
        links = {"all-reduce": {"count": 1, "bytes": 1e9}}
        rest = {"collectives": links, "unknown_loops": 0, "memory": {"peak": need}}
        return common | counts | rest | {"fits": True}

    monkeypatch.setattr(compile_lib, "facts", facts)
    monkeypatch.setattr(compile_lib, "check", lambda where: None)
    return seen
