"""The menus of a message, Regenerate and Delete, as members use them."""

import pytest

from discord_bot.running_bot import ask, ask_for_two, hold, pick
from discord_lora.discord_bot.commands import (
    NOT_MINE,
    NOT_YOURS,
    PROMPT_IS_GONE,
    QUESTION_IS_GONE,
)
from discord_lora.discord_bot.signs import HEARD_SIGN
from fakes import contents


def test_regenerate_writes_the_answer_anew_in_its_place(server, account, alice, bob, owner,
                                                        channel, start):  # fmt: skip
    bot = start()
    bot.backend.enqueue("one " * 700, "short", "two " * 700)
    answer = ask(channel, account, alice)
    server.wait_until(lambda: len(channel.by(account)) == 2)
    channel.say(bob, "later talk")
    assert pick(server, bob, answer, "Regenerate") == NOT_YOURS
    assert pick(server, alice, answer, "Regenerate") == "Written anew."
    assert [it.content for it in channel.by(account)] == ["short"]
    assert contents(bot.backend.requests[-1].conversation.messages) == ["hi lora"]
    assert pick(server, owner, answer, "Regenerate") == "Written anew."
    assert "".join(it.content for it in channel.by(account)).replace(" ", "") == "two" * 700


def test_regenerate_writes_into_what_is_left_of_an_answer(server, account, alice, channel, start):
    bot = start()
    bot.backend.enqueue("one " * 700, "short")
    first, second = ask_for_two(server, channel, account, alice)
    assert pick(server, alice, first, "Delete") == "Deleted."
    memory = bot.client.memory
    server.wait_until(lambda: memory.was_deleted(str(channel.id), str(first.id)))
    assert pick(server, alice, second, "Regenerate") == "Written anew."
    assert contents(channel.by(account)) == ["short"]


def test_regenerate_keeps_to_cool_down_and_quiet(
    server, account, alice, owner, channel, start, use
):
    bot = start(cooldown_seconds=3600)
    answer = ask(channel, account, alice)
    assert pick(server, alice, answer, "Regenerate").startswith("Not now: the user was answered")
    bot.client.manners._answered_user.clear()
    assert use(owner, "quiet").startswith("Quiet here")
    assert pick(server, alice, answer, "Regenerate") == "Not now: told to be quiet."
    bot.backend.enqueue("another")
    assert pick(server, owner, answer, "Regenerate") == "Written anew."
    assert len(bot.backend.requests) == 2


def test_regenerate_and_delete_after_a_restart(server, account, alice, bob, channel, start):
    first_life = start()
    answer = ask(channel, account, alice)
    first_life.stop()
    bot = start()
    bot.backend.enqueue("another")
    assert pick(server, bob, answer, "Delete") == NOT_YOURS
    assert pick(server, alice, answer, "Regenerate") == "Written anew."
    assert answer.content == "another"
    assert pick(server, alice, answer, "Delete") == "Deleted."
    assert channel.by(account) == []


@pytest.mark.parametrize("way", ["optout", "reset", "delete"])
def test_what_was_taken_back_is_neither_shown_nor_answered_anew(
    server, account, alice, owner, channel, start, use, way
):
    bot = start()
    answer = ask(channel, account, alice, "lora, my secret")
    if way == "delete":
        question = answer.reply_to
        question.delete()
        memory = bot.client.memory
        server.wait_until(lambda: memory.was_deleted(str(channel.id), str(question.id)))
    else:
        use(alice, way)
    shown = use(owner, "why", message=str(answer.id))
    assert shown.endswith(PROMPT_IS_GONE) and "secret" not in shown
    assert pick(server, owner, answer, "Regenerate") == QUESTION_IS_GONE
    assert len(bot.backend.requests) == 1


def test_who_opts_out_is_gone_from_the_answers_to_others(
    server, account, alice, bob, owner, channel, start, use
):
    bot = start()
    channel.say(alice, "my secret")
    hold(bot)
    question = channel.say(bob, "hi lora")
    server.wait_until(lambda: bot.backend.running, what="its being written")
    use(alice, "optout")
    bot.soon(bot.backend.hold.set)
    answer = channel.wait_for_message(author=account, reply_to=question)
    shown = use(owner, "why", message=str(question.id))
    assert shown.endswith(PROMPT_IS_GONE) and "secret" not in shown
    assert pick(server, bob, answer, "Regenerate") == "Written anew."
    said = [contents(it.conversation.messages) for it in bot.backend.requests]
    assert said == [["my secret", "hi lora"], ["hi lora"]]


@pytest.mark.parametrize(("way", "signs"), [("optout", []), ("reset", [HEARD_SIGN])])
def test_an_answer_that_is_being_written_is_not_given_after(
    server, account, alice, channel, start, use, way, signs
):
    bot = start()
    hold(bot)
    question = channel.say(alice, "lora, my secret")
    server.wait_until(lambda: bot.backend.running, what="its being written")
    use(alice, way)
    bot.soon(bot.backend.hold.set)
    server.wait_until(lambda: not bot.client.answering._channels, what="its end")
    question.wait_until(lambda it: list(it.reactions) == signs)
    assert [it for it in channel.by(account) if it.reply_to is question] == []


def test_menus_leave_the_messages_of_others_alone(server, account, alice, owner, channel, start):
    start()
    message = channel.say(alice, "mine")
    for name in ("Regenerate", "Delete"):
        assert pick(server, owner, message, name) == NOT_MINE
    assert message in channel.messages
