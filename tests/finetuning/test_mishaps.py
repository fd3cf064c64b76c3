"""A night goes on: memory that runs out, losses that are not finite, examples that cannot be read.

Faults come in where the outside meets the loop: in the model's passes and in the data."""

import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from discord_lora.console import UserError
from discord_lora.finetuning.loop import Events, evaluate, fit
from discord_lora.finetuning.mishaps import (
    LONGEST_PAUSE,
    OVERFLOWS_IN_A_ROW,
    RETURNS,
    TRIES_ALONE,
    Mishaps,
    name_of,
)
from discord_lora.finetuning.out_of_memory import try_largest
from discord_lora.finetuning.training_state import lower_rate, restore, snapshot
from finetuning_state import make_state, weights


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Between the tries of an example for which memory runs out; none of them is waited for."""
    waited = []
    monkeypatch.setattr("discord_lora.finetuning.out_of_memory.time.sleep", waited.append)
    return waited


@dataclass
class Night:
    """Listens to a run, keeps its checkpoints, and goes back as a session does."""

    state: object
    incidents: list = field(default_factory=list)
    results: list = field(default_factory=list)
    checkpoints: list = field(default_factory=list)
    can_go_back: bool = True

    def events(self, **options):
        return Events(
            stepped=self.results.append,
            save=self.save,
            incident=lambda what, sentence: self.incidents.append((what, sentence)),
            go_back=self.go_back if self.can_go_back else None,
            **options,
        )

    def save(self, step):
        self.checkpoints.append(snapshot(self.state, step, self.state.mishaps.as_progress()))

    def go_back(self):
        mishaps, checkpoint = self.state.mishaps, self.checkpoints.pop()
        restore(self.state, checkpoint)
        self.state.mishaps = mishaps
        lower_rate(self.state)
        return checkpoint.step

    def kinds(self):
        return [what for what, _ in self.incidents]


def in_pieces(**options):
    """Steps of several examples."""
    return make_state(budget=400, max_targets=2, **options)


def fail_when(state, when):
    """Let memory run out in passes over micro-batches of which `when` says so."""

    def fail(_model, inputs):
        if when(inputs[0]):
            raise torch.OutOfMemoryError("planted")

    return state.model.register_forward_pre_hook(fail)


def fail_in_backward(state, when):
    """The same on the way back, where memory usually runs out: at the first layer, when those after
    it have their gradients already."""
    parameters = list(state.trainable().values())

    def fail(gradient):
        if when(gradient):
            assert any(p.grad is not None and p.grad.any() for p in parameters)
            raise torch.OutOfMemoryError("planted")

    return parameters[0].register_hook(fail)


both_ways = pytest.mark.parametrize("fail", [fail_when, fail_in_backward])


def close(one, other, tolerance=1e-5):
    return all(torch.allclose(value, other[name], atol=tolerance) for name, value in one.items())


@both_ways
def test_out_of_memory_divides_the_step_and_changes_nothing(fail):
    state, undisturbed = in_pieces(), in_pieces()
    failures = iter([False, True, False, False, True])
    fail(state, lambda _: next(failures, False))
    night = Night(state)
    assert fit(state, night.events()) == "finished"
    fit(undisturbed, Events())
    assert set(night.kinds()) == {"out_of_memory"}
    assert state.token_budget < 400
    assert state.scheduler.last_epoch == 15
    assert close(weights(undisturbed), weights(state))


@both_ways
@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_all_passes_runs_out_of_memory_and_nothing_is_lost(seed, fail):
    state, undisturbed = in_pieces(epochs=4), in_pieces(epochs=4)
    draw = random.Random(seed)
    failed = []
    fail(state, lambda _: draw.random() < 0.2 and not failed.append(1))
    night = Night(state)
    fit(state, night.events())
    fit(undisturbed, Events())
    assert len(failed) > 20
    assert [r.step for r in night.results] == list(range(1, state.plan.steps + 1))
    assert all(result.loss is not None for result in night.results)
    assert not state.mishaps.set_aside
    assert close(weights(undisturbed), weights(state), 1e-4)


def test_memory_that_is_short_for_a_moment_costs_the_norm_nothing(monkeypatch):
    state, undisturbed = make_state(), make_state()
    fit(undisturbed, Events())
    clip, failures = torch.nn.utils.clip_grad_norm_, iter([False, True])

    def fail_once(*arguments):
        if next(failures, False):
            raise torch.OutOfMemoryError("planted")
        return clip(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail_once)
    fit(state, Events())
    assert all(torch.equal(v, weights(state)[name]) for name, v in weights(undisturbed).items())


@pytest.mark.parametrize("place", ["norm", "optimizer", "weights"])
def test_memory_that_runs_out_beside_the_passes_is_one_sentence(monkeypatch, place):
    state = make_state()

    def fail(*_arguments, **_options):
        raise torch.OutOfMemoryError("planted")

    if place == "norm":
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", fail)
    elif place == "optimizer":
        state.optimizer.step = fail
    else:
        monkeypatch.setattr("discord_lora.finetuning.training_state.whole", fail)
    with pytest.raises(UserError, match=r"Memory ran out .* close other programs|Close other"):
        fit(state, Night(state).events())


def test_an_example_that_never_fits_is_set_aside_and_the_rest_is_learned(pauses):
    state = in_pieces()
    longest = max(map(len, state.plan.examples))
    culprits = [e for e in state.plan.examples if len(e) == longest]
    fail_when(state, lambda batch: max(batch.lengths) == longest)
    night = Night(state)
    assert fit(state, night.events()) == "finished"
    assert set(state.mishaps.set_aside) == {name_of(example) for example in culprits}
    aside = [sentence for what, sentence in night.incidents if what == "set_aside"]
    assert culprits[0].message_ids[0] in " ".join(aside)
    assert f"{longest:,} tokens do not fit into memory" in aside[0]
    assert state.memory.checkpointed == state.memory.layers, "that was tried before"
    assert min(pauses) > 0 and max(pauses) <= LONGEST_PAUSE and len(pauses) >= TRIES_ALONE - 2

    known_before = in_pieces()
    known_before.mishaps.set_aside = dict.fromkeys(map(name_of, culprits), "known")
    fit(known_before, Events())
    assert close(weights(known_before), weights(state))


def test_an_examples_tries_do_not_begin_before_it_is_alone():
    """Something else may have taken the memory for a moment."""
    state, alone = in_pieces(), []

    def is_short(batch):
        if len(alone) == TRIES_ALONE - 1:
            return False
        if len(batch.lengths) == 1:
            alone.append(batch)
        return True

    fail_when(state, is_short)
    night = Night(state)
    assert fit(state, night.events()) == "finished"
    assert len(night.incidents) > 2, "rows were divided before"
    assert not state.mishaps.set_aside


def test_what_does_not_fit_is_found_out_at_the_start():
    state = in_pieces()
    longest = max(map(len, state.plan.examples))
    fail_when(state, lambda batch: sum(batch.lengths) > 100 or max(batch.lengths) == longest)
    night = Night(state)
    tokens = try_largest(state, lambda what, sentence: night.incidents.append((what, sentence)))
    assert tokens <= 100
    assert state.token_budget <= 100
    assert state.mishaps.set_aside
    told = len(night.incidents)
    fit(state, night.events())
    assert len(night.incidents) == told, "nothing is left to be found out in the night"


def test_when_nothing_fits_the_run_ends_in_one_sentence():
    state, tries = make_state(), []
    fail_when(state, lambda batch: not tries.append(batch))
    with pytest.raises(UserError, match="lower MAX_SEQ_LENGTH"):
        fit(state, Events())
    assert len(tries) <= 12 * (TRIES_ALONE + 2) + 20


def test_the_held_out_loss_is_measured_in_smaller_pieces():
    state = in_pieces()
    expected = evaluate(state)
    failures = iter([True, False, True])
    fail_when(state, lambda _batch: next(failures, False))
    measured = evaluate(state)
    assert state.token_budget < 400
    assert measured.nats_per_token == pytest.approx(expected.nats_per_token, rel=1e-6)
    assert measured.messages == expected.messages


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
