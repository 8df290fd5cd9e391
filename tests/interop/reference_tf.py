"""BigGANs under TensorFlow's names: random weights, files of them, and float64 NumPy networks.

Written from the tables of the spec (sections 3, 4, 6 and 18) on the authors' own tensors: their
names, layouts, order of the condition, sides of u and sums of statistics.
"""

import functools
import itertools
import json
import os

import jax
import numpy as np

from biggan_jax.interop import layout
from biggan_jax.models import networks
from tests.models.reference import conv, max_pool, pool, relu, sigma, up

# In multiples of ch: channels of 4x4 and after each block (BigGAN) or stage of two (BigGAN-deep).
G_WIDTHS = {
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
HUB_CHUNK = {128: 20, 256: 20, 512: 16}
HUB_ATTENTION = {128: 64, 256: 128, 512: 64}
MOMENTS = ("mean", "var")


class Tensors(dict):
    """Random tensors by name, float32."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def normal(self, name, *shape, std=1.0, mean=0.0):
        self[name] = self.rng.normal(mean, std, shape).astype(np.float32)

    def uniform(self, name, low, high, *shape):
        self[name] = self.rng.uniform(low, high, shape).astype(np.float32)


def save(prefix, tensors):
    """Writes a checkpoint of exactly these names."""
    import tensorflow as tf

    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(np.asarray(v)) for v in tensors.values()],
    )


def _number(i):
    return f"_{i}" if i else ""


ABSTRACT = layout.abstract


@functools.cache
def _shapes(model):
    return ABSTRACT(json.loads(model))


def quick_shapes(model):
    """`layout.abstract`, which takes a second, once a model."""
    return _shapes(json.dumps(model))


@functools.cache
def _program(model, network):
    g, d = networks.build({"model": json.loads(model)})
    if network == "d":
        return jax.jit(d.apply)
    return jax.jit(lambda variables, z, labels: g.apply(variables, z, labels, train=False))


def run(bundle, network, inputs, labels, **changed):
    """What a network of a bundle makes; `changed` names collections and their flat tensors."""
    variables = layout.unflatten(bundle.part(network)) | {
        name: layout.unflatten(flat)[name] for name, flat in changed.items()
    }
    program = _program(json.dumps(bundle.model), "d" if network == "d" else "g")
    return np.asarray(program(variables, np.float32(inputs), np.int32(labels)))


# TF-Hub: BigGAN (section 18.5).


def hub_biggan(resolution, ch=8, classes=7, shared=128, seed=0, averaged="/ema_b999900"):
    """Variables of a BigGAN module; those of `averaged=""` are the raw ones."""
    t, chunk = Tensors(seed), HUB_CHUNK[resolution]
    widths = [m * ch for m in G_WIDTHS[resolution]]

    def layer(name, *shape, bias=True):
        t.normal(f"{name}/w{averaged}", *shape)
        t.normal(f"{name}/u0", 1, shape[-1])
        t.normal(f"{name}/u1", int(np.prod(shape[:-1])), 1)
        if bias:
            t.normal(f"{name}/b{averaged}", shape[-1], std=0.1)

    def statistics(scope, width):
        t.normal(f"{scope}/accumulated_mean", width, std=0.2)
        t.uniform(f"{scope}/accumulated_var", 0.3, 0.9, width)
        t[f"{scope}/accumulation_counter"] = np.float32(100)

    t.normal(f"linear/w{averaged}", classes, shared)
    layer("Generator/G_Z/G_linear", chunk, 16 * widths[0])
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        block = f"Generator/GBlock{_number(i)}"
        for k, width in enumerate((a, b)):
            for part in ("gamma", "beta"):
                name = f"{block}/HyperBN{_number(k)}/{part}"
                layer(name, chunk + shared, width, bias=False)
            statistics(f"{block}/CrossReplicaBN{_number(k)}", width)
        layer(f"{block}/conv0", 3, 3, a, b)
        layer(f"{block}/conv1", 3, 3, b, b)
        layer(f"{block}/conv_sc", 1, 1, a, b)
        if 8 << i == HUB_ATTENTION[resolution]:
            _attention_tensors(t, layer, "Generator/attention", b, "o_conv")
            t["Generator/attention/gamma" + averaged] = np.array([0.7], np.float32)
    t.uniform(f"Generator/ScaledCrossReplicaBN/gamma{averaged}", 0.1, 0.2, 1, 1, 1, ch)
    t.normal(f"Generator/ScaledCrossReplicaBN/beta{averaged}", 1, 1, 1, ch, std=0.3)
    statistics("Generator/ScaledCrossReplicaBNbn", ch)
    layer("Generator/conv_2d", 3, 3, ch, 3)
    return t


def _attention_tensors(t, layer, scope, c, out):
    for name, a, b in (
        ("theta", c, c // 8),
        ("phi", c, c // 8),
        ("g", c, c // 2),
        (out, c // 2, c),
    ):
        layer(f"{scope}/{name}", 1, 1, a, b, bias=False)


def hub_biggan_images(t, z, labels, averaged="/ema_b999900"):
    """[B, H, W, 3] in [-1, 1], float64."""
    blocks = sum(name.endswith("/conv_sc/u0") for name in t)
    w = lambda name: _hub_weight(t, name, averaged)  # noqa: E731
    slots = np.split(z, blocks + 1, axis=1)
    table = _f64(t[f"linear/w{averaged}"])
    first = t[f"Generator/GBlock/conv0/w{averaged}"].shape[2]
    h = slots[0] @ w("Generator/G_Z/G_linear") + _f64(t[f"Generator/G_Z/G_linear/b{averaged}"])
    h = h.reshape(-1, 4, 4, first)
    for i in range(blocks):
        block = f"Generator/GBlock{_number(i)}"
        condition = np.concatenate([slots[i + 1], table[labels]], axis=1)
        x, resized = h, up
        for k in (0, 1):
            x = _normal(
                x,
                t[f"{block}/CrossReplicaBN{_number(k)}/accumulated_mean"],
                t[f"{block}/CrossReplicaBN{_number(k)}/accumulated_var"],
                1e-4,
                1 + condition @ w(f"{block}/HyperBN{_number(k)}/gamma"),
                condition @ w(f"{block}/HyperBN{_number(k)}/beta"),
            )
            x = resized(relu(x))
            x = conv(x, w(f"{block}/conv{k}"), t[f"{block}/conv{k}/b{averaged}"])
            resized = lambda same: same  # noqa: E731
        h = x + conv(up(h), w(f"{block}/conv_sc"), t[f"{block}/conv_sc/b{averaged}"])
        if h.shape[1] == HUB_ATTENTION[4 << blocks]:
            gamma = t[f"Generator/attention/gamma{averaged}"].item()
            kernels = [w(f"Generator/attention/{n}") for n in ("theta", "phi", "g", "o_conv")]
            h = _attention(h, *kernels, gamma)
    head = "Generator/ScaledCrossReplicaBN"
    h = _normal(
        h,
        t[f"{head}bn/accumulated_mean"],
        t[f"{head}bn/accumulated_var"],
        1e-4,
        t[f"{head}/gamma{averaged}"].reshape(1, -1),
        t[f"{head}/beta{averaged}"].reshape(1, -1),
    )
    out = conv(relu(h), w("Generator/conv_2d"), t[f"Generator/conv_2d/b{averaged}"])
    return np.tanh(out)


def _hub_weight(t, name, averaged):
    """A kernel over the sigma of one iteration from u0, eps 1e-4."""
    kernel = _f64(t[f"{name}/w{averaged}"])
    value, _ = sigma(kernel.reshape(-1, kernel.shape[-1]).T, _f64(t[f"{name}/u0"]), 1e-4)
    return kernel / value


# TF-Hub: BigGAN-deep (section 18.4, middle column, and 7.4).


def hub_deep(resolution, ch=8, classes=7, shared=128, z_dim=128, rgb=16, seed=0):
    """Variables of a BigGAN-deep module, and its statistics in the order of the graph."""
    t, stacks, averaged = Tensors(seed), [], "/ema_0.9999"
    widths = [m * ch for m in G_WIDTHS[resolution]]

    def layer(name, *shape, bias=True):
        t.normal(f"{name}/w{averaged}", *shape)
        t.normal(f"{name}/u0", 1, shape[-1])
        if bias:
            t.normal(f"{name}/b{averaged}", shape[-1], std=0.1)

    def statistics(width):
        stacks.append(t.rng.normal(0, 0.2, (51, width)).astype(np.float32))
        # Smaller ones let activations grow until attention picks single pixels, and float32 others.
        stacks.append(t.rng.uniform(0.9, 2.7, (51, width)).astype(np.float32))

    t.normal(f"linear/w{averaged}", classes, shared)
    layer("Generator/GenZ/G_linear", z_dim + shared, 16 * widths[0])
    for i in range(2 * len(widths) - 2):
        a = widths[i // 2]
        b, m = widths[(i + 1) // 2], a // 4
        block = f"Generator/GBlock{_number(i)}"
        for k, width in enumerate((a, m, m, m)):
            for part in ("scale", "offset"):
                name = f"{block}/BatchNorm{_number(k)}/{part}"
                layer(name, z_dim + shared, width, bias=False)
            statistics(width)
        layer(f"{block}/conv0", 1, 1, a, m)
        layer(f"{block}/conv1", 3, 3, m, m)
        layer(f"{block}/conv2", 3, 3, m, m)
        layer(f"{block}/conv3", 1, 1, m, b)
        if i == 7:
            _attention_tensors(t, layer, "Generator/attention", b, "o_conv")
            t[f"Generator/attention/gamma{averaged}"] = np.array(0.7, np.float32)
    t.uniform(f"Generator/BatchNorm/scale{averaged}", 0.1, 0.25, 1, 1, 1, ch)
    t.normal(f"Generator/BatchNorm/offset{averaged}", 1, 1, 1, ch, std=0.3)
    statistics(ch)
    layer("Generator/conv_to_rgb", 3, 3, ch, rgb)
    return t, stacks


def hub_deep_images(t, stacks, row, z, labels):
    """[B, H, W, 3] in [-1, 1], float64, with the statistics of one row."""
    averaged = "/ema_0.9999"
    w = lambda name: _hub_weight(t, name, averaged)  # noqa: E731
    blocks = sum(name.endswith("/conv3/u0") for name in t)
    moments = iter(stack[row] for stack in stacks)
    condition = np.concatenate([z, _f64(t[f"linear/w{averaged}"])[labels]], axis=1)
    first = t[f"Generator/GBlock/conv0/w{averaged}"].shape[2]
    h = condition @ w("Generator/GenZ/G_linear") + t[f"Generator/GenZ/G_linear/b{averaged}"]
    h = h.reshape(-1, 4, 4, first)
    for i in range(blocks):
        block, x = f"Generator/GBlock{_number(i)}", h
        for k in range(4):
            bn = f"{block}/BatchNorm{_number(k)}"
            gain, bias = 1 + condition @ w(f"{bn}/scale"), condition @ w(f"{bn}/offset")
            x = relu(_normal(x, next(moments), next(moments), 1e-4, gain, bias))
            x = up(x) if i % 2 and k == 1 else x
            x = conv(x, w(f"{block}/conv{k}"), t[f"{block}/conv{k}/b{averaged}"])
        shortcut = h[..., : x.shape[-1]]
        h = x + (up(shortcut) if i % 2 else shortcut)
        if i == 7:
            kernels = [w(f"Generator/attention/{n}") for n in ("theta", "phi", "g", "o_conv")]
            h = _attention(h, *kernels, t[f"Generator/attention/gamma{averaged}"].item())
    gain, bias = (
        t[f"Generator/BatchNorm/{n}{averaged}"].reshape(1, -1) for n in ("scale", "offset")
    )
    h = relu(_normal(h, next(moments), next(moments), 1e-4, gain, bias))
    out = conv(h, w("Generator/conv_to_rgb"), t[f"Generator/conv_to_rgb/b{averaged}"])
    return np.tanh(out[..., :3])


def hub_graph(path, stacks, scope=""):
    """Writes a saved model whose graph holds statistics, some as stacked rows, some whole.

    Other nodes of like names, and a graph without any, are there too.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.meta_graphs.add().graph_def.node.add(name="stack_1", op="Placeholder")
    graph = saved.meta_graphs.add().graph_def

    def constant(name, value):
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))

    def pack(name, inputs):
        graph.node.add(name=name, op="Pack", input=inputs).attr["axis"].i = 0

    numbers = [10 * i + k for i in range(50) for k in (1, 3, 6, 8)]
    constant("half", np.float32(0.5))
    pack("Reshape/stack_1", ["half", "half"])
    for j, (number, stack) in enumerate(zip(numbers, stacks, strict=False)):
        name = f"{scope}stack_{number}"
        if j % 2:
            constant(name, stack)
            continue
        rows = []
        for k, row in enumerate(stack):
            constant(f"{scope}Const_{j}_{k}", row)
            graph.node.add(
                name=f"{scope}row_{j}_{k}", op="Identity", input=[f"{scope}Const_{j}_{k}:0"]
            )
            rows.append(f"{scope}row_{j}_{k}")
        pack(name, [*rows, "^half"])
        pack(f"{scope}stack_{number - 1}", [f"{scope}index"])  # What the row is picked by.
    with open(path, "wb") as f:
        f.write(saved.SerializeToString())


