"""Into Discord and out again: token, intent and invite link, the log, Ctrl+C."""

import asyncio
import logging
import queue
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

from discord_lora.console import Interrupted, UserError
from discord_lora.settings import Settings

if TYPE_CHECKING:
    from discord_lora.discord_bot.client import BotClient

log = logging.getLogger(__name__)

# It has no voice; discord.py would recommend libraries for one.
discord.VoiceClient.warn_nacl = discord.VoiceClient.warn_dave = False

PORTAL = "https://discord.com/developers/applications"

PERMISSIONS = discord.Permissions(
    view_channel=True,
    send_messages=True,
    send_messages_in_threads=True,
    read_message_history=True,
    add_reactions=True,
)
"""Exactly what it needs: see, speak, answer with a reply, and put the hourglass on."""

NO_TOKEN = (
    f"DISCORD_TOKEN is empty: open {PORTAL}, choose your application (or New Application), click "
    "Bot, then Reset Token, and put the token into .env as DISCORD_TOKEN=..."
)
WRONG_TOKEN = (
    f"Discord refuses DISCORD_TOKEN: open {PORTAL}, choose your application, click Bot, then "
    "Reset Token, and put the new token into .env."
)
NO_INTENT = (
    "The bot may not read messages: open {portal}/{id}/bot, switch on Message Content Intent under "
    "Privileged Gateway Intents, save, and start again."
)
CLOSED_BAD_TOKEN, CLOSED_NO_INTENT = 4004, 4014
BYTES_A_LOG, OLD_LOGS = 2_000_000, 4
LINES_FOR_THE_SCREEN, SECONDS_FOR_LAST_LINES = 1000, 2.0


@dataclass(frozen=True, slots=True)
class Account:
    """Who the token belongs to."""

    id: int
    name: str
    invite_link: str


def required_token(settings: Settings) -> str:
    """Raises UserError that says where to get one."""
    token = settings.discord_token.get_secret_value().strip()
    if not token:
        raise UserError(NO_TOKEN)
    return token


def without_secrets(text: str, settings: Settings) -> str:
    """The text with every secret of the settings struck out."""
    for secret in secrets_of(settings):
        text = text.replace(secret, "[secret]")
    return text


def secrets_of(settings: Settings) -> list[str]:
    """What must not be written down anywhere."""
    secrets = (settings.discord_token, settings.hf_token, settings.inference_api_key)
    return [text for it in secrets if (text := it.get_secret_value().strip())]


# The log --------------------------------------------------------------------------------------


class _WithoutSecrets(logging.Formatter):
    def __init__(self, form: str, settings: Settings) -> None:
        super().__init__(form)
        self._settings = settings

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record), self._settings)


