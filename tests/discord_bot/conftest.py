"""A loopback Discord with a server, two members and an owner, and the bot in it."""

import discord
import pytest
import yarl

from discord_bot.running_bot import RunningBot
from fake_discord import FakeDiscord


@pytest.fixture
def server(monkeypatch):
    with FakeDiscord() as server:
        monkeypatch.setattr(discord.http.Route, "BASE", server.api_base)
        gateway = yarl.URL(server.gateway_url)
        monkeypatch.setattr(discord.gateway.DiscordWebSocket, "DEFAULT_GATEWAY", gateway)
        yield server


@pytest.fixture
def owner(server):
    return server.add_user("olga")


@pytest.fixture
def alice(server):
    return server.add_user("alice")


@pytest.fixture
def bob(server):
    return server.add_user("bob")


@pytest.fixture
def account(server, owner):
    return server.add_bot("Lora", owner=owner)


@pytest.fixture
def guild(server, account, alice, bob, owner):
    return server.add_guild("Home")


@pytest.fixture
def channel(guild):
    return guild.add_channel("general")


@pytest.fixture
def start(server, account, channel, tmp_path):
    """Start the bot with these settings; it is stopped afterwards."""
    started = []

    def start(**options):
        started.append(RunningBot(server, account, tmp_path, **options).start())
        return started[-1]

    yield start
    for bot in started:
        if bot.thread.is_alive():
            bot.stop()
