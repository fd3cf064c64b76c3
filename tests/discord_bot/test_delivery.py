"""Sending over a line that breaks: nothing is lost, and nothing is sent twice."""

import pytest

from discord_bot.running_bot import all_is_done
from discord_lora.discord_bot import delivery

FAULTS = {
    "dropped before it was done": {"drop_request": True},
    "dropped after it was done": {"drop_answer": True},
    "503": {"status": 503},
    "503 although done": {"status": 503, "carried_out": True},
    "500": {"status": 500},
    "502 although done": {"status": 502, "carried_out": True},
    "429": {"status": 429, "retry_after": 0.2},
    "429 for all": {"status": 429, "retry_after": 0.2, "is_global": True},
    "429 by the proxy": {"status": 429, "via": False},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_failed_request_neither_loses_nor_doubles(
    server, account, alice, bob, channel, start, fault
):
    start(reply_style="stream").client.manner.edit_seconds = 0.05
    server.fail_next("POST", "/channels/*/messages", **fault)
    question = channel.say(alice, "lora?")
    channel.wait_for_message(author=account, reply_to=question)
    all_is_done(channel, account, bob)
    assert len(channel.by(account)) == 2


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("is_asked", [True, False], ids=["asked", "unasked"])
def test_what_came_through_unnoticed_is_not_sent_again(
    server, account, alice, bob, channel, start, monkeypatch, part, is_asked
):
    """Also when Discord has forgotten the nonce."""
    monkeypatch.setattr("fake_discord.routes.NONCE_SECONDS", 0.0)
    bot = start(bot_channels=str(channel.id), chance=lambda: 0.0)
    bot.backend.enqueue("one " * 700)
    server.fail_next("POST", "/channels/*/messages", drop_answer=True, skip=part)
    channel.say(alice, "lora?" if is_asked else "anybody?")
    server.wait_until(lambda: len(channel.by(account)) == 2)
    all_is_done(channel, account, bob)
    first, second, _ = channel.by(account)
    assert len(first.content) + len(second.content) > 2700


def test_failed_edits_and_signs_do_not_stop_an_answer(server, account, alice, channel, start):
    bot = start(reply_style="stream")
    bot.client.manner.edit_seconds = 0.1
    bot.backend.seconds_a_word = 0.05
    bot.backend.enqueue(" ".join(map(str, range(12))))
    server.fail_next("POST", "/channels/*/typing", status=503, times=5)
    server.fail_next("PATCH", "/channels/*/messages/*", drop_answer=True, times=1)
    server.fail_next("PATCH", "/channels/*/messages/*", status=503, times=1)
    question = channel.say(alice, "lora?")
    answer = channel.wait_for_message(author=account, reply_to=question)
    answer.wait_until(lambda it: it.content.endswith("11"))
    assert len(channel.by(account)) == 1


def test_the_same_words_to_somebody_else_are_another_answer(
    server, account, alice, bob, channel, start
):
    bot = start()
    bot.backend.hold.clear()
    bot.backend.enqueue("lol", "lol")
    first = channel.say(alice, "lora?")
    server.wait_until(lambda: bot.backend.running)
    second = channel.say(bob, "lora?")
    server.wait_until(lambda: bot.client.answering.waiting, what="its waiting")
    server.fail_next("POST", "/channels/*/messages", drop_request=True, skip=1)
    bot.soon(bot.backend.hold.set)
    channel.wait_for_message(author=account, reply_to=first)
    channel.wait_for_message(author=account, reply_to=second)


def test_a_question_that_is_taken_back_while_discord_takes_nothing_gets_no_answer(
    server, account, alice, channel, start, monkeypatch
):
    monkeypatch.setattr(delivery, "RETRY_SECONDS", [1.0] * 9)
    bot = start()
    lost = server.fail_next("POST", "/channels/*/messages", status=503)
    question = channel.say(alice, "lora?")
    server.wait_until(lambda: lost.hits, what="a try")
    question.delete()
    server.wait_until(lambda: not bot.client.answering._channels, what="its end")
    assert channel.by(account) == []
