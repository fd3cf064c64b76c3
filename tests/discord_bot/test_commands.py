"""Slash commands as members use them."""

import json
import logging
import threading

import pytest

from discord_bot.running_bot import RunningBot, ask, ask_for_two, hold, pick
from discord_lora.discord_bot.channel_memory import RESET_NOTICE
from discord_lora.discord_bot.command_tree import LEAVING, NOT_ALLOWED
from discord_lora.discord_bot.commands import (
    MODERATORS_ONLY,
    OWNERS_ONLY,
    PROMPT_IS_GONE,
)
from discord_lora.discord_bot.signs import BUSY_SIGN, HEARD_SIGN
from discord_lora.inference.backend import Busy
from fake_discord import Permissions
from fake_discord.people import TeamMember
from fakes import contents


def test_status_and_persona_are_for_everybody(alice, start, use):
    start()
    status = use(alice, "status")
    assert "Lora, adapter fake" in status and "12.5 tokens/s" in status
    assert use(alice, "persona").startswith("I speak as Lora")


def test_reset_forgets_what_was_said(server, account, alice, channel, start, use):
    bot = start()
    ask(channel, account, alice, "lora, one")
    assert use(alice, "reset") == RESET_NOTICE
    ask(channel, account, alice, "lora, two")
    assert contents(bot.backend.requests[-1].conversation.messages) == ["lora, two"]


def test_who_opts_out_is_neither_answered_nor_read(account, alice, bob, channel, start, use):
    bot = start()
    channel.say(alice, "a secret of mine")
    assert "no longer read" in use(alice, "optout")
    assert "already" in use(alice, "optout")
    channel.say(alice, "hi lora")
    ask(channel, account, bob)
    assert contents(bot.backend.requests[0].conversation.messages) == ["hi lora"]
    assert len(bot.backend.requests) == 1
    assert str(alice.id) in json.loads(bot.settings.opt_out_file.read_text())
    in_again = use(alice, "optin")
    # History still has what was written meanwhile, and so will the next export.
    assert in_again.startswith("From now on") and "delete what should stay out" in in_again
    assert use(alice, "optin") == "You had not opted out."
    ask(channel, account, alice)


def test_quiet_and_wake_are_for_moderators(server, account, alice, bob, owner, guild, channel,
                                           start, use):  # fmt: skip
    guild.change_member(bob, roles=[guild.add_role("mods", Permissions.MANAGE_MESSAGES)])
    other = guild.add_channel("other")
    start()
    assert use(alice, "quiet") == use(alice, "wake") == MODERATORS_ONLY
    assert use(bob, "quiet", everywhere=True) == OWNERS_ONLY
    assert use(bob, "quiet", minutes=5) == "Quiet here for 5 minutes."
    question = channel.say(alice, "hi lora")
    question.wait_until(lambda it: it.reactions)
    ask(other, account, alice)
    assert use(owner, "quiet", everywhere=True) == "Quiet everywhere until /wake."
    assert use(bob, "wake").startswith("Still quiet everywhere")
    assert use(owner, "wake", everywhere=True) == "Awake."
    ask(channel, account, alice)
    direct = server.open_dm(alice, account)
    assert use(alice, "quiet", where=direct) == "Quiet here until /wake."


def test_quiet_also_holds_for_who_waits_already_and_in_threads(
    server, account, alice, bob, owner, channel, start, use
):
    thread = channel.start_thread(account, "about tea")
    bot = start()
    hold(bot)
    first = channel.say(alice, "hi lora")
    server.wait_until(lambda: bot.backend.running, what="its being written")
    waits = channel.say(bob, "hi lora")
    server.wait_until(lambda: bot.client.answering.waiting, what="its waiting")
    assert use(owner, "quiet") == "Quiet here until /wake."
    bot.soon(bot.backend.hold.set)
    waits.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    assert [it.reply_to for it in channel.by(account) if it.reply_to] == [first]
    question = thread.say(alice, "green or black?")
    question.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    assert "told to be quiet here" in use(alice, "status", where=thread)
    assert use(owner, "wake", where=thread).startswith("Still quiet in the whole channel")
    assert use(owner, "wake") == "Awake."
    ask(thread, account, alice, "and now?")


