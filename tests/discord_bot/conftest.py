"""On the loopback Discord: a server, two members and an owner, and the bot in it."""

import pytest

from discord_bot.running_bot import RunningBot
from discord_lora.discord_bot import catching_up, delivery


@pytest.fixture(autouse=True)
def _quick_bot(quick_retries, monkeypatch):
    """The bot does not wait long before it tries again either."""
    for module in (delivery, catching_up):
        pauses = [0.02] * len(module.RETRY_SECONDS)
        monkeypatch.setattr(module, "RETRY_SECONDS", pauses)


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


@pytest.fixture
def use(server, channel):
    """The text that a command is answered with, and the whole answer."""

    def use(user, name, where=None, **options):
        it = server.use_command(user, where or channel, name, **options)
        it.wait_for_response()
        return it.wait_for_answer().content

    return use
