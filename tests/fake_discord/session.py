"""A session with its numbered events, and the socket that it is told through.

A session keeps every event it was given. Whoever is connected gets those after a mark, and a
RESUME does nothing but set the mark, so that replaying is the same as sending.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from contextlib import suppress
from typing import Any

from aiohttp import web

from fake_discord.people import Bot
from fake_discord.rights import Intents

Json = dict[str, Any]
DISPATCH = 0


class Session:
    """What one IDENTIFY began. The n-th event has sequence number n."""

    def __init__(self, bot: Bot, intents: Intents) -> None:
        self.id = secrets.token_hex(16)
        self.bot = bot
        self.intents = intents
        self.events: list[str] = []
        self.connection: Connection | None = None

    def add(self, name: str, payload: Json) -> None:
        sequence = len(self.events) + 1
        frame = {"op": DISPATCH, "t": name, "s": sequence, "d": payload}
        self.events.append(json.dumps(frame))


class Connection:
    """One socket; `sent` is how many events of its session it has been given."""

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self.socket = socket
        self.transport = transport
        self.session: Session | None = None
        self.sent = 0
        self.frozen = False
        self.heartbeats: list[float] = []
        self.opened_at = time.monotonic()
        self.closed_at: float | None = None
        # The code with which the client left; None if it was cut off or simply gone.
        self.goodbye: int | None = None
        self.news = asyncio.Event()

    async def send(self, op: int, data: Any = None, **rest: Any) -> None:
        if not self.frozen:
            await self.socket.send_str(json.dumps({"op": op, "d": data, **rest}))

    async def keep_sending(self) -> None:
        """The session's events in their order, as they come, for as long as the socket lives."""
        with suppress(ConnectionResetError):
            while self.session is not None and not self.socket.closed:
                self.news.clear()
                await self.send_waiting()
                await self.news.wait()

    async def send_waiting(self) -> None:
        while self.session is not None and self.sent < len(self.session.events):
            if self.frozen or self.socket.closed:
                return
            event = self.session.events[self.sent]
            self.sent += 1
            await self.socket.send_str(event)
