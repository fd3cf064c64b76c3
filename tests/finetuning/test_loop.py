"""What the training loop promises, on a tiny model in fp32."""

from types import SimpleNamespace

import pytest
import torch

from discord_lora.console import UserError
from discord_lora.conversations.examples import Limits, make_examples
from discord_lora.conversations.packing import collate, divide, idle_batch, plan_training
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice
from discord_lora.finetuning import loop, training_state
from discord_lora.finetuning.loop import Events, GivenUpError, accumulate_gradients, evaluate, fit
from discord_lora.finetuning.out_of_memory import (
    accumulate_row_by_row,
    largest_row,
    try_largest,
)
from discord_lora.finetuning.training_state import restore, snapshot
from discord_lora.inference.backend import Request, Sampling
from discord_lora.inference.local_backend import LocalBackend
from fakes import conversation, say
from finetuning_state import TOKENIZER, make_state, nobody, weights


def gradients(state, examples):
    state.optimizer.zero_grad()
    accumulate_gradients(state, examples, Events())
    return {n: p.grad.clone() for n, p in state.trainable().items() if p.grad is not None}


def wake_up(state):
    """Give LoRA's B matrices values, so that gradients reach A as well."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in state.trainable().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)


def test_packed_neighbours_do_not_see_each_other():
    state = make_state()
    state.model.eval()
    first, second, other = state.plan.examples[:3]
    with torch.no_grad():
        alone = state.model(collate([second]))
        beside = [
            state.model(collate([neighbour, second])) - state.model(collate([neighbour]))
            for neighbour in (first, other)
        ]
    for loss in beside:
        assert loss == pytest.approx(float(alone), rel=1e-5)


def test_packed_gradients_equal_those_of_single_examples():
    state = make_state(budget=10_000)
    wake_up(state)
    examples = state.plan.examples[:6]
    packed = gradients(state, examples)
    state.packing = False
    single = gradients(state, examples)
    assert packed.keys() == single.keys()
    for name, gradient in packed.items():
        difference = (gradient - single[name]).norm() / single[name].norm()
        assert difference < 1e-4, name


def test_the_loss_of_a_step_is_divided_by_its_own_targets():
    state = make_state(budget=60)
    examples = state.plan.examples[:4]
    loss = accumulate_gradients(state, examples, Events())
    with torch.no_grad():
        state.model.eval()
        total = sum(float(state.model(collate([e]))) for e in examples)
    assert float(loss) == pytest.approx(
        total / sum(int(e.trained.sum()) for e in examples), rel=1e-4
    )


def test_packing_changes_neither_the_steps_nor_the_adapter():
    ends = []
    for packing in (True, False):
        state = make_state(packing=packing)
        assert fit(state, Events()) == "finished"
        ends.append(weights(state))
        assert state.scheduler.last_epoch == state.plan.steps == 15
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


def test_training_lowers_the_loss():
    state = make_state(epochs=8, rate=3e-2)
    before = evaluate(state)
    fit(state, Events())
    after = evaluate(state)
    assert after.nats_per_token < before.nats_per_token - 0.2
    assert after.bits_per_character < before.bits_per_character


def test_a_stopped_run_goes_on_bit_for_bit():
    whole = make_state(dropout=0.1, epochs=2)
    fit(whole, Events())

    kept = []
    first = make_state(dropout=0.1, epochs=2)
    events = Events(save=lambda step: kept.append(snapshot(first, step, {})))
    events.stop_requested = lambda: first.scheduler.last_epoch == 7
    assert fit(first, events) == "stopped"
    assert [c.step for c in kept] == [7]

    second = make_state(dropout=0.1, epochs=2)
    restore(second, kept[0])
    assert fit(second, Events(), first_step=7) == "finished"
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


@pytest.mark.parametrize("saved_before", [False, True])
def test_in_a_hurry_the_step_is_given_up_and_what_was_done_before_is_saved(saved_before):
    whole = make_state(dropout=0.1, budget=60, max_targets=2)
    fit(whole, Events())

    kept, passes = [], []
    first = make_state(dropout=0.1, budget=60, max_targets=2)
    rows = [len(first.micro_batches(examples)) for examples in first.plan.walk()]
    done = next(step for step in range(3, len(rows)) if rows[step] > 1)
    events = Events(save=lambda step: kept.append(snapshot(first, step, {})))
    events.save_every_steps = done if saved_before else 100
    # In the middle of the step after these: it is looked before each micro-batch.
    events.hurried = lambda: passes.append(1) or len(passes) > sum(rows[:done]) + 1
    assert fit(first, events) == "stopped"
    assert [c.step for c in kept] == [done], "once, whether it had just been saved or not"
    assert not any(parameter.grad.any() for parameter in first.trainable().values())

    second = make_state(dropout=0.1, budget=60, max_targets=2)
    restore(second, kept[0])
    assert fit(second, Events(), first_step=done) == "finished"
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


def test_checkpoints_are_asked_for_on_time():
    saved, measured = [], []
    fit(
        make_state(epochs=2),
        Events(save=saved.append, measure=measured.append, save_every_steps=4),
    )
    assert saved == [4, 8, 12, 15, 16, 20, 24, 28, 30]
    assert measured == [15]


def failing_saves(*failing, **options):
    """Events whose saves fail at these steps; the steps that were saved, and the incidents."""
    saved, incidents = [], []

    def save(step):
        if step in failing:
            return UserError("Cannot save (planted).")
        saved.append(step)
        return None

    def told(*incident):
        incidents.append(incident)

    return Events(save=save, incident=told, **options), saved, incidents


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_night():
    events, saved, incidents = failing_saves(4, 8, save_every_steps=4)
    state = make_state()
    # After trouble at step 3: without a checkpoint beyond it, it counts as the same trouble.
    state.mishaps.returns, state.mishaps.last_bad_step = 2, 3
    counted = []
    events.stepped = lambda _result: counted.append(state.mishaps.returns)
    assert fit(state, events) == "finished"
    assert saved == [12, 15]
    assert counted == [2] * 12 + [0] * 3
    assert [what for what, _ in incidents] == ["not_saved"] * 2
    assert "no checkpoint after step 4, training goes on without" in incidents[0][1]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_ends_has_to_be_saved(stopped):
    state = make_state()
    events, saved, incidents = failing_saves(7, 15)
    events.stop_requested = lambda: stopped and state.scheduler.last_epoch == 7
    with pytest.raises(UserError, match=r"planted.*goes on from the checkpoint before"):
        fit(state, events)
    assert saved == incidents == []


def test_in_a_hurry_what_could_not_be_saved_before_is_saved():
    state, passes = make_state(), []
    events, saved, _ = failing_saves(4, save_every_steps=4)
    rows = [len(state.micro_batches(examples)) for examples in state.plan.walk()]
    events.hurried = lambda: passes.append(1) or len(passes) > sum(rows[:5])
    assert fit(state, events) == "stopped"
    assert saved == [5]


def test_the_held_out_loss_is_measured_as_often_as_asked_and_may_end_the_run():
    saved, measured = [], []
    events = Events(save=saved.append, save_every_steps=100, eval_every_steps=4)
    events.measure = lambda step: measured.append(step) or step == 12
    assert fit(make_state(epochs=2), events) == "early"
    assert saved == measured == [4, 8, 12]


def test_the_trained_model_says_its_line_and_stops_by_itself():
    """From chat to reply: what was trained as end-of-turn is what ends the generation."""
    talk = conversation(say("Bob", "hi"), say("Ada", "hello there", minute=1))
    voice = persona_voice("Ada", "id-Ada")
    prompt_format = PromptFormat(TOKENIZER, voice)
    examples = make_examples([talk], prompt_format, Limits(256, 0, max_targets=1)) * 8
    plan = plan_training(examples, messages_per_step=8, epochs=150, max_steps=0, seed=1)
    state = make_state(plan=plan, rate=2e-2)
    fit(state, Events())

    backend = LocalBackend(state.training_model.model, TOKENIZER, voice, max_prompt_tokens=256)
    sampling = Sampling(0, 1, 0, 1, max_reply_tokens=100)
    asked = Request(conversation(say("Bob", "hi")), sampling, "general", True, seconds=60)
    assert "".join(backend.stream(asked)) == "hello there"
    backend.close_now()


def places_of_gradients(state):
    return [p.grad.data_ptr() for p in state.trainable().values()]


def test_gradients_stay_where_they_are():
    state = make_state(budget=60)
    assert not any(p.grad.any() for p in state.trainable().values())
    places = places_of_gradients(state)
    try_largest(state, nobody)
    fit(state, Events())
    assert places_of_gradients(state) == places


def test_freed_memory_is_handed_back_after_each_step(monkeypatch):
    state, handed_back, steps = make_state(), [], []
    monkeypatch.setattr(loop, "release_freed_ram", lambda: handed_back.append(len(steps)))
    fit(state, Events(stepped=lambda result: steps.append(result.step)))
    assert len(steps) == state.plan.steps
    assert handed_back == list(range(len(steps))), "once a step, within its time"


def test_gradients_stay_where_they_are_in_smaller_pieces_too():
    state = make_state(budget=60)
    places = places_of_gradients(state)
    assert accumulate_row_by_row(state, state.plan.examples[:4], lambda: None, nobody) is not None
    assert places_of_gradients(state) == places

    begun = []

    def give_up_at_the_second_row():
        begun.append(True)
        if len(begun) == 2:
            raise GivenUpError

    with pytest.raises(GivenUpError):
        accumulate_row_by_row(state, state.plan.examples[:4], give_up_at_the_second_row, nobody)
    assert places_of_gradients(state) == places


def test_a_weight_that_no_row_meets_has_a_gradient_of_zero_in_smaller_pieces_too():
    state = make_state()
    unused = torch.nn.Parameter(torch.ones(3))
    unused.grad = torch.zeros(3)
    state.training_model.model.register_parameter("unused", unused)
    assert accumulate_row_by_row(state, state.plan.examples[:4], lambda: None, nobody) is not None
    assert unused.grad.tolist() == [0, 0, 0]


def test_no_memory_for_the_first_gradients_ends_in_a_sentence(monkeypatch):
    def full(_parameters):
        raise MemoryError

    monkeypatch.setattr(training_state, "keep_gradients", full)
    with pytest.raises(UserError, match="do not fit into the memory"):
        make_state()


def as_process(state, index, count):
    """What this state would be in one of several processes."""
    state.accelerator = SimpleNamespace(
        num_processes=count, process_index=index, device=torch.device("cpu")
    )
    return state


def test_every_process_makes_as_many_passes():
    examples = make_state().plan.examples[:5]
    states = [as_process(make_state(budget=1), index, 4) for index in range(4)]
    batches = [state.micro_batches(examples) for state in states]
    assert [len(one) for one in batches] == [2] * 4, "five examples of four processes"
    targets = sum(len(batch.labels) for one in batches for batch in one)
    assert targets == sum(example.trained_tokens for example in examples)


def test_the_largest_micro_batch_is_that_of_one_processs_share():
    state = as_process(make_state(budget=10_000), 0, 2)
    steps = [state.plan.examples[:4], state.plan.examples[4:9]]
    tokens = sum(map(len, largest_row(state, steps)))
    parts = [part for step in steps for part in divide(step, 2)]
    assert tokens == max(sum(map(len, part)) for part in parts)
    assert tokens < max(sum(map(len, step)) for step in steps)


@pytest.mark.parametrize("fast", [True, False])
def test_an_idle_batch_adds_nothing(fast):
    state = make_state()
    wake_up(state)
    model = state.training_model
    model.has_head_loss = model.has_head_loss and fast
    loss = model(idle_batch(state.plan.examples))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(p.grad.abs().max()) == 0.0 for p in state.trainable().values())


@pytest.mark.parametrize("budget", [64, 256, 4096])
def test_the_token_budget_does_not_change_what_is_learned(budget):
    state, reference = make_state(budget=budget, epochs=2), make_state(budget=1000, epochs=2)
    fit(state, Events())
    fit(reference, Events())
    assert state.plan.steps == 30
    for name, value in weights(reference).items():
        assert torch.allclose(value, weights(state)[name], atol=2e-5), name
