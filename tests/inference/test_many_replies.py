"""Many replies at once, on tiny models: whose turn it is, in time, and a free event loop."""

import asyncio
import gc
import time
from contextlib import aclosing

import pytest

from discord_lora.inference.backend import Busy, Sampling, TooSlow
from fakes import always_says, make_model
from inference.asking import ENDLESS, TOKENIZER, WORD, Clock, Gate, answer, asks, outcome, until


def test_channels_share_the_forward_passes(make_backend):
    backend = make_backend(model=make_model())
    always_says(backend.batch.model, WORD)
    passes = []
    gate = Gate(backend.batch.model)
    backend.batch.model.register_forward_pre_hook(
        lambda _model, _args, options: passes.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )

    async def eight():
        tasks = [asyncio.create_task(answer(backend, asks(channel=str(n)))) for n in range(8)]
        await until(lambda: backend.status().waiting == 7)
        gate.open.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(eight()) == [" ".join(["are"] * 12)] * 8
    steps = [shape for shape in passes if shape[1] == 1]
    assert len(steps) < 25
    assert max(rows for rows, _ in steps) == 8


@pytest.mark.alone
def test_the_event_loop_is_never_blocked(make_backend):
    """A watchdog wakes up every millisecond, while one forward pass takes longer than allowed."""
    backend = make_backend()
    always_says(backend.batch.model, WORD)
    backend.batch.model.register_forward_pre_hook(lambda *_: time.sleep(0.12))
    late = []

    async def watchdog():
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - began)

    async def talk():
        watching = asyncio.create_task(watchdog())
        short = Sampling(0, 1, 0, 1, max_reply_tokens=3)
        requests = [asks(channel=str(n), sampling=short) for n in range(2)]
        replies = await asyncio.gather(*(answer(backend, it) for it in requests))
        watching.cancel()
        return replies

    gc.collect()
    gc.freeze()  # as the bot does: else what the tests have in memory is looked through meanwhile
    try:
        assert asyncio.run(talk()) == ["are are are"] * 2
    finally:
        gc.unfreeze()
    assert len(late) > 100
    assert max(late) < 0.1


def test_when_the_line_is_full_the_unaddressed_go_first(make_backend):
    backend = make_backend(running=1, waiting=2)
    always_says(backend.batch.model, WORD)
    gate = Gate(backend.batch.model)

    async def crowd():
        async def come(name, addressed):
            request = asks(channel=name, addressed=addressed)
            task = asyncio.create_task(outcome(backend, request))
            await asyncio.sleep(0)
            if name == "first":
                await until(gate.entered.is_set)
            return task

        tasks = {
            name: await come(name, addressed)
            for name, addressed in [
                ("first", True),
                ("chime", False),
                ("asked", True),
                ("asked2", True),
                ("chime2", False),
                ("asked3", True),
            ]
        }
        await until(lambda: sum(task.done() for task in tasks.values()) == 3)
        gate.open.set()
        return {name: await task for name, task in tasks.items()}

    got = asyncio.run(crowd())
    refused = {name for name, reply in got.items() if reply is Busy}
    assert refused == {"chime", "chime2", "asked3"}
    assert {reply for name, reply in got.items() if name not in refused} == {" ".join(["are"] * 12)}


# --- time -------------------------------------------------------------------------------------


def test_no_word_in_time_is_too_slow_and_waiting_counts(make_backend):
    clock = Clock()
    backend = make_backend(running=1, clock=clock)
    always_says(backend.batch.model, WORD)
    gate = Gate(backend.batch.model)

    async def wait():
        running = asyncio.create_task(outcome(backend, asks(channel="a", seconds=100)))
        waiting = asyncio.create_task(outcome(backend, asks(channel="b", seconds=5)))
        await until(lambda: gate.entered.is_set() and backend.status().waiting == 1)
        clock.now = 10.0
        gate.open.set()
        return await running, await waiting

    reply, late = asyncio.run(wait())
    assert reply == " ".join(["are"] * 12)
    assert late is TooSlow


def test_an_answer_ends_where_its_time_does(make_backend):
    clock = Clock()
    backend = make_backend(clock=clock)
    model = backend.batch.model
    numbers = TOKENIZER(" ".join(map(str, range(300))), add_special_tokens=False).input_ids
    always_says(model, WORD)

    def pass_time(*_inputs):
        clock.now += 1.0
        model.lm_head.bias.data.zero_()
        model.lm_head.bias.data[numbers[int(clock.now)]] = 100.0

    model.register_forward_pre_hook(pass_time)
    reply = "".join(backend.stream(asks(sampling=ENDLESS, seconds=20)))
    assert reply
    assert clock.now <= 22
    assert backend.status().replies == 1


def test_a_closed_answer_leaves_the_batch_and_its_cache_remains(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, WORD)

    async def leave():
        async with aclosing(backend.reply(asks(sampling=ENDLESS))) as pieces:
            async for _ in pieces:
                break
        await until(lambda: backend.status().running == 0)

    asyncio.run(leave())
    assert len(backend.batch.caches) == 1
    assert backend.status().replies == 0
    assert "".join(backend.stream(asks())) == " ".join(["are"] * 12)


def test_a_cancelled_task_leaves_the_line(make_backend):
    backend = make_backend(running=1)
    always_says(backend.batch.model, WORD)
    gate = Gate(backend.batch.model)

    async def leave():
        first = asyncio.create_task(answer(backend, asks(channel="a")))
        second = asyncio.create_task(answer(backend, asks(channel="b")))
        await until(lambda: gate.entered.is_set() and backend.status().waiting == 1)
        second.cancel()
        gate.open.set()
        assert await first == " ".join(["are"] * 12)
        await until(lambda: backend.status().waiting == 0)

    asyncio.run(leave())
    assert backend.status().replies == 1