class _OnScreen(logging.Handler):
    """Shows lines from a thread of its own.

    A console may take nothing for minutes (in PowerShell a selection stops it), and whoever writes
    into it stands still. Lines that find no room meanwhile are in the file only.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_FOR_THE_SCREEN)
        self._thread = threading.Thread(target=self._show, name="screen", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        # Where a traceback belongs is the file.
        line = self.format(logging.makeLogRecord({**vars(record), "exc_info": None}))
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(SECONDS_FOR_LAST_LINES)
        super().close()

    def _show(self) -> None:
        while (line := self._lines.get()) is not None:
            self._say(line)


@contextmanager
def bot_log(settings: Settings, say: Callable[[str], None]) -> Iterator[Path]:
    """Write `logs/bot.log`, a new one every 2 MB, and show the same lines without tracebacks.

    Raises:
        UserError: it cannot be written.
    """
    path = settings.logs_dir / "bot.log"
    try:
        settings.logs_dir.mkdir(parents=True, exist_ok=True)
        in_file = RotatingFileHandler(
            path, maxBytes=BYTES_A_LOG, backupCount=OLD_LOGS, encoding="utf-8"
        )
    except OSError as error:
        raise UserError(f"LOGS_DIR: cannot write {path} ({error}).") from None
    in_file.setFormatter(
        _WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s", settings)
    )
    on_screen = _OnScreen(say)
    on_screen.setFormatter(_WithoutSecrets("%(message)s", settings))
    root = logging.getLogger()
    for handler in (in_file, on_screen):
        root.addHandler(handler)
    for name in ("discord_lora", "discord"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield path
    finally:
        for handler in (in_file, on_screen):
            root.removeHandler(handler)
            handler.close()


# Before connecting ----------------------------------------------------------------------------


async def ask_discord(settings: Settings) -> Account:
    """Whose token it is, and whether the bot may read messages. Nothing is connected yet.

    Points discord.py at DISCORD_API_BASE if there is one.

    Raises:
        UserError: wrong token, no intent, or no Discord.
    """
    if settings.discord_api_base:
        Route.BASE = settings.discord_api_base
    client = discord.Client(intents=discord.Intents(guilds=True))
    async with client, _explained(client):
        await client.login(required_token(settings))
        if settings.discord_api_base:
            answer = await client.http.request(Route("GET", "/gateway"))
            DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(answer["url"])
        application, user = client.application, client.user
    if application is None or user is None:
        raise UserError(WRONG_TOKEN)
    flags = application.flags
    if not (flags.gateway_message_content or flags.gateway_message_content_limited):
        raise UserError(NO_INTENT.format(portal=PORTAL, id=application.id))
    return Account(application.id, user.name, invite_link(application.id))


def invite_link(application_id: int) -> str:
    """Where somebody who may manage a server lets the bot in."""
    scopes = ("bot", "applications.commands")
    return discord.utils.oauth_url(application_id, permissions=PERMISSIONS, scopes=scopes)


@asynccontextmanager
async def _explained(client: discord.Client) -> AsyncIterator[None]:
    """Discord's refusals as sentences."""
    try:
        yield
    except discord.LoginFailure:
        raise UserError(WRONG_TOKEN) from None
    except discord.PrivilegedIntentsRequired:
        raise UserError(NO_INTENT.format(portal=PORTAL, id=client.application_id)) from None
    except discord.ConnectionClosed as error:
        if error.code == CLOSED_BAD_TOKEN:
            raise UserError(WRONG_TOKEN) from None
        raise UserError(
            f"Discord closed the connection for good (code {error.code}); see logs/bot.log."
        ) from None
    except discord.HTTPException as error:
        raise UserError(
            f"Discord answers with an error ({error.status}); see https://discordstatus.com, and "
            "try again later."
        ) from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise UserError(
            f"Discord cannot be reached ({type(error).__name__}); check the network."
        ) from None


# In Discord -----------------------------------------------------------------------------------


async def stay_until_stopped(client: "BotClient", token: str) -> None:
    """Be in Discord until Ctrl+C or SIGTERM; then finish the running answers and say goodbye.

    Raises:
        Interrupted: it was stopped.
        UserError: Discord closed the connection for good.
    """
    stop = asyncio.Event()
    living = asyncio.create_task(client.start(token))
    stopping = asyncio.create_task(stop.wait())
    with _told_to_stop(stop, living):
        try:
            async with _explained(client):
                await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not living.done():
                    log.info("finishing what is being answered")
                    await client.finish_answers()
                    # Whoever reads from the socket would close it with another code than goodbye.
                    living.cancel()
                    await client.close()
                await living
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
        finally:
            stopping.cancel()
            await client.close()
    if stop.is_set():
        raise Interrupted("Said goodbye to Discord.")


@contextmanager
def _told_to_stop(stop: asyncio.Event, living: "asyncio.Task[None]") -> Iterator[None]:
    """Set `stop` at the first signal; a second one does not wait for answers."""
    loop = asyncio.get_running_loop()
    current = asyncio.current_task()

    def told() -> None:
        if stop.is_set():
            living.cancel()
            if current is not None:
                current.cancel()
        stop.set()

    before: Sequence[tuple[int, Any]] = [
        (number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)
    ]
    for number, _ in before:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(told))
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
