"""The numbers that a step reports of itself."""

import jax
import jax.numpy as jnp
import optax

from biggan_jax.gan import losses
from biggan_jax.gan.state import GanState

Metrics = dict[str, jax.Array]

# What the bits of the metric `bad` say is not finite.
BAD = {
    1: "a loss",
    2: "D's gradients",
    4: "G's gradients",
    8: "D's parameters",
    16: "G's parameters",
    32: "G's statistics or a u",
}


def bad_text(mask: int) -> str:
    """Returns what a value of the metric `bad` names, "" for 0: "a loss, D's gradients"."""
    return ", ".join(what for bit, what in BAD.items() if mask & bit)


def of_step(d_seen: list[dict], g_seen: dict) -> Metrics:
    """Returns losses, means of logits and norms of gradients of a step.

    Args:
      d_seen: what each D update saw: {"real", "fake"} logits [A, M] each, and "grad_norm".
      g_seen: what G's update saw: "fake" and "grad_norm".
    """
    real = jnp.stack([x["real"] for x in d_seen])
    fake = jnp.stack([x["fake"] for x in d_seen])
    loss_real, loss_fake = losses.d_hinge(real, fake)
    return {
        "d_loss": loss_real + loss_fake,
        "d_loss_real": loss_real,
        "d_loss_fake": loss_fake,
        "g_loss": losses.g_hinge(g_seen["fake"]),
        "d_real": real.mean(),
        "d_fake": fake.mean(),
        # Of the last update alone: reading all gradients costs time, and what was not finite in an
        # earlier one is so in the last one too.
        "d_grad_norm": d_seen[-1]["grad_norm"],
        "g_grad_norm": g_seen["grad_norm"],
    }


def bad(metrics: Metrics, state: GanState) -> jax.Array:
    """Returns which of `BAD` is not finite: int32, the sum of their bits.

    A norm is finite if all it is made of is, and below 1.8e19: beyond, its square is no float32.
    Such weights are as lost as infinite ones. Losses alone would not do: XLA's CPU programs may
    take max(NaN, 0) for 0, so that D's last ReLU hides a NaN from the logits, not from gradients.
    The average of the parameters and the optimizers' moments are not read: they follow from these.
    """
    statistics = state.g_batch_stats, state.ema_batch_stats
    rest = optax.tree.norm((statistics, state.g_spectral, state.d_spectral))
    values = {
        1: metrics["d_loss"] + metrics["g_loss"],
        2: metrics["d_grad_norm"],
        4: metrics["g_grad_norm"],
        8: metrics["d_norm"],
        16: metrics["g_norm"],
        32: rest,
    }
    bits = [jnp.where(jnp.isfinite(value), 0, bit) for bit, value in values.items()]
    return jnp.stack(bits).sum().astype(jnp.int32)
