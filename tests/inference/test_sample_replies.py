"""The engine with the real sample model: what the tiny ones cannot show."""

import asyncio
import time

import pytest
import torch

from discord_lora.base_model import load_base_model, load_tokenizer
from discord_lora.conversations.prompt_format import persona_voice, server_voice
from discord_lora.hardware import detect_hardware
from discord_lora.inference.backend import Request, Sampling
from discord_lora.inference.local_backend import LocalBackend
from discord_lora.model_location import locate_base_model
from fakes import chatter, conversation, say

pytestmark = [pytest.mark.slow, pytest.mark.alone]
GREEDY = Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=16)


@pytest.fixture(scope="module")
def sample():
    """The model and its tokenizer, built once."""
    location = locate_base_model("sample", lambda _line: None)
    return load_base_model(location, detect_hardware(), "none"), load_tokenizer(location)


def asks(*messages, channel):
    return Request(conversation(*messages), GREEDY, channel, True, seconds=250, seed=1)


async def answer(backend, request):
    return "".join([piece async for piece in backend.reply(request)])


def by_transformers(model, tokenizer, prompt):
    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16
    )
    return tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True).strip()


def test_replies_are_the_same_alone_from_the_cache_and_in_a_batch(sample):
    voice = persona_voice("Ada", "id-Ada", "You are a helpful assistant.")
    backend = LocalBackend(*sample, voice, max_prompt_tokens=1024)
    questions = ("What is the capital of France?", "Write about the sea.", "hi! how are you?")
    requests = [asks(say("Bob", text), channel=text) for text in questions]

    async def all_at_once():
        return await asyncio.gather(*(answer(backend, it) for it in requests))

    alone = ["".join(backend.stream(it)) for it in requests]
    again = ["".join(backend.stream(it)) for it in requests]
    assert alone == again == asyncio.run(all_at_once())
    assert alone == [by_transformers(*sample, backend.prompt(it.conversation)) for it in requests]
    backend.close_now()


def test_the_second_turn_starts_at_least_twice_as_fast_from_the_cache(sample):
    backend = LocalBackend(*sample, server_voice("Bot"), max_prompt_tokens=1024)
    history = chatter(90)
    first = asks(*history[:-1], channel="a")
    second = asks(*history, channel="a")

    async def seconds_to_the_end(request):
        began = time.perf_counter()
        await answer(backend, request)
        return time.perf_counter() - began

    async def both():
        one = Sampling(0, 1, 0, 1, max_reply_tokens=1)
        turns = [Request(it.conversation, one, "a", True, 250) for it in (first, second)]
        await seconds_to_the_end(turns[0])
        cached, anew = [], []
        for _ in range(3):
            backend.batch.caches.clear()
            anew.append(await seconds_to_the_end(turns[0]))
            cached.append(await seconds_to_the_end(turns[1]))
        return min(cached), min(anew)

    cached, anew = asyncio.run(both())
    assert cached < anew / 2
    backend.close_now()
