import json

import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.train import watchdog

NAMES = ["G/linear", "G/block0/conv1", "D/embed"]
REALS = 0.4


def settings(**changes):
    c = config_lib.default()
    c.watch.window = 50
    for key, value in changes.items():
        config_lib.override(c, f"watch.{key}", str(value))
    return config_lib.resolve(c, 1).watch


def healthy(step, rng):
    """Numbers as a healthy run has them: noisy, with odd steps, the losses falling slowly."""
    level = 1.0 - 0.5 * step / 3000
    odd = step % 37 == 0
    return {
        "bad": 0.0,
        "d_loss": 0.0 if odd else max(0.0, level + rng.normal(0, 0.4)),
        "g_loss": 500.0 if step % 41 == 0 else rng.normal(0.5, 1),
        "d_real": rng.normal(0.8, 0.3),
        "d_fake": rng.normal(-0.6, 0.3),
        "d_grad_norm": 0.0 if odd else 10.0,
    }


def sigmas(step, rng):
    """Grown sixfold at the end, faster at first, and D's with jumps."""
    g = 1 + 5 * (step / 3000) ** 0.5
    return [[g, g * 0.9, 1.0], [g * 0.8, 1.0, 1.0], [2 * rng.uniform(0.7, 1.5), 0.0, 0.0]]


def run(dog, first, last, metrics=healthy, look=sigmas, diversity=lambda step: REALS, every=100):
    """Returns the first alarm; the numbers of a step do not depend on where the run began."""
    for step in range(first, last + 1):
        rng = np.random.default_rng(step)
        alarm = dog.see(step, metrics(step, rng))
        if alarm is None and step % every == 0:
            alarm = dog.look(step, look(step, rng), NAMES, diversity(step))
        if alarm is not None:
            return alarm
    return None


@pytest.mark.parametrize("reals", [REALS, None])
def test_a_healthy_run_raises_no_alarm(reals):
    falling = lambda step: 0.65 - 0.3 * step / 3000  # noqa: E731
    assert run(watchdog.Watchdog(settings(), reals), 1, 3000, diversity=falling) is None


@pytest.mark.parametrize(("mask", "words"), [(1, "a loss"), (4 | 16, "G's gradients, G's param")])
def test_what_is_not_finite_is_an_alarm_at_once(mask, words):
    dog = watchdog.Watchdog(settings())
    alarm = run(dog, 1, 99, lambda s, r: {**healthy(s, r), "bad": float(mask if s == 7 else 0)})
    assert (alarm.rule, alarm.step, alarm.since) == ("nan", 7, 7)
    assert words in alarm.where and words in alarm.text and "step 7" in alarm.text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_alarm_without_the_mask(value):
    dog = watchdog.Watchdog(settings())
    alarm = dog.see(3, {**healthy(3, np.random.default_rng(0)), "d_grad_norm": value})
    assert (alarm.rule, alarm.where) == ("nan", "d_grad_norm")
    good = sigmas(0, np.random.default_rng(0))
    assert dog.look(100, good, NAMES, value).where == "diversity"
    alarm = dog.look(100, [good[0], [value, 1, 1], good[2]], NAMES, REALS)
    assert (alarm.rule, alarm.where) == ("nan", "sigma of G/block0/conv1")


CHANGES = {
    "d_flat": {"d_loss": 2.0, "d_real": 0.2, "d_fake": 0.21},
    "d_won": {"d_loss": 0.001, "d_real": 5.0, "d_fake": -7.0},
    "runaway": {"g_loss": -900.0},
}


@pytest.mark.parametrize("rule", CHANGES)
def test_a_window_of_trouble_is_an_alarm_and_less_is_none(rule):
    trouble = lambda first, last: (  # noqa: E731
        lambda s, r: {**healthy(s, r), **(CHANGES[rule] if first <= s <= last else {})}
    )
    alarm = run(watchdog.Watchdog(settings()), 1, 1000, trouble(301, 1000))
    assert alarm.rule == rule and 320 <= alarm.step <= 351
    assert alarm.since == alarm.step - 50
    limit = {"d_flat": "flat_gap = 0.03", "d_won": "won_loss = 0.02"}
    assert limit.get(rule, "loss_limit = 50") in alarm.text and "\n" not in alarm.text
    assert run(watchdog.Watchdog(settings()), 1, 1000, trouble(301, 320)) is None


def test_a_first_window_of_trouble_is_an_alarm_too():
    flat = lambda s, r: {**healthy(s, r), **CHANGES["d_flat"]}  # noqa: E731
    alarm = run(watchdog.Watchdog(settings()), 1, 100, flat)
    assert (alarm.rule, alarm.step, alarm.since) == ("d_flat", 50, 0)


@pytest.mark.parametrize("reals", [REALS, None])
def test_fakes_alike_in_two_looks_are_an_alarm(reals):
    dog = watchdog.Watchdog(settings(), reals)
    alarm = run(dog, 1, 2000, diversity=lambda step: 0.1 if step > 850 else 0.42)
    assert (alarm.rule, alarm.step, alarm.since) == ("diversity", 1000, 800)
    assert "0.1 apart" in alarm.text
    dog = watchdog.Watchdog(settings(), reals)
    once = lambda step: 0.1 if step in (900, 1100) else 0.42  # noqa: E731
    assert run(dog, 1, 2000, diversity=once) is None


