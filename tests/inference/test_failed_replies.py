"""What goes wrong fails the replies that it must, on tiny models, and the next are answered."""

import asyncio
import logging
import time

import pytest
import torch

from discord_lora.inference.backend import Busy, GenerationFailed
from fakes import always_says, chatter, make_model_of, say
from inference.asking import ENDLESS, TOKENIZER, WORD, Gate, answer, asks, outcome, until


def test_a_failed_pass_fails_its_answers_and_the_next_are_answered(make_backend, caplog):
    backend = make_backend()
    model = backend.batch.model
    always_says(model, WORD)
    broken = model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)

    async def fail():
        requests = [asks(channel=str(n)) for n in range(3)]
        return await asyncio.gather(*(outcome(backend, it) for it in requests))

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(fail()) == [GenerationFailed] * 3
    assert "ZeroDivisionError" in caplog.text and "Traceback" in caplog.text
    broken.remove()
    assert "".join(backend.stream(asks())) == " ".join(["are"] * 12)


def test_an_answer_whose_scores_are_no_numbers_fails_alone(make_backend, caplog):
    backend = make_backend()
    always_says(backend.batch.model, WORD)

    def overflow(_head, _inputs, scores):
        if len(scores) == 2:
            scores[1] = float("nan")

    hook = backend.batch.model.lm_head.register_forward_hook(overflow)

    async def both():
        requests = [asks(channel=name) for name in "ab"]
        return await asyncio.gather(*(outcome(backend, it) for it in requests))

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(both()) == [" ".join(["are"] * 12), GenerationFailed]
    assert "no numbers" in caplog.text
    hook.remove()
    assert "".join(backend.stream(asks(channel="b"))) == " ".join(["are"] * 12)


def test_a_prompt_that_cannot_be_rendered_fails_alone(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, WORD)
    broken = asks(say("Bob", None), channel="broken")

    async def both():
        return await asyncio.gather(outcome(backend, broken), outcome(backend, asks()))

    assert asyncio.run(both()) == [GenerationFailed, " ".join(["are"] * 12)]


def test_out_of_memory_halves_the_batch_and_every_answer_goes_on(make_backend):
    model = make_model_of("llama")
    alone = make_backend(model=model)
    talks = {str(n): chatter(3 + n) for n in range(4)}
    wanted = ["".join(alone.stream(asks(*talks[c], channel=c))) for c in talks]
    backend = make_backend(model=model)

    def too_many(_layer, inputs):
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("too many rows")

    hook = model.model.layers[1].register_forward_pre_hook(too_many)

    async def crowd():
        return await asyncio.gather(
            *(answer(backend, asks(*talks[channel], channel=channel)) for channel in talks)
        )

    assert asyncio.run(crowd()) == wanted
    hook.remove()
    assert backend._worker.most_running < 4


def test_after_a_while_in_peace_more_are_answered_at_once_again(make_backend, monkeypatch):
    monkeypatch.setattr("discord_lora.inference.worker.PEACEFUL_STEPS", 5)
    backend = make_backend(running=3)
    always_says(backend.batch.model, WORD)

    def runs_out(*_inputs):
        raise torch.OutOfMemoryError("another program has it")

    hook = backend.batch.model.model.layers[1].register_forward_pre_hook(runs_out)
    with pytest.raises(GenerationFailed):
        list(backend.stream(asks()))
    hook.remove()
    assert backend._worker.most_running == 1
    for most in (3, 3):
        assert "".join(backend.stream(asks())) == " ".join(["are"] * 12)
        assert backend._worker.most_running == most


def test_out_of_memory_with_one_answer_fails_it_after_a_second_try(make_backend):
    backend = make_backend()
    tries = []

    def never(*_inputs):
        tries.append(1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    hook = backend.batch.model.model.layers[1].register_forward_pre_hook(never)
    with pytest.raises(GenerationFailed):
        list(backend.stream(asks()))
    assert len(tries) == 2
    hook.remove()
    assert isinstance("".join(backend.stream(asks())), str)


def test_an_event_loop_that_is_gone_disturbs_nobody(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, WORD)
    gate = Gate(backend.batch.model)

    async def begin():
        pieces = backend.reply(asks(channel="gone"))
        task = asyncio.ensure_future(anext(pieces))
        await until(gate.entered.is_set)
        task.cancel()

    asyncio.run(begin())
    gate.open.set()
    assert "".join(backend.stream(asks())) == " ".join(["are"] * 12)


def test_closing_is_quick_and_ends_what_runs(make_backend):
    backend = make_backend()
    numbers = iter(range(10**9))
    model = backend.batch.model
    always_says(model, WORD)
    vary = TOKENIZER("abcdefghijklmnopqrstuvwxyz0123456789", add_special_tokens=False).input_ids

    def next_letter(*_inputs):
        number = next(numbers)
        model.lm_head.bias.data.zero_()
        model.lm_head.bias.data[vary[number * number % 31 % len(vary)]] = 100.0

    model.register_forward_pre_hook(next_letter)

    async def leave():
        pieces = backend.reply(asks(sampling=ENDLESS))
        await anext(pieces)
        began = time.monotonic()
        await backend.close()
        assert time.monotonic() - began < 2
        assert len([piece async for piece in pieces]) < 10**6
        assert await outcome(backend, asks()) is Busy

    asyncio.run(leave())
    assert not backend._worker._thread.is_alive()
