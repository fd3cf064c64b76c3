"""One life of `python src/bot.py`: it answers, every command does what it says, and it leaves.

A process of its own on the loopback Discord. Each step looks at what members can see, or at the
prompt that /why shows.
"""

import json
import re
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from discord_lora.adapter_folder import WEIGHTS_FILE, find_adapter, read_run_info
from discord_lora.conversations.prompt_format import persona_voice
from discord_lora.discord_bot.channel_memory import RESET_NOTICE
from discord_lora.discord_bot.commands import MODERATORS_ONLY, NOT_MINE, NOT_YOURS, OWNERS_ONLY
from discord_lora.discord_bot.signs import HEARD_SIGN
from loopback import LOADING_SECONDS, ended, train_tiny_adapter

COMMANDS = {
    "status", "persona", "reset", "optout", "optin", "quiet", "wake", "settings", "why", "reload",
    "Regenerate", "Delete",
}  # fmt: skip


@pytest.fixture
def output_dir(tmp_path):
    """Ada's adapter, and beside it Bea's, with other weights on the same model."""
    folder = train_tiny_adapter(tmp_path)
    ada = find_adapter(folder)
    bea = shutil.copytree(ada, folder / "bea")
    info = read_run_info(bea)
    info.voice = persona_voice("Bea", "id-Bea")
    info.write(bea)
    shake(bea / WEIGHTS_FILE, seed=1)
    (ada / WEIGHTS_FILE).touch()  # the newest is the one that is loaded
    return folder


def shake(weights, seed):
    """Another training would have ended with other weights."""
    torch.manual_seed(seed)
    shaken = {name: it + 0.05 * torch.randn_like(it) for name, it in load_file(weights).items()}
    save_file(shaken, weights, {"format": "pt"})


class Room:
    """A channel with Olga, who owns the bot, Alice and Bob."""

    def __init__(self, server):
        self.server = server
        self.olga, self.alice, self.bob = map(server.add_user, ("olga", "alice", "bob"))
        self.account = server.add_bot("Lora", owner=self.olga)
        self.channel = server.add_guild("Home").add_channel("general")

    def ask(self, user, text, channel=None, **options):
        """The answer to it."""
        channel = channel or self.channel
        question = channel.say(user, text, **options)
        return channel.wait_for_message(author=self.account, reply_to=question)

    def use(self, user, name, **options):
        """What a command says."""
        it = self.server.use_command(user, self.channel, name, **options)
        it.wait_for_response()
        return it.wait_for_answer().content

    def pick(self, user, message, name):
        """What an entry in the message's menu says."""
        it = self.server.use_message_command(user, message, name)
        it.wait_for_response()
        return it.wait_for_answer().content

    def anew(self, answer):
        """The text that takes the answer's place."""
        assert self.pick(self.alice, answer, "Regenerate") == "Written anew."
        assert answer in self.channel.messages
        return answer.content

    def why(self, answer):
        """What it came from. An answer stands in Discord a moment before the bot has heard so."""
        until = time.monotonic() + 10
        while "prompt:" not in (said := self.use(self.olga, "why", message=str(answer.id))):
            assert time.monotonic() < until, said
        return said


@pytest.mark.slow
def test_it_lives_in_discord_with_every_command_and_leaves(server, launch, tmp_path, output_dir):
    room = Room(server)
    missed = room.channel.say(room.alice, "anybody? ada?")
    process = launch(token=room.account.token, OUTPUT_DIR=str(output_dir))
    server.wait_until_connected(room.account, timeout=LOADING_SECONDS)
    it_answers_whoever_speaks_to_it(room)
    assert {it["name"] for it in room.account.commands[None]} == COMMANDS
    status_and_persona_tell_who_speaks(room, find_adapter(output_dir).name)
    why_shows_owners_the_prompt_and_reset_empties_it(room)
    settings_change_how_it_writes(room)
    quiet_silences_and_wake_wakes(room)
    who_opts_out_is_neither_read_nor_answered(room, tmp_path / "opted_out.json")
    regenerate_and_delete_are_for_owners_and_who_was_answered(room)
    reload_speaks_with_another_adapter(room, output_dir)
    first = room.channel.by(room.account)[0].reply_to
    assert first is missed or first.content.startswith("hello")
    process.send_signal(signal.SIGINT)
    code, out, error = ended(process)
    assert code == 130 and "Said goodbye to Discord." in error
    assert server.gateway.closes[-1][1] == 1000
    log = (tmp_path / "logs" / "bot.log").read_text(encoding="utf-8")
    assert "answered" in log and "ERROR" not in log
    assert room.account.token not in log + out + error
    for what_was_said in (missed.content, "hello", "trains"):
        assert what_was_said not in log  # what members write is no matter of the log


def it_answers_whoever_speaks_to_it(room):
    answer = room.ask(room.alice, "hello @Lora", mentions=[room.account])
    room.ask(room.alice, "why?", reply_to=answer)
    direct = room.server.open_dm(room.alice, room.account)
    room.ask(room.alice, "hi", direct)
    thread = room.channel.start_thread(room.account, "tea")
    room.ask(room.alice, "green?", thread)


