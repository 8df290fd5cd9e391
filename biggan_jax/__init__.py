"""BigGAN in JAX and Flax: `load` a model, `sample` it; everything else is `biggan --help`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biggan_jax.api import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Late, so that `import biggan_jax` stays light: `biggan --help` needs no JAX.
    if name in ("Model", "load"):
        from biggan_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'biggan_jax' has no attribute {name!r}")