def test_who_opts_out_while_waiting_keeps_no_hourglass(
    server, account, alice, bob, channel, start, use, monkeypatch
):
    monkeypatch.setattr("discord_lora.discord_bot.answering.BUSY_SECONDS", [0.3] * 9)
    bot = start()
    bot.backend.enqueue(*(Busy() for _ in range(4)))
    questions = [channel.say(alice, "hi lora"), channel.say(bob, "hi lora")]
    for question in questions:
        question.wait_until(lambda it: account in it.reactions.get(BUSY_SIGN, []))
    for user, question in zip((alice, bob), questions, strict=True):
        use(user, "optout")
        question.wait_until(lambda it: not it.reactions)
    server.wait_until(lambda: not bot.client.answering._channels)
    assert channel.by(account) == []


@pytest.mark.parametrize("name", ["settings", "why", "reload"])
def test_owner_commands_refuse_others(alice, start, use, name):
    bot = start()
    before = str(bot.client.manner)
    options = {"settings": {"temperature": 0.1}}.get(name, {})
    assert use(alice, name, **options) == OWNERS_ONLY
    assert str(bot.client.manner) == before and bot.backend.reloaded == []


def test_bot_owners_goes_before_the_application_s_owner(owner, bob, start, use):
    start(bot_owners=str(bob.id))
    assert use(owner, "why") == OWNERS_ONLY
    assert use(bob, "why") == "I remember nothing about that."


def test_of_a_team_only_who_may_change_the_application_is_an_owner(
    server, account, alice, bob, owner, start, use
):
    guest = server.add_user("guest")
    account.team = [
        TeamMember(owner, "read_only"),  # its founder, whatever the role says
        TeamMember(alice, "developer"),
        TeamMember(bob, "read_only"),
        TeamMember(guest, "admin", has_joined=False),
    ]
    start()
    assert use(bob, "why") == use(guest, "why") == OWNERS_ONLY
    assert use(alice, "why") == use(owner, "why") == "I remember nothing about that."


def test_the_lists_hold_for_commands_too(server, alice, bob, owner, guild, channel, start, use):
    trolls = guild.add_role("trolls")
    cy = server.add_user("cy")
    guild.change_member(bob, roles=[trolls])
    closed = guild.add_channel("closed")
    start(
        blocked_users=str(alice.id),
        blocked_roles=str(trolls.id),
        blocked_channels=str(closed.id),
    )
    for name in ("reset", "status"):
        assert use(alice, name) == use(bob, name) == use(cy, name, where=closed) == NOT_ALLOWED
    assert RESET_NOTICE not in contents(channel.messages)
    assert use(cy, "status") != NOT_ALLOWED != use(owner, "status", where=closed)
    assert use(alice, "optin") == "You had not opted out."
    assert "no longer read" in use(alice, "optout") and "no longer read" in use(bob, "optout")


def test_settings_hold_for_the_next_answer(account, alice, owner, channel, start, use):
    bot = start()
    shown = use(owner, "settings", temperature=0.25, max_reply_tokens=9, reply_style="stream")
    assert "TEMPERATURE=0.25\n" in shown and "MAX_REPLY_TOKENS=9\n" in shown
    assert "REPLY_STYLE=stream" in shown
    ask(channel, account, alice)
    sampling = bot.backend.requests[-1].sampling
    assert (sampling.temperature, sampling.max_reply_tokens, sampling.top_p) == (0.25, 9, 0.95)


