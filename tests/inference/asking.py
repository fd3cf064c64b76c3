"""What asks a local backend for replies: requests, a clock and a gate of the tests' own."""

import asyncio
import threading
import time

from discord_lora.inference.backend import Busy, GenerationFailed, Request, Sampling, TooSlow
from fakes import conversation, make_tokenizer, say

GREEDY = Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=12)
ENDLESS = Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=10**6)
TOKENIZER = make_tokenizer()
WORD = TOKENIZER(" are").input_ids[0]
"""A token that is shown at once."""


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


def asks(*messages, channel="general", addressed=True, seconds=60.0, sampling=GREEDY, seed=1):
    talk = conversation(*(messages or (say("Bob", "hi"),)))
    return Request(talk, sampling, channel, addressed, seconds, seed)


async def answer(backend, request):
    return "".join([piece async for piece in backend.reply(request)])


async def outcome(backend, request):
    """The answer, or the exception that came instead."""
    try:
        return await answer(backend, request)
    except (Busy, TooSlow, GenerationFailed) as error:
        return type(error)


async def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


class Gate:
    """Holds the model up until it is opened."""

    def __init__(self, model):
        self.open = threading.Event()
        self.entered = threading.Event()
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *_inputs):
        self.entered.set()
        assert self.open.wait(20)
