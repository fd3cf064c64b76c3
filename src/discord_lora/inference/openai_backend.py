"""The model on another server (llama-server, vLLM, Ollama) that speaks OpenAI's completions.

The queue and the time limits are here; completions_server.py is what goes over the wire.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import aiohttp

from discord_lora.adapter_folder import read_run_info
from discord_lora.base_model import Report, load_tokenizer
from discord_lora.console import UserError
from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import Voice
from discord_lora.inference.backend import (
    BackendStatus,
    Busy,
    GenerationFailed,
    Request,
    TooSlow,
)
from discord_lora.inference.completions_server import (
    NOT_FOUND,
    REFUSED_KEY,
    Server,
    ServerRefused,
)
from discord_lora.inference.local_backend import Limits, longest_prompt
from discord_lora.inference.prompts import Prompts
from discord_lora.inference.reply_text import ReplyText
from discord_lora.inference.waiting_line import WaitingLine
from discord_lora.messages.record import Message
from discord_lora.model_location import locate_base_model
from discord_lora.settings import Settings

log = logging.getLogger(__name__)

PROBE_SECONDS = 60.0
"""The first answer may have to wait until the server has loaded its model."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request on its way."""

    request: Request
    deadline: float
    pieces: "asyncio.Queue[str | Exception | None]" = field(default_factory=asyncio.Queue)
    begun: bool = False
    task: "asyncio.Task[None] | None" = None

    @property
    def addressed(self) -> bool:
        return self.request.addressed

    def show(self, text: str) -> None:
        if text:
            self.begun = True
            self.pieces.put_nowait(text)


