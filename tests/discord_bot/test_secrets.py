"""No object shows a secret: not the client, nor what hangs on it, nor what is raised or logged."""

import asyncio
import gc
import logging
import types

import discord
import pytest

from discord_lora.console import UserError
from discord_lora.conversations.prompt_format import persona_voice
from discord_lora.discord_bot.client import BotClient
from discord_lora.discord_bot.signs import APOLOGY
from discord_lora.discord_bot.start_up import ask_discord, bot_log
from discord_lora.inference.completions_server import ServerRefused
from discord_lora.inference.open_backend import open_backend
from discord_lora.messages.opt_out import OptOutLedger
from discord_lora.settings import load_settings
from fake_completions import KEY, FakeServer
from run_scripts import adapter_without_weights

HUB = "hf_secretMarkerOfTheHub"
WRONG = "wrong.secret.marker"
NOT_ENTERED = (types.ModuleType, type, types.FrameType, types.TracebackType, types.CodeType,
               asyncio.AbstractEventLoop)  # fmt: skip


def within(*roots):
    """Whatever hangs on these, by attribute, element, bound method or closure.

    Modules, classes and stack frames are not entered, and of functions the closure alone: through
    them everything hangs on everything.
    """
    seen, left = {}, list(roots)
    while left:
        it = left.pop()
        if id(it) in seen or isinstance(it, NOT_ENTERED):
            continue
        seen[id(it)] = it
        if isinstance(it, types.FunctionType):
            left += it.__closure__ or ()
        elif gc.is_tracked(it) or isinstance(it, tuple | dict):
            left += gc.get_referents(it)
    return list(seen.values())


def kind(it):
    return f"{type(it).__module__}.{type(it).__qualname__}"


def shown(things):
    """By kind, what repr and str make of the objects of this project and of discord.py, and of
    every exception."""
    found = {}
    for it in things:
        if kind(it).startswith(("discord_lora.", "discord.")) or isinstance(it, BaseException):
            found.setdefault(kind(it), set()).update((repr(it), str(it), f"{it}"))
    return found


def assert_hidden(found, *secrets):
    for secret in secrets:
        assert [name for name, texts in found.items() if any(secret in it for it in texts)] == []


@pytest.fixture
def adapter(tmp_path):
    return adapter_without_weights(tmp_path, persona_voice("Ada", "id-Ada"))


@pytest.fixture
def settings(account, tmp_path):
    def settings(url, **changes):
        values = {
            "discord_token": account.token, "hf_token": HUB, "inference_api_key": KEY,
            "inference_url": url, "reply_style": "plain", "logs_dir": tmp_path / "logs",
            "opt_out_file": tmp_path / "opted_out.json", "output_dir": tmp_path,
        }  # fmt: skip
        return load_settings(values | changes, None)

    return settings


def test_nothing_that_hangs_on_the_client_shows_a_secret(
    server, account, alice, owner, channel, adapter, settings, caplog
):
    caplog.set_level(logging.INFO)

    def ask(text):
        question = channel.say(alice, text)
        return channel.wait_for_message(author=account, reply_to=question).content

    async def talk(client, completions):
        await asyncio.to_thread(server.wait_until, client.is_ready)
        assert await asyncio.to_thread(ask, "hi ada") == "hello"
        completions.status = 500  # and it repeats the key
        assert await asyncio.to_thread(ask, "again, ada?") == APOLOGY
        completions.status = 200
        server.fail_next("POST", "/channels/*/messages", status=503)
        assert await asyncio.to_thread(ask, "and now, ada?") == "hello"
        used = server.use_command(owner, channel, "reload", adapter="none")
        await asyncio.to_thread(used.wait_for_response)

    async def live():
        completions = FakeServer()
        async with completions.running() as url:
            mine = settings(url)
            backend = await open_backend(mine, adapter, lambda _line: None)
            client = BotClient(
                settings=mine, backend=backend, ledger=OptOutLedger(mine.opt_out_file),
                adapter=adapter, guild_ready_timeout=0.05,
            )  # fmt: skip
            with bot_log(mine, lambda _line: None):
                living = asyncio.create_task(client.start(account.token))
                await talk(client, completions)
                found = shown(within(client))
                client.journal.leak = ServerRefused(0, KEY)  # as if there were one
                with pytest.raises(AssertionError):
                    assert_hidden(shown(within(client)), KEY)
                del client.journal.leak
                await client.close()
                await living
            await backend.close()
        return found

    found = asyncio.run(live())
    logged = [it.exc_info[1] for it in caplog.records if it.exc_info]
    errors = shown(within(*logged))
    for name in (
        "discord_bot.client.BotClient", "discord_bot.commands.Commands", "settings.Settings",
        "discord_bot.answering.Answering", "inference.openai_backend.OpenAIBackend",
        "inference.completions_server.Server", "discord_bot.journal.AnswerRecord",
    ):  # fmt: skip
        assert f"discord_lora.{name}" in found
    assert "discord.http.HTTPClient" in found and "discord.gateway.DiscordWebSocket" in found
    assert "discord_lora.inference.completions_server.ServerRefused" in errors
    for texts in (found, errors, {"the log": {caplog.text}}):
        assert_hidden(texts, account.token, HUB, KEY)


def test_nothing_that_is_raised_at_the_start_shows_a_secret(server, account, adapter, settings):
    completions = FakeServer()
    raised = []

    async def fails(coroutine):
        with pytest.raises(UserError) as failure:
            await coroutine
        raised.append(failure.value)

    async def start():
        await fails(ask_discord(settings("", discord_token=WRONG)))
        server.fail_next("*", "/**", status=503, times=9)
        await fails(ask_discord(settings("")))
        server.wire.faults.queue.clear()
        server.fail_next("*", "/**", drop_request=True, times=9)
        await fails(ask_discord(settings("")))
        async with completions.running() as url:
            for status in (500, 404):
                completions.status = status
                await fails(open_backend(settings(url), adapter, lambda _line: None))
            wrong = settings(url, inference_api_key=WRONG)
            await fails(open_backend(wrong, adapter, lambda _line: None))
            circle = settings(f"{url}/circle")
            await fails(open_backend(circle, adapter, lambda _line: None))
        await fails(open_backend(settings(url), adapter, lambda _line: None))

    asyncio.run(start())
    for changes in ({"temperature": "hot"}, {"hf_token": 7}, {"inference_url": 7}):
        try:
            settings("", **changes)
        except UserError as failure:
            raised.append(failure)
    errors = shown(within(*raised))
    assert errors.keys() >= {"discord.errors.LoginFailure", "discord_lora.console.UserError"}
    assert discord.errors.DiscordServerError.__qualname__ in str(errors.keys())
    assert_hidden(errors, account.token, WRONG, HUB, KEY)