# compare_gan (section 18.7).

CG_D_WIDTHS = {64: (2, 4, 8, 16, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}
CG_AVERAGED = "/ExponentialMovingAverage"
COUNT = 40.0


def compare_gan(resolution, ch=8, d_ch=8, classes=7, shared=16, chunk=4, deep=False, rgb=3,
                g_attention=None, side="auto", seed=0):  # fmt: skip
    """Variables of a training run: both networks, averages, Adam's moments and counters."""
    t = Tensors(seed)
    g_attention = g_attention or (128 if resolution == 256 and not deep else 64)

    def layer(name, *shape, bias=True, normalised=True):
        t.normal(f"{name}/kernel", *shape)
        if bias:
            t.normal(f"{name}/bias", shape[-1], std=0.1)
        if normalised:
            rows, columns = int(np.prod(shape[:-1])), shape[-1]
            left = rows <= columns if side == "auto" else side == "left"
            t.normal(f"{name}/kernel/u_var", *((rows, 1) if left else (1, columns)))

    def norm(scope, width, condition):
        for part in ("gamma", "beta"):
            layer(f"{scope}/condition/{part}", condition, width, bias=False)
        statistics(scope, width)

    def statistics(scope, width):
        t.normal(f"{scope}/accu/accu_mean", width, std=0.05 * COUNT)
        low, high = (0.25, 1.0) if deep else (0.05, 0.2)
        t.uniform(f"{scope}/accu/accu_variance", low * COUNT, high * COUNT, width)
        t[f"{scope}/accu/accu_counter"] = np.float32(COUNT)
        t[f"{scope}/accu/update_accus"] = np.int32(0)

    def attention(network, c):
        scope = f"{network}/non_local_block"
        parts = ("theta", c, c // 8), ("phi", c, c // 8), ("g", c, c // 2), ("attn_g", c // 2, c)
        for name, a, b in parts:
            layer(f"{scope}/conv2d_{name}", 1, 1, a, b, bias=False)
        t[f"{scope}/sigma"] = np.float32(0.7)

    widths = [m * ch for m in G_WIDTHS[resolution]]
    layer("generator/embed_y", classes, shared, bias=False, normalised=False)
    layer("generator/fc_noise", chunk + (shared if deep else 0), 16 * widths[0])
    for i in range((2 if deep else 1) * (len(widths) - 1)):
        block = f"generator/B{i + 1}"
        if deep:
            a, b = widths[i // 2], widths[(i + 1) // 2]
            m = a // 4
            for k, (before, after, size) in enumerate(
                ((a, m, 1), (m, m, 3), (m, m, 3), (m, b, 1)), start=1
            ):
                norm(f"{block}/conv{k}/bn", before, chunk + shared)
                layer(f"{block}/conv{k}/{size}x{size}_conv", size, size, before, after)
        else:
            a, b = widths[i], widths[i + 1]
            norm(f"{block}/bn1", a, chunk + shared)
            layer(f"{block}/up_conv1", 3, 3, a, b)
            norm(f"{block}/bn2", b, chunk + shared)
            layer(f"{block}/same_conv2", 3, 3, b, b)
            layer(f"{block}/up_conv_shortcut", 1, 1, a, b)
        if (8 << (i // 2 if deep else i)) == g_attention and (i % 2 or not deep):
            attention("generator", b)
    low, high = (0.2, 0.6) if deep else (0.5, 1.0)  # Images that tanh does not saturate.
    t.uniform("generator/final_norm/gamma", low, high, widths[-1])
    t.normal("generator/final_norm/beta", widths[-1], std=0.3)
    statistics("generator/final_norm", widths[-1])
    layer("generator/final_conv", 3, 3, widths[-1], rgb)

    widths = [m * d_ch for m in CG_D_WIDTHS[resolution]]
    if deep:
        layer("discriminator/initial_conv", 3, 3, 3, widths[0])
    for i in range(2 * len(widths) - 2 if deep else len(widths)):
        block = f"discriminator/B{i + 1}"
        if deep:
            a, b = widths[(i + 1) // 2], widths[i // 2 + 1]
            m = b // 4
            layer(f"{block}/conv1/1x1_conv", 1, 1, a, m)
            layer(f"{block}/conv2/3x3_conv", 3, 3, m, m)
            layer(f"{block}/conv3/3x3_conv", 3, 3, m, m)
            layer(f"{block}/conv4/1x1_conv", 1, 1, m, b)
            if b > a:
                layer(f"{block}/shortcut/add_channels", 1, 1, a, b - a)
            attended = i % 2 and resolution >> (i // 2 + 1) == 64
        else:
            a, b = 3 if i == 0 else widths[i - 1], widths[i]
            scale = "same" if i == len(widths) - 1 else "down"
            layer(f"{block}/same_conv1", 3, 3, a, b)
            layer(f"{block}/{scale}_conv2", 3, 3, b, b)
            if a != b:
                layer(f"{block}/{scale}_conv_shortcut", 1, 1, a, b)
            attended = resolution >> (i + 1) == min(64, resolution // 2)
        if attended:
            attention("discriminator", b)
    layer("discriminator/final_fc", widths[-1], 1)
    layer("discriminator/embedding_fc", classes, widths[-1], bias=False)

    state = ("u_var", "accu_mean", "accu_variance", "accu_counter", "update_accus")
    for name, value in list(t.items()):
        if name.rpartition("/")[2] in state:
            continue
        if name.startswith("generator"):
            noise = t.rng.normal(0, 0.1, value.shape)
            t[name + CG_AVERAGED] = (value + noise).astype(np.float32)
        optimizer = "g_opt" if name.startswith("generator") else "d_opt"
        for slot in (optimizer, f"{optimizer}_1"):
            t[f"{name}/{slot}"] = np.zeros_like(value)
    t |= {"global_step": np.int64(250000), "beta1_power": np.float32(0)}
    return t


def compare_gan_images(t, z, labels, averaged=""):
    """[B, H, W, 3] in [0, 1], float64."""
    get = lambda name: _f64(t[name + averaged])  # noqa: E731
    w = lambda name: _cg_weight(t, name, averaged)  # noqa: E731
    deep = "generator/B1/conv1/1x1_conv/kernel" in t
    blocks = len({n.split("/")[1] for n in t if n.startswith("generator/B")})
    embedded = get("generator/embed_y/kernel")[labels]
    if deep:
        conditions = [np.concatenate([z, embedded], axis=1)] * (blocks + 1)
        seed = conditions[0]
    else:
        seed, *slots = np.split(z, blocks + 1, axis=1)
        conditions = [np.concatenate([slot, embedded], axis=1) for slot in slots]

    def norm(x, scope, condition):
        gain, bias = (condition @ w(f"{scope}/condition/{p}") for p in ("gamma", "beta"))
        return _normal(x, *accumulated(scope), 1e-5, gain, bias)

    def accumulated(scope):
        count = _f64(t[f"{scope}/accu/accu_counter"])
        return [_f64(t[f"{scope}/accu/accu_{m}"]) / count for m in ("mean", "variance")]

    def convolve(x, name):
        return conv(x, w(name), get(f"{name}/bias"))

    h = seed @ w("generator/fc_noise") + get("generator/fc_noise/bias")
    h = h.reshape(len(z), 4, 4, -1)
    for i, condition in zip(range(blocks), conditions, strict=False):
        block, x = f"generator/B{i + 1}", h
        if deep:
            for k, size in enumerate((1, 3, 3, 1), start=1):
                x = relu(norm(x, f"{block}/conv{k}/bn", condition))
                x = _unpool(x) if i % 2 and k == 2 else x
                x = convolve(x, f"{block}/conv{k}/{size}x{size}_conv")
            shortcut = h[..., : x.shape[-1]]
            h = x + (_unpool(shortcut) if i % 2 else shortcut)
        else:
            x = convolve(_unpool(relu(norm(x, f"{block}/bn1", condition))), f"{block}/up_conv1")
            x = convolve(relu(norm(x, f"{block}/bn2", condition)), f"{block}/same_conv2")
            h = x + convolve(_unpool(h), f"{block}/up_conv_shortcut")
        if h.shape[1] == 64 and (i % 2 or not deep):
            h = _cg_attention(t, h, "generator", averaged)
    gain, bias = (get(f"generator/final_norm/{n}")[None] for n in ("gamma", "beta"))
    h = relu(_normal(h, *accumulated("generator/final_norm"), 1e-5, gain, bias))
    return (np.tanh(convolve(h, "generator/final_conv")[..., :3]) + 1) / 2


def compare_gan_logits(t, images, labels):
    """[B], float64, of images in [0, 1]."""
    convolve = lambda x, name: conv(x, _cg_weight(t, name), t[f"{name}/bias"])  # noqa: E731
    deep = "discriminator/initial_conv/kernel" in t
    blocks = len({n.split("/")[1] for n in t if n.startswith("discriminator/B")})
    size = min(64, images.shape[1] // 2)
    h = convolve(images, "discriminator/initial_conv") if deep else images
    for i in range(blocks):
        block = f"discriminator/B{i + 1}"
        if deep:
            x = convolve(relu(h), f"{block}/conv1/1x1_conv")
            x = convolve(relu(x), f"{block}/conv2/3x3_conv")
            x = relu(convolve(relu(x), f"{block}/conv3/3x3_conv"))
            x, shortcut = (x, h) if i % 2 else (pool(x), pool(h))
            if f"{block}/shortcut/add_channels/kernel" in t:
                added = convolve(shortcut, f"{block}/shortcut/add_channels")
                shortcut = np.concatenate([shortcut, added], axis=-1)
            h = convolve(x, f"{block}/conv4/1x1_conv") + shortcut
        else:
            last = i == blocks - 1
            scale, halved = ("same", lambda x: x) if last else ("down", pool)
            x = convolve(relu(h), f"{block}/same_conv1")
            x = halved(convolve(relu(x), f"{block}/{scale}_conv2"))
            if f"{block}/{scale}_conv_shortcut/kernel" in t:
                x = x + halved(convolve(h, f"{block}/{scale}_conv_shortcut"))
            h = x
        attended = "discriminator/non_local_block/sigma" in t and h.shape[1] == size
        if attended and (i % 2 or not deep):
            h = _cg_attention(t, h, "discriminator", "")
    h = relu(h).sum((1, 2))
    logits = h @ _cg_weight(t, "discriminator/final_fc") + t["discriminator/final_fc/bias"]
    table = _cg_weight(t, "discriminator/embedding_fc")
    return logits[:, 0] + (table[labels] * h).sum(1)


def _cg_attention(t, x, network, averaged):
    scope = f"{network}/non_local_block"
    names = (f"{scope}/conv2d_{n}" for n in ("theta", "phi", "g", "attn_g"))
    return _attention(
        x, *(_cg_weight(t, n, averaged) for n in names), t[f"{scope}/sigma{averaged}"]
    )


def _cg_weight(t, name, averaged=""):
    """A kernel over sigma, from the vector of whichever side is stored."""
    unit = lambda x: x / np.sqrt(max((x * x).sum(), 1e-12))  # noqa: E731
    kernel, u = _f64(t[f"{name}/kernel{averaged}"]), _f64(t[f"{name}/kernel/u_var"])
    m = kernel.reshape(-1, kernel.shape[-1])
    if u.shape == (m.shape[0], 1):
        v = unit(m.T @ u)
        u = unit(m @ v)
        return kernel / (u.T @ m @ v).item()
    v = unit(u @ m.T)
    u = unit(v @ m)
    return kernel / (v @ m @ u.T).item()


# What they share.


def _f64(x):
    return np.asarray(x, np.float64)


def _normal(x, mean, var, eps, gain, bias):
    """Batch norm with given statistics; gain and bias are [B or 1, C]."""
    x = (x - _f64(mean)) / np.sqrt(_f64(var) + eps)
    return x * _f64(gain)[:, None, None] + _f64(bias)[:, None, None]


def _unpool(x):
    n, h, w, c = x.shape
    out = np.zeros((n, 2 * h, 2 * w, c))
    out[:, ::2, ::2] = x
    return out


def _attention(x, theta, phi, g, o, gamma):
    n, h, w, _ = x.shape
    rows = lambda y: y.reshape(n, -1, y.shape[-1])  # noqa: E731
    scores = rows(conv(x, theta)) @ rows(max_pool(conv(x, phi))).transpose(0, 2, 1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ rows(max_pool(conv(x, g)))
    return x + float(gamma) * conv(mixed.reshape(n, h, w, -1), o)
