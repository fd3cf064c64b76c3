"""The model on another server (llama-server, vLLM, Ollama) that speaks OpenAI's completions.

The prompt is rendered here, and its tokens are sent as numbers wherever the server takes them, so
that it reads exactly what training saw. The chat endpoint would put its own template around it.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from yarl import URL

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
    Sampling,
    TooSlow,
)
from discord_lora.inference.local_backend import Limits, longest_prompt
from discord_lora.inference.prompts import Prompts
from discord_lora.inference.reply_text import ReplyText
from discord_lora.inference.waiting_line import WaitingLine
from discord_lora.messages.record import Message
from discord_lora.model_location import locate_base_model
from discord_lora.settings import Settings

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 60.0
"""The first answer may have to wait until the server has loaded its model."""
LONGEST_REASON = 300
REFUSED_KEY, NOT_FOUND = {401, 403}, 404


class ServerRefused(Exception):  # noqa: N818 - it is the server's answer
    """The server answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the server answered {status}: {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Form:
    """What the server takes, found out at the start."""

    token_ids: bool
    """The prompt as numbers; otherwise as text."""
    extensions: bool
    """Settings beyond OpenAI's own, such as min_p."""


FORMS = (Form(True, True), Form(False, True), Form(True, False), Form(False, False))
"""Tried in this order. Ollama takes text only; strict servers take no extensions."""


class Server:
    """One model at one server."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self.url = URL(url.rstrip("/"))
        self.model = model
        self.form = FORMS[0]
        self._key = key
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )

    @property
    def name(self) -> str:
        return f"{self.url.host}:{self.url.port}"

    async def find_model(self) -> None:
        """Take the first model of the server's list, unless one is named."""
        if self.model:
            return
        async with self._session.get(self.url / "models") as response:
            await self._check(response)
            listed = await response.json(content_type=None)
        try:
            self.model = str(listed["data"][0]["id"])
        except (LookupError, TypeError):
            raise ServerRefused(NOT_FOUND, "it lists no model") from None

    async def find_form(self, prompts: Prompts, conversation: Conversation) -> None:
        """Write one token in each form until one is taken."""
        refusal: ServerRefused | None = None
        for form in FORMS:
            self.form = form
            try:
                if await self._is_understood(prompts, conversation):
                    return
            except ServerRefused as refused:
                if refused.status in REFUSED_KEY | {NOT_FOUND}:
                    raise
                refusal = refusal or refused
        raise refusal or ServerRefused(400, "it reads other tokens than were sent")

    async def _is_understood(self, prompts: Prompts, conversation: Conversation) -> bool:
        greedy = Sampling(0, 1, 0, 1, max_reply_tokens=1)
        body = self.body(prompts, conversation, greedy, seed=None) | {"stream": False}
        async with self._session.post(self.url / "completions", json=body) as response:
            await self._check(response)
            answer = await response.json(content_type=None)
        used = answer.get("usage") if isinstance(answer, dict) else None
        read = used.get("prompt_tokens") if isinstance(used, dict) else None
        sent = len(body["prompt"])
        return not self.form.token_ids or read is None or read == sent

    def body(
        self, prompts: Prompts, conversation: Conversation, sampling: Sampling, seed: int | None
    ) -> dict[str, Any]:
        """What is asked of the server, in the form it takes."""
        token_ids = prompts.encode(conversation)
        ends = sorted(prompts.end_ids)
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": token_ids if self.form.token_ids else prompts.defused_text(token_ids),
            "stream": True,
            "max_tokens": sampling.max_reply_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": [prompts.decode([token], skip_special_tokens=False) for token in ends],
        }
        if seed is not None:
            body["seed"] = seed % 2**31
        if self.form.extensions:
            body |= {
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,  # vLLM
                "repeat_penalty": sampling.repetition_penalty,  # llama-server
                "stop_token_ids": ends,  # vLLM
                "cache_prompt": True,  # llama-server: a channel's next turn reads what is new
            }
        return body

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        """Pieces of text as the server writes them.

        Raises:
            ServerRefused, aiohttp.ClientError, ValueError: it did not work out.
        """
        async with self._session.post(self.url / "completions", json=body) as response:
            await self._check(response)
            async for data in _events(response.content):
                event = json.loads(data)
                if event.get("error"):
                    raise ServerRefused(response.status, self._short(str(event["error"])))
                for choice in event.get("choices") or ():
                    if choice.get("text"):
                        yield choice["text"]
                    if choice.get("finish_reason"):
                        return

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise ServerRefused(response.status, self._short(await response.text(errors="replace")))

    def _short(self, reason: str) -> str:
        """One line of what the server says, without the key it may repeat."""
        text = " ".join(reason.split())
        return (text.replace(self._key, "***") if self._key else text)[:LONGEST_REASON]

    async def close(self) -> None:
        await self._session.close()


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events, one a line, up to `[DONE]`."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, data = line.partition(b":")
            if name == b"data" and data.strip():
                if data.strip() == b"[DONE]":
                    return
                yield data


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
        self._replies, self._pieces, self._seconds = 0, 0, 0.0

    @classmethod
    async def connect(cls, settings: Settings, folder: Path, report: Report) -> Self:
        """Reach the server and find out what it takes.

        Raises:
            UserError: no server, no such model, a wrong key, or no finished adapter in `folder`.
        """
        url, key = settings.inference_url, settings.inference_api_key.get_secret_value()
        if not url.startswith(("http://", "https://")):
            raise UserError("INFERENCE_URL: must begin with http:// or https://.")
        prompts = await asyncio.to_thread(_prompts_of, folder, report)
        server = Server(url, key, settings.inference_model)
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
            self._running.add(ticket)
            ticket.task = asyncio.create_task(self._produce(ticket))

    def _expire(self, ticket: _Ticket) -> None:
        if ticket in self._line:
            self._line.remove(ticket)
            ticket.pieces.put_nowait(TooSlow())

    async def _produce(self, ticket: _Ticket) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            outcome = await self._written(ticket)
            self._replies += outcome is None
            ticket.pieces.put_nowait(outcome)
        finally:
            self._seconds += loop.time() - began
            self._running.discard(ticket)
            self._start_more()

    async def _written(self, ticket: _Ticket) -> Exception | None:
        """Hand out the answer; returns what went wrong."""
        request, prompts = ticket.request, self._prompts
        names = prompts.names_of_others(request.conversation)
        text = ReplyText(prompts.voice.name, names)
        try:
            async with asyncio.timeout_at(ticket.deadline) as limit:
                body = self._server.body(
                    prompts, request.conversation, request.sampling, request.seed
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
        return BackendStatus(
            name=self._server.name,
            model=self._server.model,
            adapter=self._adapter,
            waiting=len(self._line),
            running=len(self._running),
            replies=self._replies,
            tokens_per_second=self._pieces / self._seconds if self._seconds else 0.0,
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
