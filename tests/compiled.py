"""Programs as users have them, where `tests/conftest.py` has the compiler do little."""

import os

LITTLE = "--xla_backend_optimization_level=0"
NO_EMITTERS = "--xla_cpu_use_fusion_emitters=false"  # Known to jaxlib 0.10.


def as_users_have_it(jitted, *args):
    """Returns the compiled program of a jitted function, with the compiler's default settings."""
    options = {"xla_backend_optimization_level": 3}
    if NO_EMITTERS in os.environ.get("XLA_FLAGS", ""):
        options["xla_cpu_use_fusion_emitters"] = True
    return jitted.lower(*args).compile(compiler_options=options)
