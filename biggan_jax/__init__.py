"""BigGAN in JAX and Flax: training, sampling and evaluation."""

__version__ = "0.1.0"
