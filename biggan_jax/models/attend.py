"""softmax(q k^T) v without a scale, in forms that differ in rounding and in what they hold.

`plain` holds the whole map, queries by keys, and for the backward pass again. `blocked` holds
blocks of it: a block of queries meets all keys at once, so its softmax is whole and needs no
running maximum, and the backward pass computes the block again from the logarithm of its sum (Dao
et al. 2022, section 3.1, with all keys as one tile). `whole` does the same with all queries as one
block, which reads the map fewer times than `plain`. Softmax is in float32 whatever the arrays are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from biggan_jax.config import ConfigError
from biggan_jax.models import forms

BLOCK = 2**18  # Entries of a block, at most: queries times keys of an image.


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    side: int,
    form: str | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Mixes values by the softmax of products; no 1 / sqrt(d), as in the reference.

    Args:
      q: queries `[B, Q, D]`, float32 or bfloat16.
      k: keys `[B, K, D]`.
      v: values `[B, K, E]`.
      side: of the square of pixels that the queries are, for the table.
      form: "plain", "blocked", "whole", "cudnn" (NVIDIA's, for bfloat16), or None for the one in
        the table.
      backend: whose table, as for `conv.conv3x3`.

    Returns:
      `[B, Q, E]` in the dtype of `v`.

    Raises:
      ConfigError: The form is unknown or cannot take these arrays.
    """
    if form is None:
        backend = backend or jax.default_backend()
        form = forms.look_up(forms.table(), backend, v.dtype.name, "attention", v.shape[-1], side)
        if cannot(form, v):
            form = "blocked"  # Whoever names another form than the plain one wants no whole map.
    forms.check("attention", form, FORMS)
    if reason := cannot(form, v):
        raise ConfigError(f"attention: form {form!r} {reason}; use form 'blocked'")
    return FORMS[form](q, k, v)


def cannot(form: str, v: jax.Array) -> str | None:
    """Returns why a form cannot take values `[B, K, E]`, or None."""
    if form == "cudnn" and v.dtype != jnp.bfloat16:
        return f"needs bfloat16, got {v.dtype.name}"
    if form == "cudnn" and v.shape[-1] > 128:
        return f"needs at most 128 channels of values, got {v.shape[-1]}"
    return None


def _plain(q, k, v):
    scores = _scores(q, k)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bqk,bkd->bqd", weights, v)


def _scores(q, k):
    return jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)


def _cuts(queries, keys):
    """How many blocks of equal size: the fewest whose entries are at most `BLOCK`."""
    count = max(1, -(-queries * keys // BLOCK))
    while queries % count:
        count += 1
    return count


def _forward_block(q, k, v):
    """One block of queries: what comes out, and the logarithm of each row's sum."""
    scores = _scores(q, k)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum(
        "bqk,bkd->bqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    # Divided where there are fewer numbers.
    return (mixed / total).astype(v.dtype), largest + jnp.log(total)


def _backward_block(q, k, v, out, log_total, g):
    """Gradients of one block of queries: its own, and its part of those of keys and values."""
    weights = jnp.exp(_scores(q, k) - log_total)
    low = weights.astype(v.dtype)
    to_f32 = {"preferred_element_type": jnp.float32}
    dv = jnp.einsum("bqk,bqd->bkd", low, g, **to_f32)
    dweights = jnp.einsum("bqd,bkd->bqk", g, v, **to_f32)
    inner = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    dscores = (weights * (dweights - inner)).astype(q.dtype)
    dq = jnp.einsum("bqk,bkd->bqd", dscores, k)
    return dq, jnp.einsum("bqk,bqd->bkd", dscores, q, **to_f32), dv


def _whole_forward(q, k, v):
    # A value of ones: the product sums the weights too, so that nothing reads the map for it.
    ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
    scores = _scores(q, k)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest).astype(v.dtype)
    mixed = jnp.einsum(
        "bqk,bkd->bqd", weights, jnp.concatenate([v, ones], -1), preferred_element_type=jnp.float32
    )
    mixed, total = mixed[..., :-1], mixed[..., -1:]
    out = (mixed / total).astype(v.dtype)
    return out, (q, k, v, out, largest + jnp.log(total))


def _whole_backward(saved, g):
    q, k, v, out, log_total = saved
    dq, dk, dv = _backward_block(q, k, v, out, log_total, g)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype)


# Where nothing is differentiated there is nothing to save.
_whole = jax.custom_vjp(_plain)
_whole.defvjp(_whole_forward, _whole_backward)


def _split(x, count):
    """`[B, N, D]` -> `count` blocks `[count, B, N / count, D]`."""
    b, n, d = x.shape
    return x.reshape(b, count, n // count, d).swapaxes(0, 1)


def _join(blocks):
    count, b, n, d = blocks.shape
    return blocks.swapaxes(0, 1).reshape(b, count * n, d)


def _blocked_forward(q, k, v):
    count = _cuts(q.shape[1], k.shape[1])
    out, log_total = jax.lax.map(lambda block: _forward_block(block, k, v), _split(q, count))
    return _join(out), (q, k, v, out, log_total)


def _blocked_backward(saved, g):
    q, k, v, out, log_total = saved
    count = len(out)

    def step(sums, block):
        dq, dk, dv = _backward_block(block[0], k, v, *block[1:])
        return (sums[0] + dk, sums[1] + dv), dq

    zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    blocks = (_split(q, count), out, log_total, _split(g, count))
    (dk, dv), dq = jax.lax.scan(step, zeros, blocks)
    return _join(dq), dk.astype(k.dtype), dv.astype(v.dtype)


@jax.custom_vjp
def _blocked(q, k, v):
    return _blocked_forward(q, k, v)[0]


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _fused(q, k, v, implementation="cudnn"):
    """As `jax.nn.dot_product_attention` has it: one width for all, a multiple of 8; zeros pad."""
    width = -(-max(q.shape[-1], v.shape[-1]) // 8) * 8
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))[:, :, None]  # noqa: E731
    out = jax.nn.dot_product_attention(
        pad(q), pad(k), pad(v), scale=1.0, implementation=implementation
    )
    return out[:, :, 0, : v.shape[-1]]


FORMS: dict[str, Callable[..., jax.Array]] = {
    "plain": _plain,
    "blocked": _blocked,
    "whole": _whole,
    "cudnn": _fused,
}
