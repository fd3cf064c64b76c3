"""Memory that runs out costs time, and no step: in the model's passes, and beside them."""

import functools
import gc
import random

import pytest
import torch

from discord_lora.console import UserError
from discord_lora.conversations.packing import pack
from discord_lora.finetuning.loop import Events, evaluate, fit
from discord_lora.finetuning.mishaps import (
    LONGEST_PAUSE,
    TRIES_ALONE,
    name_of,
)
from discord_lora.finetuning.out_of_memory import optimizer_states_to_come, try_largest
from finetuning_state import Night, make_state, nobody, weights


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Between the tries of an example for which memory runs out; none of them is waited for."""
    waited = []
    monkeypatch.setattr("discord_lora.finetuning.out_of_memory.time.sleep", waited.append)
    return waited


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
    state = in_pieces(epochs=4)
    draw = random.Random(seed)
    failed = []
    fail(state, lambda _: draw.random() < 0.2 and not failed.append(1))
    night = Night(state)
    fit(state, night.events())
    assert len(failed) > 20
    assert [r.step for r in night.results] == list(range(1, state.plan.steps + 1))
    assert all(result.loss is not None for result in night.results)
    assert not state.mishaps.set_aside
    assert close(undisturbed_weights(), weights(state), 1e-4)


@functools.cache
def undisturbed_weights():
    """Of the run that the test above disturbs each time in another way."""
    state = in_pieces(epochs=4)
    fit(state, Events())
    return weights(state)


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


# The largest micro-batch, before the start --------------------------------------------------


def test_the_largest_micro_batch_is_tried_before_anything_is_learned():
    state = make_state(budget=100)
    before, seen = weights(state), []
    state.model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0]))
    tokens = try_largest(state, nobody)
    rows = [row for step in state.plan.walk() for row in pack(step, 100)]
    assert tokens == max(sum(map(len, row)) for row in rows) == seen[0].input_ids.shape[1]
    assert len(seen) == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(state).items())
    assert not any(parameter.grad.any() for parameter in state.trainable().values())


def test_room_for_the_optimizer_is_held_while_the_largest_is_tried():
    """Its states come into being at the first step, after the try."""
    state = make_state(budget=100)
    size = 8 * sum(p.numel() for p in state.trainable().values())
    held = []

    def look(_model, _inputs):
        tensors = (it for it in gc.get_objects() if type(it) is torch.Tensor)
        held.append(any(it.dtype == torch.uint8 and it.nbytes == size for it in tensors))

    hook = state.model.register_forward_pre_hook(look)
    try_largest(state, nobody)
    hook.remove()
    assert held == [True]
    fit(state, Events())
    assert optimizer_states_to_come(state).nbytes == 0
