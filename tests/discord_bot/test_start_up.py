"""What is around the bot's life, without Discord. The rest is in test_bot.py, with the process."""

import asyncio
import logging
import threading

import discord
import pytest

from discord_lora.console import UserError
from discord_lora.discord_bot.start_up import PORTAL, bot_log, stay_until_stopped
from discord_lora.settings import load_settings

log = logging.getLogger("discord_lora.test")


def test_a_console_that_takes_nothing_stops_nobody(tmp_path):
    settings = load_settings({"logs_dir": tmp_path, "discord_token": "a.secret"}, None)
    free, shown = threading.Event(), []

    def say(line):
        free.wait()
        shown.append(line)

    with bot_log(settings, say) as path:
        for number in range(3000):
            log.info("line %d, a.secret", number)
        assert len(path.read_text().splitlines()) == 3000
        assert shown == []
        free.set()
    assert shown[:2] == ["line 0, [secret]", "line 1, [secret]"]
    assert 1000 <= len(shown) < 3000


def test_an_intent_that_was_taken_away_is_named_with_the_page_to_click():
    class Refused:
        application_id = 77

        async def start(self, _token):
            raise discord.PrivilegedIntentsRequired(None)

        async def close(self):
            pass

    with pytest.raises(UserError, match=f"open {PORTAL}/77/bot, switch on"):
        asyncio.run(stay_until_stopped(Refused(), "a.token"))
