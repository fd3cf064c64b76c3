"""What work costs: counting it, fitting its prices, scaling them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.analysis.plan.model_shapes import MODELS
from discord_lora.analysis.plan.time_model import TimeModel, Work, fit, modelled
from planned_night import Example


def test_work_is_counted():
    made = Work.of([[Example(10, 4), Example(6, 3)], [Example(5, 5)]], steps=1)
    assert made == Work(1, 2, 21, 161, 12)
    assert made.times(3) == Work(3, 6, 63, 483, 36)


def test_a_fit_finds_the_prices_again():
    rate = {"flops_per_second": 1e12, "bytes_per_second": 1e10}
    before = modelled(MODELS[0], **rate, lora_r=16, checkpointed_share=0.0, number_bytes=4)
    truth = TimeModel(0.0, 0.3, *(1.7 * it for it in before.as_tuple()[2:]))
    works = [Work.of([[Example(n, n // 2)]]) for n in (30, 100, 300, 900)]
    noise = np.random.default_rng(0).normal(1, 0.01, len(works))
    samples = [(work, truth.seconds(work) * n) for work, n in zip(works, noise, strict=True)]
    found = fit(samples, 0.05, before)
    assert found.step == 0.05
    assert found.source == "calibrated"
    assert found.micro_batch == pytest.approx(0.3, rel=0.05)
    assert found.token == pytest.approx(truth.token, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-3, 10)), min_size=1, max_size=9))
def test_no_price_is_ever_negative(timed):
    rate = {"flops_per_second": 1e12, "bytes_per_second": 1e10}
    before = modelled(MODELS[0], **rate, lora_r=16, checkpointed_share=0.0, number_bytes=4)
    samples = [(Work.of([[Example(tokens, tokens)]]), seconds) for tokens, seconds in timed]
    assert min(fit(samples, 0.0, before).as_tuple()) >= 0


def test_checkpointing_costs_half_as_much_again():
    rate = {"flops_per_second": 1e12, "bytes_per_second": 1e10}
    without, with_it = (
        modelled(MODELS[6], **rate, lora_r=16, checkpointed_share=share, number_bytes=2)
        for share in (0.0, 1.0)
    )
    assert with_it.token == pytest.approx(1.5 * without.token, rel=0.02)
    assert with_it.micro_batch == pytest.approx(1.5 * without.micro_batch)


def test_a_pass_forward_costs_what_it_was_timed_at():
    """Not what the two ways back of a checkpointed micro-batch make of it."""
    work = Work(steps=5, micro_batches=17, tokens=432, targets=48)
    inferred = TimeModel(9.0, 0.6, 0.003, 1e-6, 0.001, "calibrated")
    timed = replace(inferred, forward=0.1)
    tokens = (432 * 0.003 + 48 * 0.001) / 3
    assert inferred.evaluation_seconds(work, 1.0) == pytest.approx(17 * 0.6 / 3 + tokens)
    assert timed.evaluation_seconds(work, 1.0) == pytest.approx(17 * 0.1 + tokens)
    assert timed.seconds(work) == inferred.seconds(work)
    slower = timed.scaled(2, "measured here")
    assert slower.evaluation_seconds(work, 1.0) == pytest.approx(2 * (17 * 0.1 + tokens))
