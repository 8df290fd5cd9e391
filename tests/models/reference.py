"""The networks' pieces again, in float64 NumPy, as plainly as they can be written."""

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def up(x):
    return np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)


def pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def max_pool(x):
    parts = [x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]]
    return np.max(parts, axis=0)


def conv(x, kernel, bias=0.0):
    """SAME convolution, one tap after the other."""
    size, (_, h, w, _) = kernel.shape[0], x.shape
    p = size // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    taps = (
        padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(size) for j in range(size)
    )
    return sum(taps) + bias


def sigma(matrix, u, eps):
    """One iteration of the author's port: matrix [out, rest], u [1, out]."""
    v = u @ matrix
    v = v / max(np.linalg.norm(v), eps)
    new_u = v @ matrix.T
    new_u = new_u / max(np.linalg.norm(new_u), eps)
    return (v @ matrix.T @ new_u.T).item(), new_u


def spectral(params, state, eps):
    """Returns the kernel over its sigma and the bias of one of our spectral layers."""
    kernel = np.asarray(params["kernel"], np.float64)
    value, _ = sigma(kernel.reshape(-1, kernel.shape[-1]).T, np.asarray(state["u"], float), eps)
    return kernel / value, np.asarray(params.get("bias", 0.0), float)


def batch_norm(x, gain, bias, eps):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + eps) * gain + bias


def conditional_bn(x, c, params, state, eps, sn_eps):
    gain = 1 + c @ spectral(params["gain"], state["gain"], sn_eps)[0]
    bias = c @ spectral(params["bias"], state["bias"], sn_eps)[0]
    return batch_norm(x, gain[:, None, None], bias[:, None, None], eps)


def attention(x, params, state, eps):
    """Query by query, key by key."""
    n, h, w, _ = x.shape
    project = {k: conv(x, spectral(params[k], state[k], eps)[0]) for k in ("theta", "phi", "g")}
    theta = project["theta"].reshape(n, h * w, -1)
    phi = max_pool(project["phi"]).reshape(n, h * w // 4, -1)
    g = max_pool(project["g"]).reshape(n, h * w // 4, -1)
    out = np.zeros((n, h * w, g.shape[-1]))
    for b in range(n):
        for q in range(h * w):
            scores = np.array([theta[b, q] @ phi[b, k] for k in range(h * w // 4)])
            weights = np.exp(scores - scores.max())
            out[b, q] = (weights / weights.sum()) @ g[b]
    o = conv(out.reshape(n, h, w, -1), spectral(params["o"], state["o"], eps)[0])
    return float(params["gamma"]) * o + x
