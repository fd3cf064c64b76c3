"""From the socket to a route and back, under /api/v10; the routes are in routes.py.

`Wire` does what is the same for all (log, token, scripted faults, rate limits); a route is a plain
function from a `Call` to what is to be answered, and runs under the lock of the state.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from fake_discord import payloads
from fake_discord.channels import Channel, Message
from fake_discord.faults import Answer, ApiError, Faults, RateLimits, Request, json_answer
from fake_discord.people import Bot
from fake_discord.rights import Permissions
from fake_discord.world import World

Json = dict[str, Any]
API = "/api/v10"
NO_CONTENT = object()
ROUTES: list[tuple[str, str, re.Pattern[str], Callable[[Call], Any], bool]] = []


@dataclass
class Call:
    """One request to one route."""

    world: World
    path: dict[str, str]
    query: dict[str, str]
    body: Any
    files: list[str]
    gateway_url: str
    sender: Bot | None = None

    @property
    def bot(self) -> Bot:
        assert self.sender is not None
        return self.sender

    def channel(self, needed: Permissions = Permissions.VIEW_CHANNEL) -> Channel:
        """Raises ApiError unless the channel exists and the bot has what is needed there."""
        channel = self.world.channels.get(int(self.path["channel"]))
        if channel is None or (channel.guild is None and self.bot not in channel.recipients):
            raise ApiError(404, 10003, "Unknown Channel")
        if not channel.can(self.bot, Permissions.VIEW_CHANNEL):
            raise ApiError(403, 50001, "Missing Access")
        if not channel.can(self.bot, needed):
            raise ApiError(403, 50013, "Missing Permissions")
        return channel

    def message(self, needed: Permissions = Permissions.VIEW_CHANNEL) -> Message:
        found = self.channel(needed).history.get(int(self.path["message"]))
        if found is None:
            raise ApiError(404, 10008, "Unknown Message")
        return found

    def shown(self, message: Message) -> Json:
        """HTTP shows content by what the portal allows, whatever was identified with."""
        return payloads.message(message, self.bot, self.bot.privileged)


def route(method: str, path: str, *, token: bool = True) -> Callable[..., Any]:
    """Register a handler. `token=False`: the address itself is the secret, or none is needed."""
    pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))

    def register(handler: Callable[[Call], Any]) -> Callable[[Call], Any]:
        ROUTES.append((method, path, pattern, handler, token))
        return handler

    return register


class Wire:
    """From the socket to a route and back."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = Faults()
        self.limits = RateLimits()
        self.requests: list[Request] = []
        self.gateway_url = ""
        # Added to every answer, in seconds.
        self.latency = 0.0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body, files = await read_body(request)
        path = request.path.removeprefix(API)
        log = Request(request.method, path, time.monotonic(), body, files, dict(request.query))
        with self.world.changed:
            self.requests.append(log)
            self.world.tell()
            fault = self.faults.take(log.method, path)
        await asyncio.sleep(self.latency + (fault.delay if fault else 0))
        answer = None
        if fault is None or not fault.prevents:
            with self.world.changed:
                answer = self.answer(request, log)
        if fault is not None and (fault.drop_request or fault.drop_answer):
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault is not None:
            answer = fault.answer() or answer
        assert answer is not None
        with self.world.changed:
            log.status, log.answered_at = answer.status, time.monotonic()
            self.world.tell()
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    def answer(self, request: web.Request, log: Request) -> Answer:
        for method, path, pattern, handler, needs_token in ROUTES:
            match = pattern.fullmatch(log.path)
            if match is None or method != log.method:
                continue
            sender = self.sender(request.headers.get("Authorization", ""))
            if needs_token and sender is None:
                return json_answer(401, {"message": "401: Unauthorized", "code": 0})
            fields = match.groupdict()
            channel = fields.get("channel", "")
            who = sender.id if sender else 0
            headers, refusal = self.limits.check(who, f"{method} {path}", channel)
            if refusal is not None:
                return refusal
            body = {} if log.body is None else log.body
            call = Call(self.world, fields, log.query, body, log.files, self.gateway_url, sender)
            try:
                result = handler(call)
            except ApiError as error:
                return json_answer(error.status, error.body, headers)
            if result is NO_CONTENT:
                return Answer(204, headers=headers)
            return json_answer(200, result, headers)
        return json_answer(404, {"message": "404: Not Found", "code": 0})

    def sender(self, authorization: str) -> Bot | None:
        bots = (it for it in self.world.users.values() if isinstance(it, Bot))
        return next((it for it in bots if authorization == f"Bot {it.token}"), None)


async def read_body(request: web.Request) -> tuple[Any, list[str]]:
    """The JSON of a request, and the names of its files if it came as a form."""
    if request.content_type == "multipart/form-data":
        form = await request.post()
        files = [it.filename for it in form.values() if isinstance(it, web.FileField)]
        return json.loads(str(form["payload_json"])), files
    raw = await request.read()
    return (json.loads(raw) if raw else None), []
