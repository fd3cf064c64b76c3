"""The bot's client on the loopback Discord, in a thread of this process, with a fake backend."""

import asyncio
import threading

import discord

from discord_lora.discord_bot.client import BotClient
from discord_lora.messages.opt_out import OptOutLedger
from discord_lora.settings import load_settings
from fakes import FakeBackend

GUILD_READY_SECONDS = 0.05  # discord.py waits 2 s for further servers


class RunningBot:
    """A started client; `call` runs something on its event loop."""

    newest = None

    def __init__(self, server, account, tmp_path, backend=None, chance=lambda: 1.0, **settings):
        self.server, self.account = server, account
        self.backend = backend or FakeBackend()
        defaults = {
            "reply_style": "plain",
            "opt_out_file": tmp_path / "opted_out.json",
            "output_dir": tmp_path / "adapters",
        }
        self.settings = load_settings({**defaults, **settings}, None)
        self.chance = chance
        self.failure = None
        self.client = None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        RunningBot.newest = self
        self.thread.start()
        self.server.wait_until_connected(self.account)
        # An earlier bot of this account may still count as connected.
        self.server.wait_until(
            lambda: (self.client and self.client.is_ready()) or self.failure, what="readiness"
        )
        return self

    def call(self, coroutine, timeout=20):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def soon(self, function, *arguments):
        """A plain function, on the event loop."""

        async def run():
            return function(*arguments)

        return self.call(run())

    def stop(self):
        if self.thread.is_alive():
            self.call(self.client.finish_answers())
            self.call(self.client.close())
        self.thread.join(10)
        assert not self.thread.is_alive()

    def kill(self):
        """End without a word: nothing is finished, nobody told."""

        async def cut():
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()

        self.call(cut())
        self.thread.join(10)

    def _run(self):
        async def live():
            self.client = BotClient(
                settings=self.settings,
                backend=self.backend,
                ledger=OptOutLedger(self.settings.opt_out_file),
                adapter=self.settings.output_dir / "fake",
                chance=self.chance,
                guild_ready_timeout=GUILD_READY_SECONDS,
            )
            # discord.py waits 5 s before it identifies again.
            self.client.before_identify_hook = lambda *_, **__: asyncio.sleep(0)
            try:
                async with self.client:
                    await self.client.start(self.account.token)
            except (asyncio.CancelledError, discord.DiscordException) as error:
                self.failure = error

        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(live())


def all_is_done(channel, account, somebody):
    """A channel gives one answer at a time: whatever was due before this one was given."""
    last = channel.say(somebody, "and that is all, lora?")
    channel.wait_for_message(author=account, reply_to=last)


def ask(channel, account, user, text="hi lora"):
    question = channel.say(user, text)
    answer = channel.wait_for_message(author=account, reply_to=question)
    # It stands in Discord before the bot has heard so.
    journal = RunningBot.newest.client.journal
    channel.world.wait_until(lambda: journal.answer(str(answer.id)), what="its being remembered")
    return answer


def ask_for_two(server, channel, account, user):
    """An answer of two messages, both remembered."""
    first = ask(channel, account, user)
    server.wait_until(lambda: len(channel.by(account)) == 2)
    journal, second = RunningBot.newest.client.journal, channel.by(account)[1]
    server.wait_until(lambda: journal.answer(str(second.id)), what="its being remembered")
    return first, second


def pick(server, user, message, name):
    it = server.use_message_command(user, message, name)
    it.wait_for_response()
    return it.wait_for_answer().content


def hold(bot):
    """Let no further answer be written, until `hold` is set again."""
    bot.soon(bot.backend.hold.clear)