def status_and_persona_tell_who_speaks(room, adapter):
    status = room.use(room.alice, "status")
    assert f"Ada, adapter {adapter}\n" in status and "on this computer" in status
    assert re.search(r"up 0:00:\d\d, \d answers, \d+\.\d tokens/s", status)
    assert "0 being written, 0 waiting\n1 servers" in status
    persona = room.use(room.bob, "persona")
    assert persona.startswith("I speak as Ada.") and adapter in persona


def why_shows_owners_the_prompt_and_reset_empties_it(room):
    before = room.ask(room.alice, "ada, do you like trains?")
    assert room.use(room.bob, "why") == OWNERS_ONLY
    shown = room.why(before)
    assert "spoken to: called by name" in shown and "<|im_start|>assistant" in shown
    assert "hello @Ada" in shown and "trains" in shown
    it = room.server.use_command(room.olga, room.channel, "why")
    it.wait_for_response()
    assert it.is_ephemeral
    assert room.use(room.bob, "reset") == RESET_NOTICE
    shown = room.why(room.ask(room.alice, "ada, what do you know?"))
    assert "what do you know?" in shown
    assert "hello" not in shown and "trains" not in shown and RESET_NOTICE not in shown


def settings_change_how_it_writes(room):
    answer = room.ask(room.alice, "ada, how are you?")
    assert room.use(room.bob, "settings", temperature=0.0) == OWNERS_ONLY
    shown = room.use(room.olga, "settings", temperature=0.0, max_reply_tokens=6)
    assert "TEMPERATURE=0\n" in shown and "MAX_REPLY_TOKENS=6\n" in shown
    always = room.anew(answer)
    assert len(always) == 6  # each token is a letter
    assert room.anew(answer) == room.anew(answer) == always
    room.use(room.olga, "settings", temperature=5.0, max_reply_tokens=20)
    freely = room.anew(answer)
    assert len(freely) == 20 and not freely.startswith(always)


def quiet_silences_and_wake_wakes(room):
    assert room.use(room.bob, "quiet") == MODERATORS_ONLY
    assert room.use(room.olga, "quiet") == "Quiet here until /wake."
    assert room.use(room.bob, "status").endswith("told to be quiet here")
    ignored = room.channel.say(room.alice, "ada, are you there?")
    ignored.wait_until(lambda it: room.account in it.reactions.get(HEARD_SIGN, []))
    assert room.use(room.bob, "wake") == MODERATORS_ONLY
    assert room.use(room.olga, "wake") == "Awake."
    room.ask(room.bob, "ada, and now?")
    assert all(it.reply_to is not ignored for it in room.channel.by(room.account))


def who_opts_out_is_neither_read_nor_answered(room, ledger):
    room.use(room.olga, "reset")
    room.channel.say(room.bob, "trains are mine")
    assert "trains are mine" in room.why(room.ask(room.alice, "ada, what of boats?"))
    assert "no longer read" in room.use(room.bob, "optout")
    assert list(json.loads(ledger.read_text())) == [str(room.bob.id)]
    ignored = room.channel.say(room.bob, "ada, do you read me?")
    shown = room.why(room.ask(room.alice, "ada, go on"))
    assert "boats" in shown
    assert "trains are mine" not in shown and "read me" not in shown
    assert all(it.reply_to is not ignored for it in room.channel.by(room.account))
    assert room.use(room.bob, "optin").startswith("From now on I read what you write")
    assert json.loads(ledger.read_text()) == {}
    assert "boats" in room.why(room.ask(room.bob, "ada, do you read me now?"))


def regenerate_and_delete_are_for_owners_and_who_was_answered(room):
    answer = room.ask(room.alice, "ada, say something")
    said = answer.content
    for name in ("Regenerate", "Delete"):
        assert room.pick(room.bob, answer, name) == NOT_YOURS
        assert room.pick(room.olga, answer.reply_to, name) == NOT_MINE
    assert answer.content == said and answer in room.channel.messages
    assert room.anew(answer) != said
    assert room.pick(room.olga, answer, "Regenerate") == "Written anew."
    assert room.pick(room.alice, answer, "Delete") == "Deleted."
    assert answer.deleted_at and answer.reply_to in room.channel.messages


def reload_speaks_with_another_adapter(room, output_dir):
    room.use(room.olga, "settings", temperature=0.0)
    answer = room.ask(room.alice, "ada, who are you?")
    assert room.use(room.bob, "reload", adapter="bea") == OWNERS_ONLY
    # The loaded one, trained further meanwhile: it is the newest.
    ada = find_adapter(output_dir)
    shake(ada / WEIGHTS_FILE, seed=2)
    before = room.anew(answer)
    assert room.use(room.olga, "reload") == f"I speak as Ada ({ada.name})."
    assert room.anew(answer) != before
    assert room.use(room.olga, "reload", adapter="bea") == "I speak as Bea (bea)."
    assert "Bea, adapter bea\n" in room.use(room.bob, "status")
    assert room.use(room.bob, "persona").startswith("I speak as Bea.")
    assert "no finished adapter" in room.use(room.olga, "reload", adapter="cy")
    room.ask(room.bob, "bea, are you new?")
