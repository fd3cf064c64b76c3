from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.packing import (
    collate,
    divide,
    idle_batch,
    pack,
    plan_training,
    shares,
    steps_per_epoch,
)


def example(tokens=10, targets=1, name="e"):
    trained = np.zeros(tokens, dtype=np.bool_)
    trained[tokens // 2 :] = True
    ids = tuple(f"{name}-{n}" for n in range(targets))
    return TokenizedExample(name, ids, np.arange(tokens, dtype=np.int32) + 5, trained, 10)


def plan(counts, per_step, epochs=1.0, max_steps=0, seed=1):
    examples = [example(targets=count, name=str(n)) for n, count in enumerate(counts)]
    return plan_training(
        examples, messages_per_step=per_step, epochs=epochs, max_steps=max_steps, seed=seed
    )


def test_the_classic_arithmetic_holds():
    assert steps_per_epoch(63_000, 16) == 3_938
    counts = [16] * 3_937 + [8]
    assert plan(counts, 16).steps == 3_938
    assert plan(counts, 16, epochs=3).steps == 11_814
    assert plan(counts, 16, epochs=0.5).steps == 1_969
    assert plan(counts, 16, epochs=1, max_steps=1_969).steps == 1_969
    assert plan(counts, 16, epochs=1, max_steps=5_000).steps == 3_938


@settings(max_examples=100, deadline=None)
@given(
    per_step=st.integers(1, 20),
    data=st.data(),
    epochs=st.floats(0.3, 3.0),
    seed=st.integers(0, 100),
)
def test_each_step_has_its_share_and_an_epoch_sees_each_example_once(per_step, data, epochs, seed):
    counts = data.draw(st.lists(st.integers(1, per_step), min_size=1, max_size=60))
    made = plan(counts, per_step, epochs=epochs, seed=seed)
    steps = list(made.walk())
    assert len(steps) == made.steps
    assert all(steps)
    whole = steps[: made.steps_per_epoch]
    if made.steps >= made.steps_per_epoch:
        seen = Counter(e.conversation_id for step in whole for e in step)
        assert seen == Counter(e.conversation_id for e in made.examples)
    assert max(sum(e.targets for e in step) for step in steps) <= 3 * per_step


def test_a_run_that_goes_on_sees_what_it_would_have_seen():
    made = plan([3] * 40, 6, epochs=2.5)
    names = [[e.conversation_id for e in step] for step in made.walk()]
    for first in (1, 7, 20, 33):
        assert [[e.conversation_id for e in step] for step in made.walk(first)] == names[first:]


def test_epochs_and_seeds_shuffle_differently():
    orders = {
        tuple(
            e.conversation_id
            for step in list(plan([1] * 30, 5, 2, seed=seed).walk())[a:b]
            for e in step
        )
        for seed in (1, 2)
        for a, b in ((0, 6), (6, 12))
    }
    assert len(orders) == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 50), min_size=1, max_size=30), st.integers(10, 100))
def test_packing_keeps_every_example_whole_and_within_the_budget(lengths, budget):
    examples = [example(tokens=n, name=str(i)) for i, n in enumerate(lengths)]
    rows = pack(examples, budget)
    assert Counter(e.conversation_id for r in rows for e in r) == Counter(
        map(str, range(len(lengths)))
    )
    assert all(len(row) == 1 or sum(map(len, row)) <= budget for row in rows)
    assert len(pack(examples, budget, packing=False)) == len(examples)


def test_a_row_restarts_positions_and_never_predicts_across_neighbours():
    batch = collate([example(tokens=4), example(tokens=3)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.predictors.tolist() == [1, 2, 4, 5]
    assert batch.labels.tolist() == [7, 8, 6, 7]


@pytest.mark.parametrize("trained", [True, False])
def test_the_first_token_of_an_example_is_nobodys_label(trained):
    full = TokenizedExample("x", ("1",), np.array([1, 2], np.int32), np.array([trained] * 2), 1)
    batch = collate([full, full])
    assert batch.labels.tolist() == ([2, 2] if trained else [])


def test_the_rows_of_all_processes_hold_each_example_once():
    examples = [example(tokens=3 + n % 7, name=str(n)) for n in range(20)]
    parts = shares(examples, 3, token_budget=20)
    assert sorted(e.conversation_id for part in parts for row in part for e in row) == sorted(
        e.conversation_id for e in examples
    )
    for part, alone in zip(parts, divide(examples, 3), strict=True):
        assert part == pack(alone, 20)


def test_an_idle_batch_is_short_and_has_nothing_to_learn():
    batch = idle_batch([example(tokens=9), example(tokens=4)])
    assert batch.lengths == (4,)
    assert batch.predictors.tolist() == batch.labels.tolist() == []


def test_half_an_epoch_more_is_the_other_half():
    first = plan([1] * 40, 4, epochs=0.5)
    more = plan_training(
        first.examples, messages_per_step=4, epochs=0.5, max_steps=0, seed=1, skip_steps=first.steps
    )
    seen = [e.conversation_id for p in (first, more) for step in p.walk() for e in step]
    assert sorted(seen) == sorted(e.conversation_id for e in first.examples)
    assert [more.ends_epoch(step) for step in (1, 4, 5)] == [False, False, True]