def test_fakes_alike_from_the_start_need_the_reals_to_be_seen():
    same = lambda step: 0.1  # noqa: E731
    # Not before `diversity_after`: models begin with blurs.
    for after, step in ((0, 200), (1000, 1200)):
        dog = watchdog.Watchdog(settings(diversity_after=after), REALS)
        alarm = run(dog, 1, 2000, diversity=same)
        assert (alarm.rule, alarm.step, alarm.since) == ("diversity", step, 0)
    assert run(watchdog.Watchdog(settings(), None), 1, 2000, diversity=same) is None


def test_an_exploding_singular_value_is_named():
    def look(step, rng):
        values = sigmas(step, rng)
        values[1][0] *= 1.02 ** max(0, step - 1200)
        return values

    alarm = run(watchdog.Watchdog(settings()), 1, 2000, look=look)
    assert (alarm.rule, alarm.where, alarm.step) == ("sigma", "G/block0/conv1", 1300)
    assert alarm.since == 800 and "G/block0/conv1" in alarm.text


def test_small_singular_values_may_grow_to_1():
    look = lambda step, rng: [[min(1, 1e-4 * step), 0, 0]] * 3  # noqa: E731
    assert run(watchdog.Watchdog(settings()), 1, 2000, look=look) is None


@pytest.mark.parametrize("cut", [1, 320, 350, 849, 900, 950, 1250])
@pytest.mark.parametrize("trouble", ["flat", "alike", "sigma", "none"])
def test_a_restart_changes_no_decision(cut, trouble):
    parts = {
        "flat": {"metrics": lambda s, r: healthy(s, r) | (CHANGES["d_flat"] if s > 300 else {})},
        "alike": {"diversity": lambda s: 0.1 if s > 850 else 0.42},
        "sigma": {"look": lambda s, r: [[9.0 if s > 1200 else 1.0, 0, 0]] * 3},
        "none": {},
    }
    one = watchdog.Watchdog(settings(), REALS)
    whole = run(one, 1, 1400, **parts[trouble])
    first = watchdog.Watchdog(settings(), REALS)
    alarm = run(first, 1, cut, **parts[trouble])
    if alarm is None:
        second = watchdog.Watchdog(settings(), REALS)
        second.load(json.loads(json.dumps(first.state())))
        assert second.state() == first.state()
        alarm = run(second, cut + 1, 1400, **parts[trouble])
        assert second.state() == one.state()
    assert alarm == whole and (whole is None) == (trouble == "none")


def test_what_is_kept_is_bounded():
    dog = watchdog.Watchdog(settings(), REALS)
    run(dog, 1, 3000, every=10)
    assert len(json.dumps(dog.state())) < 20_000


def test_after_a_rollback_the_steps_that_were_undone_count_no_more():
    flat = lambda s, r: healthy(s, r) | (CHANGES["d_flat"] if s > 300 else {})  # noqa: E731
    alike = lambda s: 0.1 if s > 350 else 0.42  # noqa: E731
    dog = watchdog.Watchdog(settings(window=500), REALS)
    assert run(dog, 1, 400, flat, diversity=alike) is None  # Half a window, one low look.
    saved = watchdog.Watchdog(settings(window=500), REALS)
    run(saved, 1, 200, diversity=alike)
    dog.after_rollback(200)
    saved.after_rollback(200)
    assert dog.state() == saved.state()
    assert run(dog, 201, 1500) is None


def test_an_alarm_that_is_ignored_comes_again_after_a_window():
    dog = watchdog.Watchdog(settings())
    flat = lambda s, r: healthy(s, r) | CHANGES["d_flat"]  # noqa: E731
    steps = [s for s in range(1, 201) if dog.see(s, flat(s, np.random.default_rng(s)))]
    assert steps == [50, 100, 150, 200]


def test_limits_take_rules_out():
    off = {"flat_gap": 0.0, "won_loss": 0.0, "loss_limit": 1e30, "diversity_drop": 0.0}
    dog = watchdog.Watchdog(settings(**off, sigma_growth=1e30), REALS)
    for change in CHANGES.values():
        worse = lambda s, r, change=change: healthy(s, r) | change  # noqa: E731
        look = lambda step, rng: [[1.1 ** (step / 10), 0, 0]] * 3  # noqa: E731
        assert run(dog, 1, 1000, worse, look=look, diversity=lambda step: 0.0) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("window", 0), ("sigma_looks", 0), ("flat_gap", -0.1), ("won_loss", -1.0)),
        *(("loss_limit", 0.0), ("sigma_growth", 0.0), ("diversity_drop", 1.0)),
    ],
)
def test_limits_that_mean_nothing_are_named(key, value):
    with pytest.raises(config_lib.ConfigError, match=f"watch.{key}={value}: must be"):
        settings(**{key: value})
