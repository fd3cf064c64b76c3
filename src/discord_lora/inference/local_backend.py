"""The model in this process: base model and adapter, answering all channels together."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from discord_lora.adapter_folder import RunInfo, exchange_adapter, load_adapter, read_run_info
from discord_lora.base_model import Report, linear_layers, load_base_model, load_tokenizer
from discord_lora.console import UserError
from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import Voice
from discord_lora.hardware import Hardware, detect_hardware
from discord_lora.inference.backend import BackendStatus, Request
from discord_lora.inference.batch import Batch
from discord_lora.inference.kv_cache import ChannelCaches
from discord_lora.inference.prompts import Prompts
from discord_lora.inference.worker import Delivered, Ticket, Worker
from discord_lora.model_location import locate_base_model
from discord_lora.settings import Settings

MEMORY_SHARE = 0.25
"""Of what is free after loading: for the caches of quiet channels, and as much for answers."""

REPLY_ROOM = 256
"""Tokens of a reply that are counted on when memory is shared out."""

SECONDS_BETWEEN_LOOKS = 0.2
"""How often a script that waits for text looks up: on Windows Ctrl+C needs it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is done and kept at once."""

    running: int = 8
    waiting: int = 32
    cached_bytes: int = 10**9

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.max_concurrent_replies, settings.max_waiting_replies)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where model and adapter come from."""

    base_model: str = ""
    quantization: str = ""
    adapter: str = ""


class LocalBackend:
    """Answers conversations, many at once: `reply` on an event loop, `stream` in a script."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        voice: Voice,
        *,
        max_prompt_tokens: int,
        limits: Limits | None = None,
        origin: Origin | None = None,
        hardware: Hardware | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = limits or Limits()
        self._tokenizer = tokenizer
        self._origin = origin or Origin()
        self._hardware = hardware or detect_hardware()
        self._clock = clock
        self.batch = Batch(model, ChannelCaches(limits.cached_bytes))
        self._worker = Worker(
            self.batch,
            Prompts(tokenizer, voice, max_prompt_tokens),
            most_running=limits.running,
            most_waiting=limits.waiting,
            clock=clock,
        )

    @classmethod
    def load(
        cls, folder: Path, hardware: Hardware, report: Report, limits: Limits | None = None
    ) -> Self:
        """Base model and adapter of a finished run.

        Raises:
            UserError: the adapter is not finished or speaks another prompt format, or its base
                model cannot be loaded.
        """
        info = read_run_info(folder)
        location = locate_base_model(info.base_model, report)
        tokenizer = load_tokenizer(location)
        hardware.stay_on_the_card()
        base = load_base_model(location, hardware, info.quantization)
        if info.quantization == "nf4" and not hardware.is_cuda:
            base = _unpacked_if_it_fits(base, hardware)
        model = load_adapter(base, folder)
        return cls(
            model,
            tokenizer,
            info.voice,
            max_prompt_tokens=longest_prompt(info),
            limits=_within_memory(limits or Limits(), model, info, hardware),
            origin=Origin(info.base_model, info.quantization, folder.name),
            hardware=hardware,
        )

    @property
    def voice(self) -> Voice:
        return self._worker.prompts.voice

    def prompt(self, conversation: Conversation) -> list[int]:
        """Tokens of as much of the conversation's end as training could have seen at once."""
        return self._worker.prompts.encode(conversation)

    def prompt_text(self, conversation: Conversation) -> str:
        """The same as text, special tokens visible."""
        return self._worker.prompts.text(conversation)

    async def reply(self, request: Request) -> AsyncIterator[str]:
        """The reply, piece by piece as it is generated; closing the iterator ends it.

        Raises:
            Busy, TooSlow, GenerationFailed: as `Backend` says.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Delivered] = asyncio.Queue()
        ticket = Ticket(
            request,
            lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece),
            self._clock() + request.seconds,
        )
        self._worker.submit(ticket)
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self._worker.cancel(ticket)

    def stream(self, request: Request, *, use_adapter: bool = True) -> Iterator[str]:
        """The same for a script without an event loop.

        `use_adapter=False` lets the base model answer the same prompt.
        """
        pieces: queue.Queue[Delivered] = queue.Queue()
        deadline = self._clock() + request.seconds
        ticket = Ticket(request, pieces.put, deadline, use_adapter=use_adapter)
        self._worker.submit(ticket)
        try:
            while (piece := _patiently(pieces)) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self._worker.cancel(ticket)

    def status(self) -> BackendStatus:
        counts = self._worker.counts
        return BackendStatus(
            name="this computer",
            model=self._origin.base_model,
            adapter=self._origin.adapter,
            waiting=self._worker.waiting,
            running=self._worker.running,
            replies=counts.replies,
            tokens_per_second=counts.tokens / counts.seconds if counts.seconds else 0.0,
            memory_bytes=self._hardware.used_bytes(),
        )

    async def reload(self, folder: Path) -> None:
        """Speak with another adapter of the same base model, once what is running has ended.

        Raises:
            UserError: it cannot be loaded; the one before stays.
        """
        await asyncio.wrap_future(self._worker.do(lambda: self._exchange(folder)))

    def _exchange(self, folder: Path) -> None:
        info = read_run_info(folder)
        if (info.base_model, info.quantization) != (
            self._origin.base_model,
            self._origin.quantization,
        ):
            raise UserError(
                f"{folder} was trained on {info.base_model} ({info.quantization}) and "
                f"{self._origin.base_model} ({self._origin.quantization}) is loaded; start again."
            )
        exchange_adapter(self.batch.model, folder)
        self.batch.caches.clear()
        self._worker.prompts = Prompts(self._tokenizer, info.voice, longest_prompt(info))
        self._origin = replace(self._origin, adapter=folder.name)

    async def close(self) -> None:
        """End what is running and free what is held."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """The same for a script without an event loop."""
        self._worker.close()


def longest_prompt(info: RunInfo) -> int:
    """Tokens that training saw at once."""
    return int(info.settings.get("max_seq_length") or 1024)


def _patiently(pieces: "queue.Queue[Delivered]") -> Delivered:
    while True:
        try:
            return pieces.get(timeout=SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            continue


def _within_memory(limits: Limits, model: Any, info: RunInfo, hardware: Hardware) -> Limits:
    """As many answers at once as the free memory has room for."""
    share = int(MEMORY_SHARE * hardware.free_bytes())
    per_token = Batch(model, ChannelCaches(0)).bytes_per_token()
    running = share // (per_token * (longest_prompt(info) + REPLY_ROOM))
    return replace(limits, running=max(1, min(limits.running, running)), cached_bytes=share)


def _unpacked_if_it_fits(model: Any, hardware: Hardware) -> Any:
    """The same weights in fp32, to the bit what the 4-bit layers compute with.

    Without a card, unpacking them anew for each token takes half of its time.
    """
    needed = 4 * sum(module.out_features * module.in_features for module in linear_layers(model))
    return model.dequantize() if needed < 0.5 * hardware.free_bytes() else model
