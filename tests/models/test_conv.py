"""Every fast form of a convolution against the plain one: value and both gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.models import attend, conv, forms, resample

# Each entry sums 9 * Cin (or B * H * W, for a kernel gradient) products; rounding errors of 6e-8
# grow like the square root of the depth of the sum in blocks, to about 3e-7 relative to the norm of
# the tensor. Winograd's transforms amplify them by about 5. Leave a factor of 3.
EXACT = 1e-6
WINOGRAD = 3e-6

CASES = [
    # function, form, [B, H, W, Cin], Cout, tolerance
    ("conv3x3", "winograd", (4, 8, 12, 24), 16, WINOGRAD),
    ("conv3x3", "winograd", (3, 4, 4, 64), 64, WINOGRAD),
    ("conv3x3", "winograd", (100, 12, 16, 4), 5, WINOGRAD),
    ("conv3x3", "thin", (4, 7, 9, 3), 16, EXACT),
    ("conv3x3", "thin", (4, 8, 8, 16), 3, EXACT),
    ("conv3x3", "thin", (2, 5, 4, 3), 3, EXACT),
    ("conv3x3", "thin", (2, 1, 1, 16), 1, EXACT),
    ("conv3x3", "patched", (4, 5, 7, 15), 13, EXACT),
    ("conv3x3", "patched", (2, 1, 1, 16), 1, EXACT),
    ("up_conv3x3", "fused", (4, 5, 7, 16), 12, EXACT),
    ("up_conv3x3", "fused", (4, 1, 1, 16), 12, EXACT),
    ("up_conv3x3", "fused", (2, 4, 4, 3), 8, EXACT),
    ("conv3x3_down", "fused", (4, 6, 10, 16), 12, EXACT),
    ("conv3x3_down", "fused", (4, 2, 2, 16), 12, EXACT),
    ("conv3x3_down", "fused", (2, 8, 8, 3), 8, EXACT),
    ("up_conv3x3", "phases", (4, 5, 7, 15), 13, EXACT),
    ("up_conv3x3", "phases", (4, 1, 1, 16), 12, EXACT),
    ("conv3x3_down", "phases", (4, 6, 10, 15), 13, EXACT),
    ("conv3x3_down", "phases", (4, 2, 2, 16), 12, EXACT),
    ("conv1x1", "matmul", (4, 5, 6, 16), 12, EXACT),
    ("conv1x1", "matmul", (4, 5, 6, 3), 12, EXACT),
]


def _draw(name, shape, cout, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    k = 1 if name == "conv1x1" else 3
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    w = jnp.asarray(rng.standard_normal((k, k, shape[-1], cout)), dtype)
    out = jax.eval_shape(getattr(conv, name), x, w)
    return x, w, jnp.asarray(rng.standard_normal(out.shape), dtype)


def _value_and_gradients(name, form):
    def run(x, w, g):
        y, pull = jax.vjp(lambda x, w: getattr(conv, name)(x, w, form=form), x, w)
        return y, *pull(g)

    return run


def _close(got, want, tolerance):
    for label, a, b in zip(("value", "dx", "dw"), got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < tolerance, f"{label}: relative error {error:.2e}"


@pytest.mark.parametrize(("name", "form", "shape", "cout", "tolerance"), CASES)
def test_forms_agree_with_plain(name, form, shape, cout, tolerance):
    args = _draw(name, shape, cout)
    want = jax.jit(_value_and_gradients(name, "plain"))(*args)
    _close(jax.jit(_value_and_gradients(name, form))(*args), want, tolerance)


@pytest.mark.parametrize("side", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("name", list(conv.FORMS))
def test_all_sizes_with_odd_channels(name, side):
    """Every form of an operation in one program: 5 to 7 channels, which no tile divides."""
    args = _draw(name, (2, side, side, 5), 7)
    want, *others = jax.jit(
        lambda *a: [_value_and_gradients(name, form)(*a) for form in conv.FORMS[name]]
    )(*args)
    assert len(others) == len(conv.FORMS[name]) - 1
    for got in others:
        _close(got, want, WINOGRAD)


def test_plain_is_the_definition():
    x, w, _ = _draw("conv3x3", (2, 4, 6, 3), 5)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = sum(
        padded[:, p : p + 4, q : q + 6] @ np.asarray(w)[p, q] for p in range(3) for q in range(3)
    )
    np.testing.assert_allclose(conv.conv3x3(x, w, form="plain"), want, rtol=1e-5, atol=1e-5)
    up = resample.nearest_up2(x)
    np.testing.assert_array_equal(up, np.repeat(np.repeat(np.asarray(x), 2, 1), 2, 2))
    np.testing.assert_array_equal(resample.nearest_up2(x, form="window"), up)
    np.testing.assert_allclose(resample.avg_pool2(up), x, rtol=1e-6)
    np.testing.assert_allclose(resample.avg_pool2(up, form="window"), x, rtol=1e-6)
    np.testing.assert_allclose(
        conv.up_conv3x3(x, w, form="plain"), conv.conv3x3(up, w, form="plain"), rtol=1e-6
    )
    np.testing.assert_allclose(
        conv.conv3x3_down(x, w, form="plain"),
        want.reshape(2, 2, 2, 3, 2, 5).mean((2, 4)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["conv3x3", "up_conv3x3", "conv3x3_down", "conv1x1"])
@pytest.mark.parametrize(("cin", "cout"), [(3, 96), (96, 96), (96, 3), (32, 32)])
def test_automatic_choice_agrees_with_plain(name, cin, cout):
    args = _draw(name, (2, 8, 8, cin), cout)
    want = jax.jit(_value_and_gradients(name, "plain"))(*args)
    _close(jax.jit(_value_and_gradients(name, None))(*args), want, WINOGRAD)


@pytest.mark.parametrize("name", ["conv3x3", "up_conv3x3", "conv3x3_down", "conv1x1"])
def test_bfloat16_keeps_its_dtype(name):
    x, w, g = _draw(name, (2, 8, 8, 64), 64, jnp.bfloat16)
    got = jax.jit(_value_and_gradients(name, None))(x, w.astype(jnp.float32), g)
    assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    full = [a.astype(jnp.float32) for a in (x, w, g)]
    want = _value_and_gradients(name, "plain")(*full)
    # bfloat16 keeps 8 bits: 2^-9 for the result, the same for a sum rounded on its way.
    _close([a.astype(jnp.float32) for a in got], want, 0.01)


@pytest.mark.parametrize(("name", "form", "shape", "cout", "tolerance"), CASES[0:1] + CASES[3:])
def test_batch_sharded_over_eight_devices(name, form, shape, cout, tolerance):
    assert jax.device_count() >= 8, "the tests run on 8 simulated devices"
    mesh = jax.make_mesh(
        (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:8]
    )
    by_image = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x, w, g = _draw(name, (16, *shape[1:]), cout)
    run = _value_and_gradients(name, form)
    want = jax.jit(run)(x, w, g)
    compiled = (
        jax.jit(
            run,
            in_shardings=(by_image, copied, by_image),
            out_shardings=(by_image, by_image, copied),
        )
        .lower(x, w, g)
        .compile()
    )
    got = compiled(
        jax.device_put(x, by_image), jax.device_put(w, copied), jax.device_put(g, by_image)
    )
    _close(got, want, tolerance)
    text = compiled.as_text()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", text)
    assert "all-reduce" in text  # Of the kernel gradient.


def test_the_table_decides(monkeypatch):
    table = {"cpu": {"float32": {"conv3x3": {"1": {"1": "winograd", "16": "plain"}}}}}
    monkeypatch.setattr(forms, "table", lambda: table)
    calls = []
    spy = lambda form: lambda x, w: calls.append(form) or x  # noqa: E731
    known = {form: spy(form) for form in conv.FORMS["conv3x3"]}
    monkeypatch.setitem(conv.FORMS, "conv3x3", known)
    w = jnp.zeros((3, 3, 4, 4))
    image = lambda side, dtype=jnp.float32: jnp.zeros((1, side, side, 4), dtype)  # noqa: E731
    conv.conv3x3(image(8), w)
    conv.conv3x3(image(16), w)
    conv.conv3x3(image(6), w)  # Winograd cannot.
    conv.conv3x3(image(8, jnp.bfloat16), w)  # Nor is that dtype in the table.
    conv.conv3x3(image(8), w, backend="tpu")
    assert calls == ["winograd", "plain", "plain", "plain", "plain"]


def test_the_table_that_ships_names_forms_that_exist():
    known = conv.FORMS | {"attention": attend.FORMS}
    known |= dict.fromkeys(("nearest_up2", "avg_pool2"), dict.fromkeys(resample.FORMS))
    entries = [
        (operation, form)
        for backend in forms.table().values()
        for dtype in ("float32", "bfloat16")
        for operation, by_channels in backend.get(dtype, {}).items()
        for by_side in by_channels.values()
        for form in by_side.values()
    ]
    assert len(entries) > 5
    assert all(form in known[operation] for operation, form in entries)


def test_second_derivative_is_right():
    x, w, g = _draw("conv3x3", (2, 8, 8, 8), 8)

    def penalty(form):
        def loss(x, w):
            y = conv.conv3x3(jnp.tanh(x), w, form=form)
            return jnp.sum(jnp.tanh(y) * g)

        return lambda w: jnp.sum(jax.grad(loss)(x, w) ** 2)

    want = jax.grad(penalty("plain"))(w)
    got = jax.grad(penalty("winograd"))(w)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-5


def test_bad_input_is_named():
    x, w, _ = _draw("conv3x3", (1, 6, 6, 16), 16)
    for name in ("conv3x3", "up_conv3x3", "conv3x3_down", "conv1x1"):
        with pytest.raises(ConfigError, match=rf"{name}: unknown form 'fast'"):
            getattr(conv, name)(x, w, form="fast")
    with pytest.raises(ConfigError, match="divisible by 4, got 6x6"):
        conv.conv3x3(x, w, form="winograd")
    with pytest.raises(ConfigError, match="at most 8 input or output channels"):
        conv.conv3x3(x, w, form="thin")
    with pytest.raises(ConfigError, match="must be even, got 5x6"):
        conv.conv3x3_down(x[:, :5], w)
    with pytest.raises(ConfigError, match="must be even, got 6x5"):
        resample.avg_pool2(x[:, :, :5])
