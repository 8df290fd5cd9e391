"""The update: `d_steps` discriminator updates, one generator update, the average (spec 11.2).

Everything here is global-view: arrays span all devices of a mesh and draws are made whole, so one
device and two thousand run the same program.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh
from jax.typing import ArrayLike

from biggan_jax import config as config_lib
from biggan_jax.gan import ema, losses, metrics, regularizers, sigmas
from biggan_jax.gan import state as state_lib
from biggan_jax.gan.state import GanState
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib

Batch = Mapping[str, Any]


class Control(NamedTuple):
    """What may be changed from step to step without compiling anew; a rollback changes it.

    noise: 0, or another number for other latents, labels of fakes and flips.
    g_lr_scale: G's update is multiplied by it.
    """

    noise: ArrayLike = 0
    g_lr_scale: ArrayLike = 1.0


class Draws(NamedTuple):
    """Latents and labels of all fakes of one step; M is the micro-batch, A the accumulation.

    d_z: [d_steps * A, M, z_dim] normal.
    d_labels: [d_steps * A, M] uniform over the classes.
    g_z: [A, M, z_dim].
    g_labels: [A, M].
    """

    d_z: jax.Array
    d_labels: jax.Array
    g_z: jax.Array
    g_labels: jax.Array


class Update:
    """The pure functions of one step, closed over a config and a mesh."""

    def __init__(self, config: Mapping[str, Any], mesh: Mesh):
        """Builds the networks and optimizers of a resolved config."""
        self.config, self.mesh = config, mesh
        platform = mesh.devices.flat[0].platform
        # Micro-batches run in a loop, which bounds memory, but on CPU: XLA:CPU runs convolutions
        # inside a loop 10 to 30 times slower.
        self.scan = platform != "cpu"
        self.generator, self.discriminator = networks.build(config, platform)
        # For the fakes of all D steps at once, where `optim.one_g_pass` asks for it.
        self.woven_generator, _ = networks.build(config, platform, config["d_steps"])
        self.g_optimizer = state_lib.optimizer(config, config["optim"]["g_lr"])
        self.d_optimizer = state_lib.d_optimizer(config)

    def draw(self, step: jax.Array, noise: ArrayLike = 0) -> Draws:
        """Draws a step's latents and labels, a function of (seed, step, noise) on any mesh."""
        c = self.config
        size, model = config_lib.micro_batch_size(c), c["model"]
        # A constraint right at the draw: without it every device makes all of them and, with
        # them, all images.
        cut = lambda x: jax.lax.with_sharding_constraint(  # noqa: E731
            x, mesh_lib.batch_sharding(self.mesh, 1)
        )
        keys = self._keys(step, noise)
        rounds = {"d": c["d_steps"] * c["accumulation"], "g": c["accumulation"]}
        normal = lambda k, n: cut(jax.random.normal(k, (n, size, model["z_dim"])))  # noqa: E731
        uniform = lambda k, n: cut(  # noqa: E731
            jax.random.randint(k, (n, size), 0, model["num_classes"])
        )
        return Draws(
            normal(keys[0], rounds["d"]),
            uniform(keys[1], rounds["d"]),
            normal(keys[2], rounds["g"]),
            uniform(keys[3], rounds["g"]),
        )

    def generate(self, g_params, state: GanState, z, labels, generator=None):
        """G (or another module of its parameters) in training mode.

        Batch statistics are used, u and running statistics moved.

        Returns:
          images [M, R, R, 3] and the moved collections `batch_stats` and `spectral`.
        """
        variables, moved = self._with_sigmas(g_params, state.g_spectral)
        variables["batch_stats"] = state.g_batch_stats
        images, changed = (generator or self.generator).apply(
            variables, z, labels, train=True, mutable=["batch_stats", "spectral"]
        )
        return images, {**changed, **moved}

    def judge(self, d_params, d_spectral, images, labels):
        """D, with u moved. Returns logits [N] and the moved `spectral`."""
        variables, moved = self._with_sigmas(d_params, d_spectral)
        logits, changed = self.discriminator.apply(variables, images, labels, mutable=["spectral"])
        return logits, {**changed, **moved}["spectral"]

    def _with_sigmas(self, params, spectral):
        """Variables for `apply`, and what of `spectral` is moved before it."""
        params = self._ready(params)
        if not sigmas.worth_sharing(params, self.mesh):
            return {"params": params, "spectral": spectral}, {}
        sigma, moved = sigmas.find(params, spectral, self.mesh, self.config["model"])
        return {"params": params, "sigma": sigma}, {"spectral": moved}

    def d_gradients(self, state: GanState, real, real_labels, z, labels):
        """Gradients of one D micro-batch.

        Args:
          state: G's collections and D's `spectral` are moved in the returned one.
          real: [M, R, R, 3] in [-1, 1].
          real_labels: [M].
          z: [M, z_dim].
          labels: [M], the fakes'.

        Returns:
          gradients, the moved state, and {"real", "fake"} logits [M] each.
        """
        fake, moved = self.generate(state.g_params, state, z, labels)
        state = state.replace(g_batch_stats=moved["batch_stats"], g_spectral=moved["spectral"])
        return self.d_gradients_on(state, real, real_labels, fake, labels)

    def fakes(self, state: GanState, z, labels):
        """The fakes of all D steps, of one pass of G a micro-batch.

        BN statistics are those of each D batch. Against a pass a D step only bookkeeping differs:
        G's u moves once for all D steps, and with accumulation the running statistics see the
        batches in another order.

        Args:
          state: G's collections are moved in the returned one.
          z: [d_steps * A, M, z_dim].
          labels: [d_steps * A, M].

        Returns:
          images [d_steps * A, M, R, R, 3] and the moved state.
        """
        rounds, a = self.config["d_steps"], self.config["accumulation"]
        # Image i of D step i % rounds: no image leaves its device.
        weave = lambda x: x.reshape(rounds, a, *x.shape[1:]).transpose(  # noqa: E731
            1, 2, 0, *range(3, x.ndim + 1)
        )

        def one(state, inputs):
            z, labels = (x.reshape(-1, *x.shape[2:]) for x in inputs)
            images, moved = self.generate(state.g_params, state, z, labels, self.woven_generator)
            state = state.replace(g_batch_stats=moved["batch_stats"], g_spectral=moved["spectral"])
            return state, images.reshape(-1, rounds, *images.shape[1:])

        inputs = weave(z), weave(labels)
        if self.scan and a > 1:
            state, images = jax.lax.scan(one, state, inputs)
        else:
            made = []
            for i in range(a):
                state, part = one(state, tuple(x[i] for x in inputs))
                made.append(part)
            images = jnp.stack(made)
        images = images.transpose(2, 0, 1, *range(3, images.ndim))
        return images.reshape(rounds * a, *images.shape[2:]), state

    def d_gradients_on(self, state: GanState, real, real_labels, fake, labels):
        """As `d_gradients`, on fakes [M, R, R, 3] in place of latents."""
        fake = jax.lax.stop_gradient(fake)
        # One joint forward, so that one sigma serves both halves. Interleaved: concatenating along
        # the sharded axis would move half of the images between devices.
        pairs = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])  # noqa: E731
        images, both_labels = pairs(fake, real), pairs(labels, real_labels)

        def loss_fn(d_params):
            logits, spectral = self.judge(d_params, state.d_spectral, images, both_labels)
            logits = {"fake": logits[0::2], "real": logits[1::2]}
            return sum(losses.d_hinge(logits["real"], logits["fake"])), (logits, spectral)

        grads, (logits, d_spectral) = jax.grad(loss_fn, has_aux=True)(state.d_params)
        return grads, state.replace(d_spectral=d_spectral), logits

    def g_gradients(self, state: GanState, z, labels):
        """Gradients of one G micro-batch; arguments and results as for `d_gradients`."""

        def loss_fn(g_params):
            fake, moved = self.generate(g_params, state, z, labels)
            logits, spectral = self.judge(state.d_params, state.d_spectral, fake, labels)
            return losses.g_hinge(logits), (logits, moved, spectral)

        grads, (logits, moved, d_spectral) = jax.grad(loss_fn, has_aux=True)(state.g_params)
        state = state.replace(
            g_batch_stats=moved["batch_stats"],
            g_spectral=moved["spectral"],
            d_spectral=d_spectral,
        )
        return grads, state, {"fake": logits}

    def d_update(self, state: GanState, *inputs) -> tuple[GanState, dict]:
        """One D update from A micro-batches; inputs as for `d_gradients`, each [A, M, ...].

        With `optim.one_g_pass` they are those of `d_gradients_on`.

        Returns:
          the moved state and what was seen: {"real", "fake"} logits [A, M] each, and "grad_norm".
        """
        ready = self.config["optim"]["one_g_pass"]
        gradients = self.d_gradients_on if ready else self.d_gradients
        grads, state, logits = self._accumulate(gradients, state, inputs)
        grads, params = self._parts(grads), self._parts(state.d_params)
        updates, opt = self.d_optimizer.update(grads, state.d_opt, params)
        params = self._whole(optax.apply_updates(params, updates))
        state = state.replace(d_params=params, d_opt=opt)
        return state, logits | {"grad_norm": optax.tree.norm(grads)}

    def g_update(
        self, state: GanState, *inputs, lr_scale: ArrayLike = 1.0
    ) -> tuple[GanState, dict]:
        """One G update from A micro-batches; inputs as for `g_gradients`, each [A, M, ...].

        Returns as `d_update` does; the gradient is with equation 3's, as Adam gets it.
        """
        grads, state, logits = self._accumulate(self.g_gradients, state, inputs)
        grads, params = self._parts(grads), self._parts(state.g_params)
        beta, parallel = self.config["optim"]["g_ortho"], self.config["parallel"]
        grads = regularizers.add_ortho_gradient(grads, state.g_params, beta, self.mesh, parallel)
        updates, opt = self.g_optimizer.update(grads, state.g_opt, params)
        updates = jax.tree.map(lambda x: x * lr_scale, updates)
        params = self._whole(optax.apply_updates(params, updates))
        state = state.replace(g_params=params, g_opt=opt)
        return state, logits | {"grad_norm": optax.tree.norm(grads)}

    def step(
        self, state: GanState, batch: Batch, control: Control | None = None
    ) -> tuple[GanState, metrics.Metrics]:
        """One whole step.

        Args:
          state: before the step.
          batch: `image` [d_steps * A, M, R, R, 3], uint8, or float in [-1, 1]; `label`
            [d_steps * A, M]; `draws`, optional, a `Draws` to use in place of fresh ones.
          control: None for the usual one.

        Returns:
          The state after it, and scalar metrics: means over the step's micro-batches, norms of the
          gradients of G's update and of D's last, the norms of all weights after it, and `bad`, 0
          or what is not finite (see `metrics.BAD`).
        """
        c = self.config
        control = Control() if control is None else control
        step, noise = state.step, control.noise
        draws = batch["draws"] if "draws" in batch else self.draw(step, noise)
        images, labels = batch["image"], batch["label"]
        makes_fakes = draws.d_z
        if c["optim"]["one_g_pass"]:
            makes_fakes, state = self.fakes(state, draws.d_z, draws.d_labels)
        d_seen = []
        for i in range(c["d_steps"]):
            part = slice(i * c["accumulation"], (i + 1) * c["accumulation"])
            reals = self._to_float(images[part], step, i, noise)
            fakes = makes_fakes[part], draws.d_labels[part]
            state, seen = self.d_update(state, reals, labels[part], *fakes)
            d_seen.append(seen)
        state, g_seen = self.g_update(state, draws.g_z, draws.g_labels, lr_scale=control.g_lr_scale)
        average = ema.update(
            {"params": state.ema_params, "batch_stats": state.ema_batch_stats},
            {"params": self._parts(state.g_params), "batch_stats": state.g_batch_stats},
            step,
            c["ema"]["decay"],
            c["ema"]["start"],
        )
        state = state.replace(
            step=step + 1,
            ema_params=average["params"],
            ema_batch_stats=average["batch_stats"],
        )
        # The norms show growing weights and tell, before a checkpoint is written, that all of them
        # are numbers.
        seen = metrics.of_step(d_seen, g_seen) | {
            "g_norm": optax.tree.norm(self._parts(state.g_params)),
            "d_norm": optax.tree.norm(self._parts(state.d_params)),
        }
        return state, seen | {"bad": metrics.bad(seen, state)}

    def _parts(self, tree):
        """With ZeRO-1 and FSDP, each device's part of weights; else the tree."""
        parallel = self.config["parallel"]
        return tree if parallel == "data" else mesh_lib.placed(tree, self.mesh, parallel)

    def _whole(self, tree):
        """What `_parts` gave, as the state holds it: with ZeRO-1 whole on every device again."""
        zero1 = self.config["parallel"] == "zero1"
        return mesh_lib.placed(tree, self.mesh, "data") if zero1 else tree

    def _ready(self, params):
        """Weights as a pass wants them: with FSDP, gathered whole on every device.

        Kernels of convolutions come in the dtype in which they are used, half the bytes with
        bfloat16; sigma is then that of the rounded kernel. One device has nothing to gather.
        """
        if self.config["parallel"] != "fsdp" or self.mesh.size == 1:
            return params
        dtype = jnp.dtype(self.config["model"]["dtype"])
        used = jax.tree.map(lambda x: x.astype(dtype) if x.ndim == 4 else x, params)
        return mesh_lib.placed(used, self.mesh, "data")

    def _keys(self, step, noise):
        """Four keys for the draws of a step and one that flips its reals."""
        key = jax.random.fold_in(jax.random.key(self.config["seed"]), step)
        # fold_in of 0 to 4 would give what split gives.
        other = jax.random.fold_in(key, 5 + jnp.asarray(noise))
        return jax.random.split(jnp.where(jnp.asarray(noise) == 0, key, other), 5)

    def _accumulate(self, gradients: Callable, state: GanState, inputs: tuple):
        """Means of gradients over micro-batches, with u and statistics moved by each."""
        count = len(inputs[0])

        def add(carry, micro_batch):
            total, state = carry
            grads, state, logits = gradients(state, *micro_batch)
            return (jax.tree.map(jnp.add, total, grads), state), logits

        first_grads, state, first = gradients(state, *(x[0] for x in inputs))
        carry: Any = (first_grads, state)
        rest: list = []
        if self.scan and count > 1:
            carry, later = jax.lax.scan(add, carry, tuple(x[1:] for x in inputs))
            logits = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)
        else:
            for a in range(1, count):
                carry, more = add(carry, tuple(x[a] for x in inputs))
                rest.append(more)
            logits = jax.tree.map(lambda *x: jnp.stack(x), first, *rest)
        total, state = carry
        return jax.tree.map(lambda g: g / count, total), state, logits

    def _to_float(self, images, step, d_step, noise=0):
        """uint8 [A, M, R, R, 3] to float32 in [-1, 1], flipped left to right where asked for."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1
        if self.config["data"]["flip"]:
            key = jax.random.fold_in(self._keys(step, noise)[4], d_step)
            flip = jax.random.bernoulli(key, 0.5, images.shape[:2])
            flip = jax.lax.with_sharding_constraint(flip, mesh_lib.batch_sharding(self.mesh, 1))
            images = jnp.where(flip[..., None, None, None], images[:, :, :, ::-1], images)
        return images


class TrainStep:
    """The jitted `(state, batch, control=None) -> (state, metrics)`; the state is donated.

    Called with a `Control` and without, it compiles once each; the control's numbers are inputs.
    """

    def __init__(self, config: Mapping[str, Any], mesh: Mesh):
        """Compiles nothing yet."""
        whole, cut = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh, 1)
        held = state_lib.shardings(config, mesh)
        step = Update(config, mesh).step
        jit = lambda *inputs: jax.jit(  # noqa: E731
            step, in_shardings=inputs, out_shardings=(held, whole), donate_argnums=0
        )
        self._usual, self._controlled = jit(held, cut), jit(held, cut, whole)

    def __call__(
        self, state: GanState, batch: Batch, control: Control | None = None
    ) -> tuple[GanState, metrics.Metrics]:
        """Runs the step; see `Update.step`."""
        if control is None:
            return self._usual(state, batch)
        return self._controlled(state, batch, _typed(control))

    def lower(self, state: GanState, batch: Batch, control: Control | None = None):
        """Lowers, as jitted functions do; what it compiles to takes the arguments given here."""
        if control is None:
            return self._usual.lower(state, batch)
        return self._controlled.lower(state, batch, _typed(control))


def _typed(control):
    # Python's numbers would be of weak types, another program than arrays are.
    return Control(np.int32(control.noise), np.float32(control.g_lr_scale))


def make_train_step(config: Mapping[str, Any], mesh: Mesh) -> TrainStep:
    """Returns the jitted `(state, batch, control=None) -> (state, metrics)`.

    Args:
      config: resolved.
      mesh: any size; `batch_size / accumulation` must be a multiple of it.
    """
    return TrainStep(config, mesh)


def init_state(config: Mapping[str, Any], mesh: Mesh) -> GanState:
    """Makes the first state on the mesh, the same on any mesh."""
    init = jax.jit(lambda: state_lib.init(config), out_shardings=state_lib.shardings(config, mesh))
    return init()


def abstract_state(
    config: Mapping[str, Any],
    mesh: Mesh | AbstractMesh,
    whole: bool = False,
    shapes: GanState | None = None,
) -> GanState:
    """Shapes, types and shardings of the state, without making it; for restoring.

    Args:
      config: resolved.
      mesh: who is to hold it.
      whole: whether every device is to hold all of it, whatever the config says.
      shapes: of `state.init`, where they are at hand.
    """
    if shapes is None:
        shapes = jax.eval_shape(lambda: state_lib.init(config))
    shaped = lambda x, held: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=held)  # noqa: E731
    return jax.tree.map(shaped, shapes, state_lib.shardings(config, mesh, whole, shapes))
