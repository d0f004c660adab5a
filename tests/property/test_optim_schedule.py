"""The schedule fires all of its events in runs of any length and speed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niblick.optim import Schedule, TrainingPosition
from niblick.recipe.schema import TrainingRecipe

LENGTHS = st.one_of(st.floats(0, 1), st.integers(1, 5000).map(lambda n: f"{n} steps"))
BATCH = 64


def _recipe(duration: str, warmup: object, warmdown: object, final: float = 0.0) -> TrainingRecipe:
    return TrainingRecipe.model_validate(
        {
            "duration": duration,
            "sequence_length": 8,
            "batch_tokens": BATCH,
            "schedule": {"warmup": warmup, "warmdown": warmdown, "final": final},
        }
    )


def _walk(schedule: Schedule, step_seconds: float) -> list[TrainingPosition]:
    """The moments of a run whose steps all take `step_seconds`; the time is unknown before the
    first.
    """
    found = []
    step = 0
    while True:
        known = step_seconds if step else 0.0
        moment = TrainingPosition(
            step=step, tokens=step * BATCH, seconds=step * step_seconds, step_seconds=known
        )
        if schedule.spent(moment) >= 1:
            return found
        found.append(moment)
        step += 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.sampled_from(["steps", "tokens", "s"]), LENGTHS, LENGTHS)
def test_warmdown_and_rounding_fire_in_any_budget(
    amount: int, unit: str, warmup: object, warmdown: object
) -> None:
    total = amount * BATCH if unit == "tokens" else amount
    schedule = Schedule(_recipe(f"{total} {unit}", warmup, warmdown))
    moments = _walk(schedule, 1.0)
    assert len(moments) == amount
    values = [schedule.multiplier(m) for m in moments]
    assert all(0 <= v <= 1 for v in values)
    assert any(v > 0 for v in values)
    assert schedule.is_last(moments[-1]) or len(moments) == 1
    if len(moments) > 1:
        assert schedule.rounds(moments[-1])
    if amount > 20 and isinstance(warmdown, str) and warmup == 0:
        assert values[-1] < 0.1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.floats(0.05, 1))
def test_a_warmdown_by_share_falls_in_a_line_to_its_end(amount: int, warmdown: float) -> None:
    schedule = Schedule(_recipe(f"{amount} steps", 0.0, warmdown, final=0.1))
    for moment in _walk(schedule, 1.0):
        expected = 0.1 + 0.9 * min(1.0, (1 - moment.step / amount) / warmdown)
        assert abs(schedule.multiplier(moment) - expected) < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.floats(0.001, 100), st.floats(0.001, 100))
def test_a_budget_in_steps_does_not_look_at_the_clock(
    amount: int, slow: float, fast: float
) -> None:
    schedule = Schedule(_recipe(f"{amount} steps", "3 steps", "10 steps"))
    for one, other in zip(_walk(schedule, slow), _walk(schedule, fast), strict=True):
        assert schedule.multiplier(one) == schedule.multiplier(other)
        assert schedule.rounds(one) == schedule.rounds(other)
        assert schedule.momentum(one) == schedule.momentum(other)


def test_a_warmdown_in_steps_is_placed_by_the_measured_step_time() -> None:
    schedule = Schedule(_recipe("100s", 0.0, "20 steps"))
    slow = TrainingPosition(step=10, tokens=0, seconds=70.0, step_seconds=2.0)
    fast = TrainingPosition(step=10, tokens=0, seconds=70.0, step_seconds=0.1)
    assert abs(schedule.multiplier(slow) - 30 / 40) < 1e-9
    assert schedule.multiplier(fast) == 1


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 1e4), st.floats(0, 1e4), st.floats(0, 2e4))
def test_a_reserve_ends_a_budget_in_seconds_earlier_by_half_at_most(
    amount: float, reserve: float, spent: float
) -> None:
    recipe = _recipe(f"{amount:.3f}s", 0.0, 0.5)
    schedule, whole = Schedule(recipe, reserve), Schedule(recipe)
    kept = whole.duration.amount - schedule.duration.amount
    assert kept <= reserve + 1e-6 and kept <= whole.duration.amount / 2 + 1e-6
    at = TrainingPosition(step=1, tokens=BATCH, seconds=spent)
    assert schedule.fits(at, 0.0) == (spent <= schedule.duration.amount)
    steps = Schedule(_recipe("10 steps", 0.0, 0.5), reserve)
    assert steps.duration.amount == 10 and steps.fits(at, 1e9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["steps", "tokens", "s"]), LENGTHS)
def test_the_smaller_of_duration_and_passes_is_the_budget(
    amount: int, most: int, unit: str, warmdown: object
) -> None:
    text = BATCH * most // 2 or 1
    total = amount * BATCH if unit == "tokens" else amount
    recipe = _recipe(f"{total} {unit}", 0.0, warmdown).model_copy(update={"max_passes": 2.0})
    schedule = Schedule(recipe, text=text)
    moments = _walk(schedule, 1.0)
    assert len(moments) == min(amount, -(-2 * text // BATCH))
    assert schedule.is_last(moments[-1]) or len(moments) == 1
    other = min(most, amount) * BATCH
    same = Schedule(_recipe(f"{other} tokens", 0.0, warmdown))
    if most % 2 == 0:
        assert [schedule.multiplier(m) for m in moments[1:]] == pytest.approx(
            [same.multiplier(m) for m in _walk(same, 1.0)[1:]]
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(1, 60), st.sampled_from(["steps", "tokens", "s"]))
def test_late_rounding_waits_for_runs_of_enough_passes(amount: int, least: int, unit: str) -> None:
    total = amount * BATCH if unit == "tokens" else amount
    recipe = _recipe(f"{total} {unit}", 0.0, 0.5)
    waiting = recipe.model_copy(
        update={"qat": recipe.qat.model_copy(update={"min_passes": least - 0.5})}
    )
    plain, late = Schedule(recipe, text=BATCH), Schedule(waiting, text=BATCH)
    moments = _walk(late, 1.0)
    assert all(late.passes(moment) == pytest.approx(amount) for moment in moments[1:])
    expected = [plain.rounds(moment) and amount >= least for moment in moments[1:]]
    assert [late.rounds(moment) for moment in moments[1:]] == expected
    end = TrainingPosition(step=amount, tokens=amount * BATCH, seconds=amount, step_seconds=1.0)
    said = late.left_out(end, rounds=True)
    assert len(said) == (amount < least)
    assert not late.left_out(end, rounds=False)
    assert Schedule(waiting).rounds(moments[-1])  # of an unknown text every run has enough


@pytest.mark.parametrize("duration", ["100 s", "50 steps", "3200 tokens"])
def test_a_warmup_in_steps_rises_from_the_first_step_on(duration: str) -> None:
    schedule = Schedule(_recipe(duration, "10 steps", 0.5))
    values = [schedule.multiplier(moment) for moment in _walk(schedule, 2.0)[:10]]
    assert values == sorted(values) and values[0] == pytest.approx(1 / 11)
    assert len(set(values)) == 10
