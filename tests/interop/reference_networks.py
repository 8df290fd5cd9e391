"""Whole networks in float64 NumPy, straight from spec sections 3 to 8, for evaluation mode.

`generator` and `discriminator` compute. What they take has no names of any file: kernels are HWIO
or [in, out] and already divided by their sigma, the first linear's outputs are (row, column,
channel). The `author_...` functions make that from the tensors of a BigGAN-PyTorch checkpoint; any
other format needs a reader of its own and nothing else.
"""

import re

import numpy as np

from tests.models import reference


def generator(weights, z, labels, z_first=False, calibrate=False):
    """Images [B, R, R, 3] for z [B, Z] and labels [B].

    Args:
      weights: a dict of
        "deep": which of the two architectures;
        "shared": table [K, S], or None where each BN has tables of its own;
        "linear": (kernel, bias);
        "blocks": of each block a dict of "bn1", "bn2" ... (see `batch_norm`), "conv1" ... and, not
          in deep ones, "conv_sc", each (kernel, bias);
        "attention": {number of the block it follows: see `attention`};
        "out_bn", "out_conv": the head.
      z_first: whether the condition is [z, embedding].
      calibrate: normalise with the batch's statistics and write them into the BNs' arrays.
    """
    z, deep = np.asarray(z, np.float64), weights["deep"]
    join = lambda e, part: np.concatenate([part, e] if z_first else [e, part], axis=1)  # noqa: E731
    blocks, table = weights["blocks"], weights["shared"]
    kernel, bias = weights["linear"]
    if table is None:
        first, conditions = z, [np.asarray(labels)] * len(blocks)
    elif deep:
        first = join(f64(table)[labels], z)
        conditions = [first] * len(blocks)
    elif len(kernel) == z.shape[1]:
        first, conditions = z, [f64(table)[labels]] * len(blocks)
    else:
        first, *rest = np.split(z, len(blocks) + 1, axis=1)
        conditions = [join(f64(table)[labels], part) for part in rest]
    h = (first @ kernel + bias).reshape(len(z), 4, 4, -1)
    for i, (block, c) in enumerate(zip(blocks, conditions, strict=True)):
        h = (_deep_g_block if deep else _g_block)(h, block, c, calibrate, double=i % 2 == 1)
        if i in weights["attention"]:
            h = attention(h, weights["attention"][i])
    h = reference.relu(batch_norm(h, weights["out_bn"], None, calibrate))
    kernel, bias = weights["out_conv"]
    return np.tanh(conv(h, (kernel[..., :3], bias[:3])))


