"""A night goes on: losses that are not finite, examples that cannot be read.

Faults come in where the outside meets the loop: in the model's passes and in the data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from discord_lora.console import UserError
from discord_lora.finetuning.loop import Events, fit
from discord_lora.finetuning.mishaps import (
    OVERFLOWS_IN_A_ROW,
    RETURNS,
    Mishaps,
    name_of,
)
from discord_lora.finetuning.training_state import lower_rate, restore
from finetuning_state import Night, make_state, weights


def spoil(state, when):
    """Make the loss of micro-batches NaN of which `when` says so."""
    state.model.register_forward_hook(
        lambda _model, inputs, loss: loss * torch.nan if when(inputs[0]) else loss
    )


def test_a_loss_that_is_not_finite_costs_its_step_only():
    state = make_state()
    passes = iter(range(1000))
    spoil(state, lambda _batch: next(passes) == 4)
    night = Night(state)
    assert fit(state, night.events()) == "finished"
    assert [r.loss is None for r in night.results].count(True) == 1
    assert night.kinds() == ["not_finite"]
    assert state.mishaps.skipped_steps == 1
    assert all(bool(value.isfinite().all()) for value in weights(state).values())
    assert state.scheduler.last_epoch == 14


def test_a_gradient_that_is_not_finite_changes_nothing():
    state = make_state()
    before = weights(state)
    parameter = next(iter(state.trainable().values()))
    parameter.register_hook(lambda gradient: gradient * torch.inf)
    night = Night(state, can_go_back=False)
    with pytest.raises(UserError, match="not finite"):
        fit(state, night.events())
    assert all(torch.equal(value, before[name]) for name, value in weights(state).items())


def test_several_bad_steps_send_the_run_back_with_a_lower_rate():
    state = make_state(rate=1e-2)
    bad = {8, 9, 10}
    steps = []

    def is_bad(_batch):
        return len(night.results) + 1 in bad

    night = Night(state)
    spoil(state, is_bad)
    assert fit(state, night.events(save_every_steps=5)) == "finished"
    steps = [result.step for result in night.results]
    assert steps == [*range(1, 11), *range(6, 16)]
    assert state.scheduler.base_lrs == [5e-3]
    assert state.scheduler.last_epoch == 15
    assert state.mishaps.returns == 0, "the checkpoint at step 15 lies beyond the trouble"


def test_a_run_that_went_back_goes_on_bit_for_bit():
    """The lower rate and what was counted lie in the checkpoint."""

    def disturbed(**options):
        state = make_state(rate=1e-2)
        night = Night(state)
        spoil(state, lambda _batch: len(night.results) + 1 in {8, 9, 10})
        return state, night, night.events(save_every_steps=5, **options)

    whole, _, events = disturbed()
    fit(whole, events)
    first, night, events = disturbed()
    events.stop_requested = lambda: len(night.results) == 17
    assert fit(first, events) == "stopped"
    second = make_state(rate=1e-2)
    restore(second, night.checkpoints[-1])
    assert second.mishaps == first.mishaps
    fit(second, Events(), first_step=night.checkpoints[-1].step)
    assert all(torch.equal(v, weights(second)[name]) for name, v in weights(whole).items())


def test_data_that_always_give_nan_end_in_a_diagnosis_after_few_steps():
    state = make_state(epochs=20)
    spoil(state, lambda _batch: True)
    night = Night(state)
    night.save(0)
    with pytest.raises(UserError, match=r"not finite.*lower LEARNING_RATE") as stopped:
        fit(state, night.events())
    assert len(night.results) == 3 * (RETURNS + 1)
    assert "the example of messages" in str(stopped.value)
    assert f"{1e-2 / 2**RETURNS:.1e}" in str(stopped.value)


def test_fp16_goes_back_with_a_lower_scale():
    state = make_state()
    state.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    lower_rate(state)
    assert state.accelerator.scaler.get_scale() == 2.0**12


def test_fp16_leaves_out_a_step_whose_loss_is_infinite_although_its_gradient_is_not(monkeypatch):
    """As it comes about when a loss overflows that is only added to others."""
    state = make_state()
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")  # which accelerate refuses a CPU
    state.accelerator.native_amp = True
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state.accelerator.scaler = state.optimizer.scaler = scaler
    before = weights(state)
    state.model.register_forward_hook(lambda _model, _inputs, loss: loss + torch.inf)
    with pytest.raises(UserError, match="not finite"):
        fit(state, Night(state, can_go_back=False).events())
    assert all(torch.equal(value, before[name]) for name, value in weights(state).items())
    assert scaler.get_scale() == 8.0, "the gradients were fine"


def test_steps_that_fp16_leaves_out_are_counted_and_many_in_a_row_are_told(monkeypatch):
    state = make_state()
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")  # which accelerate refuses a CPU
    state.accelerator.native_amp = True
    state.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    state.optimizer = AcceleratedOptimizer(
        state.optimizer.optimizer, device_placement=False, scaler=state.accelerator.scaler
    )
    state.accelerator._optimizers = [state.optimizer]
    night = Night(state)
    too_large = {1, 2, 5, *range(8, 9 + OVERFLOWS_IN_A_ROW)}
    parameter = next(iter(state.trainable().values()))
    parameter.register_hook(
        lambda gradient: gradient * (torch.inf if len(night.results) + 1 in too_large else 1)
    )
    assert fit(state, night.events()) == "finished"
    assert state.mishaps.left_out == {"not_finite": 0, "overflowed": len(too_large)}
    assert state.scheduler.last_epoch == 15 - len(too_large)
    assert night.kinds() == ["fp16_overflow"]
    assert f"step {7 + OVERFLOWS_IN_A_ROW}: " in night.incidents[0][1]
    assert state.mishaps.overflows_in_a_row == 0


class Torn:
    """An example of which a part of the file is gone."""

    def __init__(self, example):
        self._example = example

    @property
    def input_ids(self):
        raise OSError("planted: cannot read block 7")

    def __getattr__(self, name):
        return getattr(self._example, name)

    def __len__(self):
        return len(self._example)


def with_faults(state, *faulty):
    """The state with these examples in the place of the first ones."""
    state.plan = replace(state.plan, examples=[*faulty, *state.plan.examples[len(faulty) :]])
    return state


def test_examples_that_cannot_be_used_cost_themselves():
    state = make_state()
    torn, foreign, short = state.plan.examples[:3]
    foreign = replace(foreign, input_ids=np.full_like(foreign.input_ids, 10**6))
    short = replace(short, trained=short.trained[:-1])
    with_faults(state, Torn(torn), foreign, short)
    night = Night(state)
    assert fit(state, night.events()) == "finished"
    assert night.kinds() == ["set_aside"] * 3
    told = " ".join(sentence for _, sentence in night.incidents)
    assert "planted: cannot read block 7" in told
    assert "tokens that the model does not know" in told
    assert torn.message_ids[0] in told

    without = make_state()
    without.mishaps.set_aside = dict.fromkeys(map(name_of, (torn, foreign, short)), "known")
    fit(without, Events())
    assert all(torch.equal(v, weights(without)[name]) for name, v in weights(state).items())


def test_too_many_of_them_end_the_run():
    state = make_state()
    with_faults(state, *map(Torn, state.plan.examples[:12]))
    with pytest.raises(UserError, match="had to be set aside"):
        fit(state, Events())


def test_mishaps_are_kept_in_a_checkpoint():
    mishaps = Mishaps({"the example of messages 1": "torn"}, 4, 1, 30, ["x"], 2)
    assert Mishaps.of(mishaps.as_progress()) == mishaps
    assert Mishaps.of({}) == Mishaps()
