"""Paths through latents and classes, frame by frame. Pure NumPy, in float64 until the end."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError

WAYS = ("spherical", "linear")
Point = tuple[Any, Any]  # A latent [D], and a class number or the weights of the classes [K].

_PARALLEL = 1e-6  # Radians within which two directions are one, or opposite.


def lerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns the straight way from a to b.

    Args:
      a: [D].
      b: [D].
      t: [F], from 0 (a, exactly) to 1 (b, exactly).

    Returns:
      [F, D], float64.
    """
    a, b, t = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(t)[:, None]
    return (1 - t) * a + t * b


def slerp(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Returns the way from a to b along the sphere.

    The direction turns in the plane of both at constant angular speed, the length goes from that of
    a to that of b linearly. Latents are drawn from a normal, whose lengths are nearly all alike: a
    straight way between two leads through lengths that are never drawn.

    Args:
      a: [D], not zero.
      b: [D], not zero and not opposite to a.
      t: [F], from 0 (a, exactly) to 1 (b, exactly).

    Returns:
      [F, D], float64.

    Raises:
      ConfigError: if there is no one way along the sphere.
    """
    a, b, t = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(t)[:, None]
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if not all(lengths):
        raise ConfigError("a latent of zeros has no direction to turn from: walk linearly.")
    u, v = a / lengths[0], b / lengths[1]
    # Of nearly parallel directions the arc cosine of their product would know half the digits.
    angle = 2 * np.arctan2(np.linalg.norm(v - u), np.linalg.norm(v + u))
    if angle > np.pi - _PARALLEL:
        raise ConfigError(
            "two latents are opposite, with many ways along the sphere: walk linearly."
        )
    if angle < _PARALLEL:
        return lerp(a, b, t[:, 0])
    direction = (np.sin((1 - t) * angle) * u + np.sin(t * angle) * v) / np.sin(angle)
    between = direction * ((1 - t) * lengths[0] + t * lengths[1])
    return np.where(t == 0, a, np.where(t == 1, b, between))


def path(
    latents: Sequence[np.ndarray] | np.ndarray,
    mixes: Sequence[np.ndarray] | np.ndarray,
    frames: int,
    how: str = "spherical",
    loop: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Walks from point to point.

    Args:
      latents: [M, D], M at least 2.
      mixes: [M, K] weights of the classes; they go linearly, as the class embeddings then do.
      frames: from each point to before the next, at least 1.
      how: of `WAYS`, for the latents.
      loop: whether a last leg leads back to the first point, up to the frame before it: shown over
        and over, no frame comes twice.

    Returns:
      Latents [F, D] and mixes [F, K], float32; F is M * frames of a loop, else
      (M - 1) * frames + 1. The points themselves are frames.

    Raises:
      ConfigError: if an argument cannot be used.
    """
    if how not in WAYS:
        raise ConfigError(f"--how={how}: must be one of {', '.join(WAYS)}.")
    if frames < 1:
        raise ConfigError(f"--frames={frames}: must be at least 1.")
    if len(latents) < 2 or len(latents) != len(mixes):
        raise ConfigError("a walk needs two points or more, each a latent and a class.")
    latents, mixes = np.asarray(latents, np.float64), np.asarray(mixes, np.float64)
    t = np.arange(frames) / frames
    move = slerp if how == "spherical" else lerp
    z, mix = [], []
    for i in range(len(latents) if loop else len(latents) - 1):
        j = (i + 1) % len(latents)
        still = np.array_equal(latents[i], latents[j])
        z.append(
            np.repeat(latents[i : i + 1], frames, 0) if still else move(latents[i], latents[j], t)
        )
        mix.append(lerp(mixes[i], mixes[j], t))
    if not loop:
        z.append(latents[-1:])
        mix.append(mixes[-1:])
    return np.concatenate(z).astype(np.float32), np.concatenate(mix).astype(np.float32)


def only_chunks(
    latents: np.ndarray, base: np.ndarray, chunks: Sequence[int], slots: int
) -> np.ndarray:
    """Keeps all but some chunks of split latents as they are in `base`.

    Args:
      latents: [M, D], of which the chunks are taken.
      base: [D], of which all else is taken.
      chunks: numbers from 0 to slots - 1; 0 makes the first layer, i conditions block i - 1.
      slots: in how many chunks of one length z is split.

    Returns:
      [M, D].

    Raises:
      ConfigError: if a chunk is none.
    """
    for chunk in chunks:
        if not 0 <= chunk < slots:
            raise ConfigError(f"--chunks: {chunk} is none of the chunks 0 to {slots - 1} of z.")
    result = np.tile(base, (len(latents), 1)).reshape(len(latents), slots, -1)
    result[:, list(chunks)] = latents.reshape(len(latents), slots, -1)[:, list(chunks)]
    return result.reshape(latents.shape)