def discriminator(weights, images, labels, halvings):
    """Logits [B] for images [B, R, R, 3].

    Args:
      weights: a dict of
        "in_conv": (kernel, bias), or None in networks that are not deep;
        "blocks": of each block a dict of "conv1" ... and perhaps "conv_sc", each (kernel, bias);
        "attention": as in `generator`;
        "linear": (kernel, bias);
        "embed": table [K, C].
      halvings: how many of the first blocks (of the first pairs of blocks, if deep) halve the size.
    """
    h, deep = np.asarray(images, np.float64), weights["in_conv"] is not None
    if deep:
        h = conv(h, weights["in_conv"])
    for i, block in enumerate(weights["blocks"]):
        if deep:
            h = _deep_d_block(h, block, halve=i % 2 == 0 and i // 2 < halvings)
        else:
            h = _d_block(h, block, halve=i < halvings, first=i == 0)
        if i in weights["attention"]:
            h = attention(h, weights["attention"][i])
    h = reference.relu(h).sum((1, 2))
    kernel, bias = weights["linear"]
    return (h @ kernel + bias)[:, 0] + (weights["embed"][labels] * h).sum(1)


def f64(x):
    return np.asarray(x, np.float64)


def conv(x, layer):
    """SAME convolution, a matrix product a tap."""
    kernel, bias = layer
    (n, h, w, _), size, outputs = x.shape, len(kernel), kernel.shape[-1]
    p = size // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    y = np.zeros((n * h * w, outputs))
    for i in range(size):
        for j in range(size):
            y += padded[:, i : i + h, j : j + w].reshape(n * h * w, -1) @ kernel[i, j]
    return y.reshape(n, h, w, outputs) + bias


def batch_norm(x, bn, condition, calibrate):
    """Of a dict of "mean", "var", "eps" and of "gain" and "bias".

    These two are vectors where the condition is None, tables [K, C] where it is labels and kernels
    [D, C] where it is vectors; to the latter two gains 1 is added.
    """
    if calibrate:
        bn["mean"][...], bn["var"][...] = x.mean((0, 1, 2)), x.var((0, 1, 2))
    gain, bias = f64(bn["gain"]), f64(bn["bias"])
    if condition is not None:
        use = (lambda m: m[condition]) if condition.ndim == 1 else (lambda m: condition @ m)
        gain, bias = 1 + use(gain)[:, None, None], use(bias)[:, None, None]
    return (x - f64(bn["mean"])) / np.sqrt(f64(bn["var"]) + bn["eps"]) * gain + bias


def attention(x, weights):
    """Of a dict of "theta", "phi", "g", "o" (kernels) and "gamma"."""
    n, h, w, c = x.shape
    project = {k: conv(x, (weights[k], 0.0)) for k in ("theta", "phi", "g")}
    theta = project["theta"].reshape(n, h * w, -1)
    phi = reference.max_pool(project["phi"]).reshape(n, h * w // 4, -1)
    g = reference.max_pool(project["g"]).reshape(n, h * w // 4, -1)
    scores = theta @ phi.transpose(0, 2, 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ g
    return float(weights["gamma"]) * conv(mixed.reshape(n, h, w, c // 2), (weights["o"], 0.0)) + x


def _g_block(x, block, c, calibrate, double):
    h = reference.up(reference.relu(batch_norm(x, block["bn1"], c, calibrate)))
    h = reference.relu(batch_norm(conv(h, block["conv1"]), block["bn2"], c, calibrate))
    return conv(h, block["conv2"]) + conv(reference.up(x), block["conv_sc"])


def _deep_g_block(x, block, c, calibrate, double):
    h = conv(reference.relu(batch_norm(x, block["bn1"], c, calibrate)), block["conv1"])
    h = reference.relu(batch_norm(h, block["bn2"], c, calibrate))
    h = conv(reference.up(h) if double else h, block["conv2"])
    h = conv(reference.relu(batch_norm(h, block["bn3"], c, calibrate)), block["conv3"])
    h = conv(reference.relu(batch_norm(h, block["bn4"], c, calibrate)), block["conv4"])
    shortcut = x[..., : h.shape[-1]]
    return h + (reference.up(shortcut) if double else shortcut)


def _d_block(x, block, halve, first):
    h = conv(x if first else reference.relu(x), block["conv1"])
    h = conv(reference.relu(h), block["conv2"])
    shortcut = conv(x, block["conv_sc"]) if "conv_sc" in block else x
    return reference.pool(h) + reference.pool(shortcut) if halve else h + shortcut


def _deep_d_block(x, block, halve):
    h = conv(reference.relu(x), block["conv1"])
    h = conv(reference.relu(h), block["conv2"])
    h = reference.relu(conv(reference.relu(h), block["conv3"]))
    h, x = (reference.pool(h), reference.pool(x)) if halve else (h, x)
    if "conv_sc" in block:
        x = np.concatenate([x, conv(x, block["conv_sc"])], axis=-1)
    return conv(h, block["conv4"]) + x


def author_generator(tensors, z, labels, bn_eps, sn_eps, z_first=False, calibrate=False):
    """Images of the generator whose tensors are named as in spec section 18.3.

    The last BN has eps 1e-5. With `calibrate` the stored statistics are overwritten.
    """
    deep = "blocks.0.0.conv4.weight" in tensors
    layers = 4 if deep else 2
    blocks = []
    for i in range(1 + max(_numbers(tensors, r"blocks\.(\d+)\.0\."))):
        name = f"blocks.{i}.0"
        blocks.append(
            {f"bn{k}": _bn(tensors, f"{name}.bn{k}", bn_eps, sn_eps) for k in _to(layers)}
        )
        blocks[i] |= {f"conv{k}": _layer(tensors, f"{name}.conv{k}", sn_eps) for k in _to(layers)}
        if not deep:
            blocks[i]["conv_sc"] = _layer(tensors, f"{name}.conv_sc", sn_eps)
    # The author's first linear makes (channel, row, column).
    kernel, bias = _layer(tensors, "linear", sn_eps)
    by_pixel = lambda x: x.reshape(-1, x.shape[-1] // 16, 4, 4).transpose(0, 2, 3, 1)  # noqa: E731
    weights = {
        "deep": deep,
        "shared": tensors.get("shared.weight"),
        "linear": (by_pixel(kernel).reshape(kernel.shape), by_pixel(bias).reshape(-1)),
        "blocks": blocks,
        "attention": {
            i: _attention(tensors, f"blocks.{i}.1", sn_eps)
            for i in _numbers(tensors, r"blocks\.(\d+)\.1\.gamma$")
        },
        "out_bn": _statistics(tensors, "output_layer.0")
        | {k: tensors[f"output_layer.0.{k}"] for k in ("gain", "bias")}
        | {"eps": 1e-5},
        "out_conv": _layer(tensors, "output_layer.2", sn_eps),
    }
    return generator(weights, z, labels, z_first, calibrate)


def author_discriminator(tensors, images, labels, sn_eps):
    """Logits of the discriminator whose tensors are named as in spec section 18.3."""
    deep = "input_conv.weight" in tensors
    names = sorted({m[0] for k in tensors if (m := re.match(r"blocks\.\d+\.\d+(?=\.conv)", k))})
    blocks = []
    for name in names:
        convs = ("conv1", "conv2", "conv3", "conv4", "conv_sc")
        present = [k for k in convs if f"{name}.{k}.weight" in tensors]
        blocks.append({k: _layer(tensors, f"{name}.{k}", sn_eps) for k in present})
    slot = 2 if deep else 1
    at = _numbers(tensors, rf"blocks\.(\d+)\.{slot}\.gamma$")
    table = tensors["embed.weight"]
    weights = {
        "in_conv": _layer(tensors, "input_conv", sn_eps) if deep else None,
        "blocks": blocks,
        "attention": {
            slot * i + slot - 1: _attention(tensors, f"blocks.{i}.{slot}", sn_eps) for i in at
        },
        "linear": _layer(tensors, "linear", sn_eps),
        # The class table is one matrix (class, feature).
        "embed": f64(table) / reference.sigma(f64(table), f64(tensors["embed.u0"]), sn_eps)[0],
    }
    # 4x4 maps come out, 8x8 at 32 px.
    resolution = images.shape[1]
    halvings = int(np.log2(resolution)) - (3 if resolution == 32 else 2)
    return discriminator(weights, images, labels, halvings)


def _to(n):
    return range(1, n + 1)


def _numbers(tensors, pattern):
    return sorted({int(m[1]) for name in tensors if (m := re.match(pattern, name))})


def _layer(tensors, name, eps):
    weight = f64(tensors[f"{name}.weight"])
    matrix = weight.reshape(len(weight), -1)
    weight = weight / reference.sigma(matrix, f64(tensors[f"{name}.u0"]), eps)[0]
    kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    return kernel, f64(tensors.get(f"{name}.bias", np.zeros(len(weight))))


def _statistics(tensors, name):
    """The arrays themselves, for `calibrate` to write into; new ones where sums were kept."""
    counter = tensors.get(f"{name}.bn.accumulation_counter", np.zeros(1)).item()
    for mean in ("stored_mean", "bn.stored_mean", "bn.running_mean"):
        if f"{name}.{mean}" in tensors:
            pair = [tensors[f"{name}.{key}"] for key in (mean, mean.replace("mean", "var"))]
            pair = [f64(x) / counter for x in pair] if counter > 0 else pair
            return dict(zip(("mean", "var"), pair, strict=True))
    raise KeyError(name)


def _bn(tensors, name, eps, sn_eps):
    bn = _statistics(tensors, name) | {"eps": eps}
    for part in ("gain", "bias"):
        shared = f"{name}.{part}.u0" in tensors
        table = tensors[f"{name}.{part}.weight"]
        bn[part] = _layer(tensors, f"{name}.{part}", sn_eps)[0] if shared else table
    return bn


def _attention(tensors, name, eps):
    kernels = {k: _layer(tensors, f"{name}.{k}", eps)[0] for k in ("theta", "phi", "g", "o")}
    return kernels | {"gamma": tensors[f"{name}.gamma"].item()}
