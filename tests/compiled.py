"""Programs as users have them, where `tests/conftest.py` has the compiler do little."""

FULL = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def as_users_have_it(jitted, *args):
    """Returns the compiled program of a jitted function, with the compiler's default settings."""
    return jitted.lower(*args).compile(compiler_options=FULL)
