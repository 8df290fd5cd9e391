"""Eight simulated devices for every test, full float32 products, and no accelerator."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
