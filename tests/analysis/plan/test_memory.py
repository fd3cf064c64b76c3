"""Memory decides the pieces, by arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from discord_lora.analysis.plan.memory import ActivationBytes, plan_memory

KNOWN = ActivationBytes(layers=10, layer=100.0, layer_input=10.0, outside=50.0, fixed=1000.0)


def plan(free, steps=(500,) * 9, longest=100, budget=None, checkpointing=None):
    return plan_memory(
        KNOWN, free, steps, longest, token_budget=budget, checkpointing=checkpointing
    )


def test_with_room_a_step_is_one_micro_batch_and_nothing_is_checkpointed():
    made = plan(free=1e9)
    assert (made.token_budget, made.checkpointed) == (500, 0)
    assert made.expected_bytes == 1000 + 500 * (10 * 100 + 50 + 200)


def test_only_as_many_layers_as_needed_are_checkpointed():
    # 500 tokens need 626,000 bytes; each checkpointed layer saves 45,000.
    made = plan(free=500_000)
    assert made.token_budget == 500
    assert 0 < made.checkpointed == 3
    assert made.expected_bytes <= 500_000 < KNOWN.needed(500, 2)


def test_with_little_room_pieces_are_small_and_all_layers_checkpointed():
    made = plan(free=50_000)
    assert made.token_budget == KNOWN.tokens_that_fit(50_000, made.checkpointed) >= 100
    assert made.checkpointed == 10


def test_without_packing_room_is_made_for_the_longest_example_alone():
    made = plan_memory(
        KNOWN, 500_000, (500,) * 9, 100, token_budget=None, checkpointing=None, packing=False
    )
    assert (made.token_budget, made.checkpointed) == (100, 0)


def test_what_the_user_sets_is_kept():
    assert plan(1e9, budget=64, longest=60).token_budget == 64
    assert plan(1e9, checkpointing=True).checkpointed == 10
    assert plan(1e3, checkpointing=False).checkpointed == 0


def test_where_nothing_seems_to_fit_the_smallest_way_is_tried():
    made = plan(free=0)
    assert (made.token_budget, made.checkpointed) == (100, 10)


@given(
    free=st.floats(0, 1e7),
    steps=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    longest=st.integers(1, 1000),
)
def test_a_plan_fits_or_is_the_smallest_there_is(free, steps, longest):
    longest = min(longest, max(steps))
    made = plan(free, steps, longest)
    assert longest <= made.token_budget <= max(steps)
    smallest = KNOWN.needed(longest, 10)
    assert made.expected_bytes <= max(free, smallest) + 1e-3


def test_a_budget_larger_than_any_step_asks_for_no_more_than_a_step():
    made = plan(free=1_000_000, budget=100_000)
    assert (made.token_budget, made.checkpointed) == (100_000, 0)
    assert made.expected_bytes == KNOWN.needed(500, 0)


def test_a_budget_below_the_longest_example_does_not_checkpoint_what_fits():
    made = plan(free=1_000_000, budget=64, longest=100)
    assert (made.token_budget, made.checkpointed) == (64, 0)
    assert made.expected_bytes == KNOWN.needed(100, 0)