def test_why_shows_the_decision_and_the_exact_prompt(account, alice, owner, channel, start, use):
    bot = start()
    answer = ask(channel, account, alice)
    prompt = bot.backend.prompt_text(bot.backend.requests[0].conversation)
    for options in ({}, {"message": str(answer.id)}, {"message": answer.reply_to.url}):
        shown = use(owner, "why", **options)
        assert "answer, spoken to: called by name" in shown and prompt in shown
    silent = channel.say(alice, "no matter")
    assert use(owner, "why", message=str(silent.id)) == "stay silent: not spoken to."
    assert use(owner, "why", message="what?").startswith("That is no link")
    assert use(owner, "why", message="123456789012345678") == "I remember nothing about that."


def test_a_long_prompt_comes_as_a_file_without_the_token(server, account, alice, owner, channel,
                                                         start, use):  # fmt: skip
    bot = start(discord_token=account.token)
    for letter in "xyz":
        channel.say(alice, letter * 1500)
    ask(channel, account, alice, f"lora, is it {account.token}?")
    assert "in the file" in use(owner, "why")
    assert server.requests("POST", "/interactions/*/*/callback")[-1].files == ["prompt.txt"]
    bot.client.memory.forget(str(channel.id), str(channel.messages[-1].id))
    ask(channel, account, alice, f"lora, is it {account.token}?")
    shown = use(owner, "why")
    assert "[secret]" in shown and account.token not in shown


def test_reload_takes_names_below_adapters_only(owner, start, use, tmp_path):
    bot = start()
    for bad in ("../elsewhere", "/etc", "a/b"):
        assert use(owner, "reload", adapter=bad).startswith("That is no name")
    assert "no adapter below" in use(owner, "reload")
    (tmp_path / "adapters" / "other").mkdir(parents=True)
    assert use(owner, "reload", adapter="other") == "I speak as Lora (other)."
    assert bot.backend.reloaded == [tmp_path / "adapters" / "other"]


def test_after_reload_an_answer_is_written_anew_as_a_whole(
    server, account, alice, owner, channel, start, use, tmp_path
):
    bot = start()
    bot.backend.enqueue("one " * 700, "short")
    first, _ = ask_for_two(server, channel, account, alice)
    (tmp_path / "adapters" / "other").mkdir(parents=True)
    use(owner, "reload", adapter="other")
    assert use(owner, "why", message=str(first.id)).endswith(PROMPT_IS_GONE)
    assert pick(server, alice, first, "Regenerate") == "Written anew."
    assert contents(channel.by(account)) == ["short"]


def test_an_open_command_is_finished_before_the_bot_leaves(server, account, alice, channel, start):
    bot = start()
    answer = ask(channel, account, alice)
    hold(bot)
    bot.backend.enqueue("another")
    it = begin_anew(server, alice, answer)
    stopping = threading.Thread(target=bot.stop)
    stopping.start()
    late = server.use_command(alice, channel, "status")
    late.wait_for_response()
    assert late.wait_for_answer().content == LEAVING
    bot.soon(bot.backend.hold.set)
    stopping.join(10)
    assert not stopping.is_alive()
    assert it.wait_for_answer().content == "Written anew."
    assert answer.content == "another"


def test_a_command_that_is_open_when_the_connection_ends_for_good_is_cut_off_quietly(
    server, account, alice, guild, channel, start, caplog
):
    other = guild.add_channel("other")
    bot = start()
    answer = ask(channel, account, alice)
    hold(bot)
    begin_anew(server, alice, answer)
    other.say(alice, "lora, and another one")
    server.wait_until(lambda: bot.backend.running == 2, what="an open answer")
    bot.call(bot.client.close())
    bot.thread.join(10)
    assert not bot.thread.is_alive() and bot.backend.running == 0
    assert [it for it in caplog.records if it.levelno >= logging.ERROR] == []


def begin_anew(server, user, answer):
    it = server.use_message_command(user, answer, "Regenerate")
    server.wait_until(lambda: RunningBot.newest.backend.running, what="its being written")
    return it