class OpenAIBackend:
    """Lets a server answer, as many channels at once as `limits` says."""

    def __init__(
        self, server: Server, prompts: Prompts, *, limits: Limits, adapter: str = ""
    ) -> None:
        self._server = server
        self._prompts = prompts
        self._limits = limits
        self._adapter = adapter
        self._line: WaitingLine[_Ticket] = WaitingLine(limits.waiting)
        self._running: set[_Ticket] = set()
        self._replies, self._pieces = 0, 0
        self._seconds, self._busy_since = 0.0, 0.0
        """Of work that is over, and when what is running began."""

    @classmethod
    async def connect(cls, settings: Settings, folder: Path, report: Report) -> Self:
        """Reach the server and find out what it takes.

        Raises:
            UserError: no server, no such model, a wrong key, or no finished adapter in `folder`.
        """
        prompts = await asyncio.to_thread(_prompts_of, folder, report)
        server = Server(
            settings.inference_url, settings.inference_api_key, settings.inference_model
        )
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await server.find_model()
                await server.find_form(prompts, _a_word())
        except (ServerRefused, aiohttp.ClientError, TimeoutError, ValueError) as error:
            await server.close()
            raise UserError(_explained(error, server)) from None
        if not server.form.token_ids:
            report(f"{server.name} takes no token numbers: it reads the prompt as text.")
        return cls(server, prompts, limits=Limits.from_settings(settings), adapter=folder.name)

    @property
    def voice(self) -> Voice:
        return self._prompts.voice

    def prompt(self, conversation: Conversation) -> list[int]:
        """Tokens of as much of the conversation's end as training could have seen at once."""
        return self._prompts.encode(conversation)

    def prompt_text(self, conversation: Conversation) -> str:
        """The same as text, special tokens visible."""
        return self._prompts.text(conversation)

    async def reply(self, request: Request) -> AsyncIterator[str]:
        """The reply, piece by piece as it is generated; closing the iterator ends it.

        Raises:
            Busy, TooSlow, GenerationFailed: as `Backend` says.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(request, loop.time() + request.seconds)
        refused = self._line.join(ticket)
        if refused is not None:
            refused.pieces.put_nowait(Busy())
        self._start_more()
        timer = loop.call_later(min(request.seconds, 1e6), self._expire, ticket)
        try:
            while (piece := await ticket.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            timer.cancel()
            if ticket in self._line:
                self._line.remove(ticket)
            if ticket.task is not None:
                ticket.task.cancel()

    def _start_more(self) -> None:
        while len(self._running) < self._limits.running:
            ticket = self._line.peek()
            if ticket is None:
                return
            self._line.remove(ticket)
            if not self._running:
                self._busy_since = asyncio.get_running_loop().time()
            self._running.add(ticket)
            ticket.task = asyncio.create_task(self._produce(ticket))

    def _expire(self, ticket: _Ticket) -> None:
        if ticket in self._line:
            self._line.remove(ticket)
            ticket.pieces.put_nowait(TooSlow())

    async def _produce(self, ticket: _Ticket) -> None:
        try:
            outcome = await self._written(ticket)
            self._replies += outcome is None
            ticket.pieces.put_nowait(outcome)
        finally:
            self._running.discard(ticket)
            if not self._running:
                self._seconds += self._busy_seconds()
            self._start_more()

    def _busy_seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._busy_since

    async def _written(self, ticket: _Ticket) -> Exception | None:
        """Hand out the answer; returns what went wrong."""
        request, prompts = ticket.request, self._prompts
        names = prompts.names_of_others(request.conversation)
        text = ReplyText(prompts.voice.name, names)
        try:
            async with asyncio.timeout_at(ticket.deadline) as limit:
                # A long prompt takes its time, and the event loop has none.
                body = await asyncio.to_thread(
                    self._server.body,
                    prompts,
                    request.conversation,
                    request.sampling,
                    request.seed,
                )
                async with aclosing(self._server.complete(body)) as pieces:
                    async for piece in pieces:
                        self._pieces += 1
                        ticket.show(text.feed(piece))
                        if text.ended:
                            break
        except Exception as error:
            if not limit.expired():
                log.error("An answer from %s failed.", self._server.name, exc_info=error)
                return GenerationFailed(type(error).__name__)
        ticket.show(text.close())
        return TooSlow() if limit.expired() and not ticket.begun else None

    def status(self) -> BackendStatus:
        seconds = self._seconds + (self._busy_seconds() if self._running else 0.0)
        return BackendStatus(
            name=self._server.name,
            model=self._server.model,
            adapter=self._adapter,
            waiting=len(self._line),
            running=len(self._running),
            replies=self._replies,
            tokens_per_second=self._pieces / seconds if seconds else 0.0,
            memory_bytes=0,
        )

    async def reload(self, folder: Path) -> None:
        """Speak as another adapter's voice; the weights are the server's matter.

        Raises:
            UserError: `folder` holds no finished adapter.
        """
        self._prompts = await asyncio.to_thread(_prompts_of, folder, lambda _line: None)
        self._adapter = folder.name

    async def close(self) -> None:
        """End what is running and close the connections."""
        for ticket in self._line:
            self._line.remove(ticket)
            ticket.pieces.put_nowait(Busy())
        tasks = [ticket.task for ticket in self._running if ticket.task]
        for ticket in list(self._running):
            ticket.pieces.put_nowait(None if ticket.begun else Busy())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close()


def _prompts_of(folder: Path, report: Report) -> Prompts:
    info = read_run_info(folder)
    tokenizer = load_tokenizer(locate_base_model(info.base_model, report))
    return Prompts(tokenizer, info.voice, longest_prompt(info))


def _a_word() -> Conversation:
    """Something to try the server with."""
    hi = Message("0", "", "", "", datetime.now(UTC), "somebody", "User", "hi")
    return Conversation("probe", "probe", (hi,))


def _explained(error: Exception, server: Server) -> str:
    if isinstance(error, ServerRefused) and error.status in REFUSED_KEY:
        return f"INFERENCE_API_KEY: {server.name} refuses it ({error.status}); set the right one."
    if isinstance(error, ServerRefused) and error.status == NOT_FOUND:
        return (
            f"INFERENCE_URL: {server.name} has no such model or page ({error.reason}); check that "
            "the address ends with /v1, as most do, and INFERENCE_MODEL."
        )
    if isinstance(error, ServerRefused):
        return f"INFERENCE_URL: {server.name} takes no completions: {error.reason}. See its log."
    if isinstance(error, ValueError):
        return f"INFERENCE_URL: {server.name} does not answer in OpenAI's way; check the address."
    return (
        f"INFERENCE_URL: nothing answers at {server.name}; start the server, or leave it empty to "
        "run the model here."
    )
