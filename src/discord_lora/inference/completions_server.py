"""A server that speaks OpenAI's completions: what it takes, and what it is asked.

The prompt is sent as token numbers wherever the server takes them, so that it reads exactly what
training saw. The chat endpoint would put its own template around it.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import SecretStr
from yarl import URL

from discord_lora.conversations.build import Conversation
from discord_lora.inference.backend import Sampling
from discord_lora.inference.prompts import Prompts

CONNECT_SECONDS = 10.0
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

    def __init__(self, url: str, key: SecretStr, model: str) -> None:
        self.url = URL(url.rstrip("/"))
        self.model = model
        self.form = FORMS[0]
        self._key = key
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )

    @property
    def name(self) -> str:
        return f"{self.url.host}:{self.url.port}"

    async def find_model(self) -> None:
        """Take the first model of the server's list, unless one is named."""
        if self.model:
            return
        async with self._ask("GET", "models") as response:
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
        async with self._ask("POST", "completions", json=body) as response:
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
        async with self._ask("POST", "completions", json=body) as response:
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

    def _ask(self, method: str, page: str, **options: Any) -> Any:
        """A request. The key goes along in it and stands nowhere else; an answer that points
        elsewhere is not followed, because the error of a circle would show the key."""
        key = self._key.get_secret_value()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self._session.request(
            method, self.url / page, headers=headers, allow_redirects=False, **options
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise ServerRefused(response.status, self._short(await response.text(errors="replace")))

    def _short(self, reason: str) -> str:
        """One line of what the server says, without the key it may repeat."""
        text, key = " ".join(reason.split()), self._key.get_secret_value()
        return (text.replace(key, "***") if key else text)[:LONGEST_REASON]

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
