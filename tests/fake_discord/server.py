"""The server as a test holds it: start it, fill it, make people act, make things fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web

from fake_discord import commands
from fake_discord.channels import Channel, Message
from fake_discord.faults import Fault, Request, path_pattern
from fake_discord.gateway import Gateway
from fake_discord.interactions import Interaction
from fake_discord.people import Bot, Guild, User, everyone_role, new_token
from fake_discord.rest import API, Wire
from fake_discord.rights import PRIVILEGED, Intents
from fake_discord.routes import direct_channel
from fake_discord.world import SECONDS_TO_WAIT, World

T = TypeVar("T")
AnyUser = TypeVar("AnyUser", bound=User)


class FakeDiscord:
    """A Discord on 127.0.0.1 and a free port, running in a thread of its own.

    `with` and `async with` both start and stop it. All methods may be called from any thread; in
    asynchronous code put those that wait into `asyncio.to_thread`. `heartbeat_interval` in
    seconds is what HELLO tells the client.
    """

    def __init__(self, *, heartbeat_interval: float = 41.25) -> None:
        self.world = World()
        self.gateway = Gateway(self.world, heartbeat_interval)
        self.wire = Wire(self.world)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fake-discord", daemon=True
        )
        self._runner: web.AppRunner | None = None

    # --- life -------------------------------------------------------------------------------

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    async def _open(self) -> None:
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_route("GET", "/", self.gateway.connect)
        app.router.add_route("*", API + "/{route:.*}", self.wire.handle)
        # What was asked for is done even when the client no longer waits for the answer.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=False, shutdown_timeout=1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.gateway.url = self.wire.gateway_url = self.gateway_url
        self.gateway.loop = asyncio.get_running_loop()

    async def _shut(self) -> None:
        for connection in self.gateway.open_connections:
            connection.transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def api_base(self) -> str:
        return f"http://127.0.0.1:{self.port}{API}"

    @property
    def gateway_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    # --- what exists ------------------------------------------------------------------------

    def add_user(self, name: str, *, is_bot: bool = False, joins: bool = True) -> User:
        """Somebody who is a member of every guild there is, unless `joins` is off."""
        with self.world.changed:
            user = User(self.world.new_id(), name, self.world, name.title(), is_bot)
            return self._add(user, joins)

    def add_bot(
        self,
        name: str,
        *,
        privileged: Intents = PRIVILEGED,
        owner: User | None = None,
        joins: bool = True,
    ) -> Bot:
        """A bot that can log in with its `token`, and may use these privileged intents."""
        with self.world.changed:
            bot = Bot(self.world.new_id(), name, self.world, is_bot=True)
            bot.token, bot.privileged, bot.owner = new_token(bot.id), privileged, owner
            return self._add(bot, joins)

    def _add(self, user: AnyUser, joins: bool) -> AnyUser:
        self.world.users[user.id] = user
        for guild in self.world.guilds.values() if joins else []:
            guild.add_member(user)
        return user

    def add_guild(
        self, name: str, *, owner: User | None = None, members: Iterable[User] | None = None
    ) -> Guild:
        """A guild of everybody there is, or of `members`; its owner may do everything."""
        with self.world.changed:
            owner = owner or self.add_user(f"owner of {name}", joins=False)
            guild = Guild(self.world.new_id(), name, owner, self.world)
            guild.roles[guild.id] = everyone_role(guild.id)
            self.world.guilds[guild.id] = guild
            people = list(self.world.users.values()) if members is None else [owner, *members]
            # Bots join last and so are told of all the others.
            for user in sorted(people, key=lambda it: isinstance(it, Bot)):
                if user.id not in guild.members:
                    guild.add_member(user)
            return guild

    def open_dm(self, user: User, bot: Bot) -> Channel:
        """The direct channel of the two."""
        with self.world.changed:
            return direct_channel(self.world, bot, user)

    # --- what people do ---------------------------------------------------------------------

    def use_command(
        self, user: User, channel: Channel, name: str, /, **options: Any
    ) -> Interaction:
        """A slash command; "group command" for one in a group."""
        return commands.use_command(user, channel, name, options)

    def autocomplete(
        self, user: User, channel: Channel, name: str, focused: str, /, **options: Any
    ) -> list[Any]:
        """The values that the bot suggests while somebody types the option `focused`."""
        it = commands.use_command(user, channel, name, options, focused=focused)
        it.wait_for_response()
        return [choice["value"] for choice in it.response["choices"]]

    def use_message_command(self, user: User, message: Message, name: str) -> Interaction:
        """An entry of the menu on a message."""
        return commands.use_message_command(user, message, name)

    def use_user_command(
        self, user: User, channel: Channel, target: User, name: str
    ) -> Interaction:
        """An entry of the menu on a member."""
        return commands.use_user_command(user, channel, target, name)

    def click(
        self, user: User, message: Message, which: str, values: list[str] | None = None
    ) -> Interaction:
        """A button by label or custom_id, or a select menu with the chosen values."""
        return commands.click(user, message, which, values)

    # --- what goes wrong --------------------------------------------------------------------

    def fail_next(
        self,
        method: str,
        path: str,
        *,
        status: int | None = None,
        times: int = 1,
        skip: int = 0,
        code: int = 0,
        retry_after: float = 1.0,
        is_global: bool = False,
        via: bool = True,
        delay: float = 0.0,
        drop_request: bool = False,
        drop_answer: bool = False,
        carried_out: bool = False,
    ) -> Fault:
        """Let the next `times` requests of this kind fail, after `skip` that pass.

        `path` is without /api/v10; `*` is one part of it, `**` any number; method "*" is any.
        `status` answers with that error, and `code` is Discord's own in it; the request is not
        carried out unless `carried_out`. 429 takes `retry_after`, `is_global` and `via`.
        `drop_request` closes the connection before anything was done, `drop_answer` after.
        `delay` answers that many seconds late, alone or with another. `hits` of what is returned
        counts how often it struck.
        """
        fault = Fault(
            method,
            path_pattern(path),
            times,
            skip,
            status,
            code,
            retry_after,
            is_global,
            via,
            delay,
            drop_request,
            drop_answer,
            carried_out,
        )
        with self.world.changed:
            self.wire.faults.queue.append(fault)
        return fault

    def enforce_rate_limits(self) -> None:
        """From now on count requests as Discord does, and refuse those that come too fast."""
        self.wire.limits.enforced = True

    # --- what the bot did -------------------------------------------------------------------

    @property
    def rate_limit_violations(self) -> int:
        return self.wire.limits.violations

    @property
    def longest_heartbeat_gap(self) -> float:
        return self.gateway.longest_heartbeat_gap

    def requests(self, method: str = "*", path: str = "**") -> list[Request]:
        """The log, or what of it fits; patterns as in `fail_next`."""
        wanted = path_pattern(path)
        with self.world.changed:
            return [
                it
                for it in self.wire.requests
                if method in ("*", it.method) and wanted.fullmatch(it.path)
            ]

    def wait_until(
        self, value: Callable[[], T], timeout: float = SECONDS_TO_WAIT, what: str = "it"
    ) -> T:
        """The first true `value()`. Raises TimeoutError saying what did not happen."""
        return self.world.wait_until(value, timeout, what)

    def wait_until_connected(self, bot: Bot, timeout: float = 30.0) -> None:
        """Until the gateway has let the bot in (its own on_ready comes some two seconds later)."""
        self.wait_until(lambda: self.gateway.is_online(bot), timeout, f"{bot.name}'s log-in")

    def wait_until_gone(self, bot: Bot, timeout: float = SECONDS_TO_WAIT) -> None:
        gone = f"the end of {bot.name}'s connection"
        self.wait_until(lambda: not self.gateway.is_online(bot), timeout, gone)

    def stays_quiet(self, channel: Channel, author: User, seconds: float) -> bool:
        """Whether the author posts nothing in the channel for that long."""
        before = len(channel.by(author))
        try:
            self.wait_until(lambda: len(channel.by(author)) > before, seconds)
        except TimeoutError:
            return True
        return False
