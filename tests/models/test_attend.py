"""Attention in blocks against the whole map: value and gradients, and what is held."""

import itertools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.models import attend

# Sums of up to 1024 products in float32, exponentials of scores up to 20 (whose rounding errors of
# 1e-6 the exponential keeps as relative ones): a few 1e-6 of a tensor's norm.
TOLERANCE = 1e-5


def _draw(side, narrow, wide, batch=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    queries, keys = side * side, side * side // 4
    shapes = [(queries, narrow), (keys, narrow), (keys, wide), (queries, wide)]
    return [jnp.asarray(rng.standard_normal((batch, *s)), dtype) for s in shapes]


def _value_and_gradients(form, side):
    def run(q, k, v, g):
        f = lambda q, k, v: attend.attend(q, k, v, side=side, form=form)  # noqa: E731
        y, pull = jax.vjp(f, q, k, v)
        return y, *pull(g)

    return run


def _close(got, want, tolerance=TOLERANCE):
    for label, a, b in zip(("value", "dq", "dk", "dv"), got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < tolerance, f"{label}: relative error {error:.2e}"


def _in_float64(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(1, 2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("form", ["plain", "blocked", "whole"])
def test_the_definition(form):
    q, k, v, _ = _draw(8, 5, 7)
    got = attend.attend(q, k, v, side=8, form=form)
    np.testing.assert_allclose(got, _in_float64(q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "narrow", "wide", "block"),
    [(4, 1, 3, 8), (8, 3, 5, 64), (16, 3, 7, 2**10), (32, 5, 9, 2**14), (64, 3, 12, 2**18)],
)
def test_blocks_agree_with_the_whole_map(monkeypatch, side, narrow, wide, block):
    monkeypatch.setattr(attend, "BLOCK", block)
    args = _draw(side, narrow, wide)
    want = jax.jit(_value_and_gradients("plain", side))(*args)
    for form in ("blocked", "whole"):
        _close(jax.jit(_value_and_gradients(form, side))(*args), want)


@pytest.mark.parametrize("form", ["blocked", "whole"])
def test_scores_beyond_the_range_of_exp(form):
    q, k, v, g = _draw(4, 3, 5)
    args = 100 * q, 100 * k, v, g
    want = _value_and_gradients("plain", 4)(*args)
    got = _value_and_gradients(form, 4)(*args)
    assert all(np.isfinite(x).all() for x in got)
    # Scores near 1e5 have steps of 0.008 in float32.
    np.testing.assert_allclose(got[0], want[0], atol=0.02)


@pytest.mark.parametrize("form", ["blocked", "whole"])
def test_bfloat16_keeps_its_dtype(monkeypatch, form):
    monkeypatch.setattr(attend, "BLOCK", 2**8)
    args = _draw(8, 4, 8, dtype=jnp.bfloat16)
    got = jax.jit(_value_and_gradients(form, 8))(*args)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    want = _value_and_gradients("plain", 8)(*(x.astype(jnp.float32) for x in args))
    # 8 bits: 2^-9 for each of scores' gradients, weights and results.
    _close([x.astype(jnp.float32) for x in got], want, 0.02)


def test_padding_for_one_width_changes_nothing():
    """What cuDNN is given, computed by XLA: it wants one width for queries, keys and values."""
    q, k, v, _ = _draw(8, 5, 13)
    got = attend.FORMS["cudnn"](q, k, v, implementation="xla")
    np.testing.assert_allclose(got, _in_float64(q, k, v), rtol=1e-5, atol=1e-5)


def test_eight_devices_move_nothing_but_sums(monkeypatch):
    monkeypatch.setattr(attend, "BLOCK", 2**8)
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:8]
    )
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    args = _draw(8, 3, 5, batch=16)
    run = _value_and_gradients("blocked", 8)
    compiled = jax.jit(run, in_shardings=cut, out_shardings=cut).lower(*args).compile()
    _close(compiled(*(jax.device_put(x, cut) for x in args)), jax.jit(run)(*args))
    assert not re.findall(
        r"all-gather|all-to-all|collective-permute|all-reduce", compiled.as_text()
    )


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _sizes(getattr(value, "jaxpr", value))


def _is_jaxpr(x):
    return isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


@pytest.mark.parametrize(
    ("backend", "dtype", "side"),
    [
        *itertools.product(["cpu", "gpu"], [jnp.float32, jnp.bfloat16], [64, 128]),
        # By the TPU compiler's cycles blocks lose at 64 px, and a map fits.
        *itertools.product(["tpu"], [jnp.float32, jnp.bfloat16], [128]),
    ],
)
def test_large_maps_are_never_whole(backend, dtype, side):
    """By the table that ships, forwards and backwards: BigGAN-128's map and the one at 128 px."""
    queries, keys = side * side, side * side // 4
    shapes = [(2, queries, 12), (2, keys, 12), (2, keys, 48)]
    args = [jax.ShapeDtypeStruct(s, dtype) for s in shapes]

    def run(form):
        def both(q, k, v):
            f = lambda *a: attend.attend(*a, side=side, form=form, backend=backend)  # noqa: E731
            y, pull = jax.vjp(f, q, k, v)
            return pull(y)

        return max(_sizes(jax.make_jaxpr(both)(*args).jaxpr))

    assert run("plain") == 2 * queries * keys
    assert run(None) <= 2 * max(attend.BLOCK, queries * 48)


def test_bad_input_is_named():
    q, k, v, _ = _draw(4, 3, 5)
    with pytest.raises(ConfigError, match="attention: unknown form 'fast'; allowed: 'plain'"):
        attend.attend(q, k, v, side=4, form="fast")
    with pytest.raises(ConfigError, match="form 'cudnn' needs bfloat16, got float32"):
        attend.attend(q, k, v, side=4, form="cudnn")
