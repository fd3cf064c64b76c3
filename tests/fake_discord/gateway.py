"""The WebSocket side: identify, heartbeats, resuming, and breaking it all.

Methods without `async` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from itertools import pairwise
from typing import Any, TypeVar

from aiohttp import WSMsgType, web

from fake_discord import payloads
from fake_discord.people import Bot
from fake_discord.rights import PRIVILEGED, Intents, Permissions
from fake_discord.session import DISPATCH, Connection, Session
from fake_discord.world import Event, World

Json = dict[str, Any]
T = TypeVar("T")
HEARTBEAT, IDENTIFY, PRESENCE, VOICE = 1, 2, 3, 4
RESUME, RECONNECT, MEMBERS = 6, 7, 8
INVALID_SESSION, HELLO, HEARTBEAT_ACK = 9, 10, 11
UNKNOWN_OPCODE, NOT_AUTHENTICATED, BAD_TOKEN, TWICE = 4001, 4003, 4004, 4005
BAD_SEQUENCE, TIMED_OUT, DISALLOWED_INTENTS = 4007, 4009, 4014


class Gateway:
    """All sessions, and the switches for what should go wrong."""

    def __init__(self, world: World, heartbeat_interval: float) -> None:
        self.world = world
        self.heartbeat_interval = heartbeat_interval
        self.url = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        self.sessions: dict[str, Session] = {}
        self.connections: list[Connection] = []
        # What the clients asked for, and the code with which they left (None without a word), each
        # with its time.monotonic().
        self.identifies: list[tuple[float, Json]] = []
        self.resumes: list[tuple[float, Json]] = []
        self.closes: list[tuple[float, int | None]] = []
        # Scripted: no heartbeat is acknowledged; nobody is let in before this time.
        self.withholds_acks = False
        # Whoever asks for members gets no answer.
        self.withholds_members = False
        # Ids of users in each such question.
        self.asked_for: list[list[str]] = []
        self.refuses_until = 0.0
        self.refused = 0
        world.publish = self.publish

    # --- what a test does -------------------------------------------------------------------

    def reconnect(self) -> None:
        """Op 7: the client should leave and resume."""
        self._run(self._to_all(RECONNECT))

    def invalidate(self, *, resumable: bool) -> None:
        """Op 9. With `resumable` the session lives on; without it is forgotten."""
        if not resumable:
            with self.world.changed:
                self.sessions.clear()
        self._run(self._to_all(INVALID_SESSION, resumable))

    def forget_sessions(self) -> None:
        """The next RESUME is answered by op 9 false; nobody is told before."""
        with self.world.changed:
            self.sessions.clear()

    def close(self, code: int) -> None:
        """Close every socket with a code; after some, Discord does not let a session resume."""
        if code in (BAD_SEQUENCE, TIMED_OUT):
            self.forget_sessions()

        async def close_all() -> None:
            for it in self.open_connections:
                await it.socket.close(code=code)

        self._run(close_all())

    def abort(self) -> None:
        """Every socket is gone at once, without a close frame."""

        async def abort_all() -> None:
            for it in self.open_connections:
                it.transport.abort()
                it.closed_at = time.monotonic()

        self._run(abort_all())

    def refuse(self, seconds: float) -> None:
        """Whoever connects within this time is thrown out before the handshake."""
        self.refuses_until = time.monotonic() + seconds

    def freeze(self) -> None:
        """The open sockets stay open, and nothing comes through them any more (a zombie)."""
        for it in self.open_connections:
            it.frozen = True

    def request_heartbeat(self, timeout: float = 10.0) -> float:
        """Op 1: seconds until the client answers, which is how long its event loop took."""
        connection = self.open_connections[-1]
        known, asked = len(connection.heartbeats), time.monotonic()
        self._run(self._to_all(HEARTBEAT))
        self.world.wait_until(
            lambda: len(connection.heartbeats) > known, timeout, "the requested heartbeat"
        )
        return connection.heartbeats[known] - asked

    # --- what a test looks at ---------------------------------------------------------------

    @property
    def open_connections(self) -> list[Connection]:
        return [it for it in self.connections if it.closed_at is None]

    @property
    def longest_heartbeat_gap(self) -> float:
        """Seconds; from HELLO on, until the socket closed or now."""
        with self.world.changed:
            longest = 0.0
            for it in self.connections:
                times = [it.opened_at, *it.heartbeats, it.closed_at or time.monotonic()]
                gaps = [after - before for before, after in pairwise(times)]
                longest = max(longest, *gaps)
            return longest

    def is_online(self, bot: Bot) -> bool:
        return any(it.session is not None and it.session.bot is bot for it in self.open_connections)

    # --- events -----------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """Give an event to every session that may hear of it, connected or not."""
        for session in self.sessions.values():
            if self._may_hear(session, event):
                session.add(event.name, event.payload(session.bot, session.intents))
                self._wake(session)

    def _may_hear(self, session: Session, event: Event) -> bool:
        bot, channel = session.bot, event.channel
        if event.intent and not session.intents & event.intent:
            return False
        if event.bot is not None:
            return event.bot is bot
        if channel is not None:
            # That a channel was closed to it is the last thing a bot hears of it.
            told = event.name == "CHANNEL_UPDATE" and channel.guild is not None
            seen = channel.can(bot, Permissions.VIEW_CHANNEL)
            return seen or (told and channel.guild is not None and bot.id in channel.guild.members)
        return event.guild is None or bot.id in event.guild.members

    def _wake(self, session: Session) -> None:
        if session.connection is not None and self.loop is not None:
            self.loop.call_soon_threadsafe(session.connection.news.set)

    def _run(self, work: Awaitable[T]) -> T:
        """Do it on the server's own loop and wait for it."""

        async def wrapped() -> T:
            return await work

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(10)

    async def _to_all(self, op: int, data: Any = None) -> None:
        for it in self.open_connections:
            await it.send(op, data)

    # --- the socket -------------------------------------------------------------------------

    async def connect(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if not isinstance(transport, asyncio.Transport):
            raise web.HTTPBadRequest
        if time.monotonic() < self.refuses_until:
            self.refused += 1
            transport.abort()
            return web.Response()
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        connection = Connection(socket, transport)
        with self.world.changed:
            self.connections.append(connection)
        sending = None
        try:
            await connection.send(HELLO, {"heartbeat_interval": self.heartbeat_interval * 1000})
            while (frame := await socket.receive()).type is WSMsgType.TEXT:
                await self.receive(connection, json.loads(frame.data))
                if sending is None and connection.session is not None:
                    sending = asyncio.create_task(connection.keep_sending())
            if frame.type is WSMsgType.CLOSE:
                connection.goodbye = frame.data
        except ConnectionResetError:
            pass
        finally:
            if sending is not None:
                sending.cancel()
            self._left(connection)
        return socket

    async def receive(self, connection: Connection, frame: Json) -> None:
        op, data = frame["op"], frame.get("d") or {}
        if op == HEARTBEAT:
            with self.world.changed:
                connection.heartbeats.append(time.monotonic())
                self.world.tell()
            if not self.withholds_acks:
                await connection.send(HEARTBEAT_ACK)
        elif op == IDENTIFY:
            await self.identify(connection, data)
        elif op == RESUME:
            await self.resume(connection, data)
        elif connection.session is None:
            await connection.socket.close(code=NOT_AUTHENTICATED)
        elif op == MEMBERS:
            self.send_members(connection.session, data)
        elif op == PRESENCE:
            connection.session.bot.presence = data
        elif op != VOICE:
            await connection.socket.close(code=UNKNOWN_OPCODE)

    async def identify(self, connection: Connection, data: Json) -> None:
        intents = Intents(data.get("intents", 0))
        with self.world.changed:
            shown = {key: value for key, value in data.items() if key != "token"}
            self.identifies.append((time.monotonic(), shown))
            bot = self.bot_of(data.get("token"))
        if connection.session is not None:
            await connection.socket.close(code=TWICE)
        elif bot is None:
            await connection.socket.close(code=BAD_TOKEN)
        elif intents & PRIVILEGED & ~bot.privileged:
            await connection.socket.close(code=DISALLOWED_INTENTS)
        else:
            with self.world.changed:
                self._begin(connection, Session(bot, intents), data)

    def _begin(self, connection: Connection, session: Session, data: Json) -> None:
        # A bot that starts anew has given up its earlier, broken session.
        lost = [it for it in self.sessions.values() if it.bot is session.bot and not it.connection]
        for it in lost:
            del self.sessions[it.id]
        self.sessions[session.id] = session
        bot = session.bot
        guilds = [it for it in self.world.guilds.values() if bot.id in it.members]
        ready: Json = {
            "v": 10,
            "user": payloads.user(bot),
            "session_id": session.id,
            "resume_gateway_url": self.url,
            "guilds": [{"id": str(it.id), "unavailable": True} for it in guilds],
            "application": {"id": str(bot.id), "flags": payloads.application(bot)["flags"]},
        }
        if "shard" in data:
            ready["shard"] = data["shard"]
        session.add("READY", ready)
        for guild in guilds if session.intents & Intents.GUILDS else []:
            session.add("GUILD_CREATE", payloads.guild_create(guild, bot, session.intents))
        bot.presence = data.get("presence")
        self._attach(connection, session, 0)

    def _attach(self, connection: Connection, session: Session, seen: int) -> None:
        connection.session, connection.sent = session, seen
        session.connection = connection
        self.world.tell()

    async def resume(self, connection: Connection, data: Json) -> None:
        with self.world.changed:
            self.resumes.append((time.monotonic(), {"seq": data.get("seq")}))
            session = self.sessions.get(data.get("session_id") or "")
            bot = self.bot_of(data.get("token"))
        seen = data.get("seq") or 0
        if bot is None:
            await connection.socket.close(code=BAD_TOKEN)
        elif session is None or session.bot is not bot:
            await connection.send(INVALID_SESSION, False)
        elif seen > len(session.events):
            await connection.socket.close(code=BAD_SEQUENCE)
        else:
            with self.world.changed:
                self._attach(connection, session, seen)
            await connection.send_waiting()
            await connection.send(DISPATCH, {}, t="RESUMED", s=connection.sent)

    def bot_of(self, token: str | None) -> Bot | None:
        bots = (it for it in self.world.users.values() if isinstance(it, Bot))
        return next((it for it in bots if it.token == token), None)

    def send_members(self, session: Session, data: Json) -> None:
        """One chunk with all who were asked for: by id, or by the start of a name."""
        with self.world.changed:
            guild = self.world.guilds[int(data["guild_id"])]
            wanted = data.get("user_ids")
            self.asked_for.append(list(map(str, wanted or ())))
            if self.withholds_members:
                return
            start = (data.get("query") or "").lower()
            found = [
                payloads.member(it)
                for it in guild.members.values()
                if (str(it.user.id) in map(str, wanted) if wanted else True)
                and (it.nick or it.user.name).lower().startswith(start)
            ]
            chunk: Json = {"guild_id": str(guild.id), "chunk_index": 0, "chunk_count": 1}
            chunk["members"] = found[: data.get("limit") or None]
            if "nonce" in data:
                chunk["nonce"] = data["nonce"]
            session.add("GUILD_MEMBERS_CHUNK", chunk)
            self._wake(session)

    def _left(self, connection: Connection) -> None:
        """A goodbye (1000 or 1001) ends the session; anything else leaves it to be resumed."""
        with self.world.changed:
            connection.closed_at = connection.closed_at or time.monotonic()
            code = connection.goodbye
            self.closes.append((connection.closed_at, code))
            session = connection.session
            if session is not None and session.connection is connection:
                session.connection = None
                if code in (1000, 1001):
                    self.sessions.pop(session.id, None)
            self.world.tell()
