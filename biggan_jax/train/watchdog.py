import dataclasses
from biggan_jax.gan import step as step_lib
NAN = "nan"
@dataclasses.dataclass(frozen=True)
class Alarm:
    rule: str
    step: int
    since: int
    where: str
    text: str
class Watchdog:
    def __init__(self, config): pass
    def see(self, step, metrics):
        if metrics["bad"]:
            t = step_lib.bad_text(int(metrics["bad"]))
            return Alarm(NAN, step, step, t, t + " not finite")
    def look(self, *a): return None
    def state(self): return {}
    def load(self, d): pass
    def after_rollback(self): pass
