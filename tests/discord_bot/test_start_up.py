"""What is around the bot's life: here the log. The rest is in test_bot.py, with the process."""

import logging
import threading

from discord_lora.discord_bot.start_up import bot_log
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
