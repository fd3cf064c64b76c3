"""When it cannot answer: busy, failing, asked something that is taken back, or told to be quiet."""

from discord_lora.discord_bot.signs import APOLOGY, BUSY_SIGN, HEARD_SIGN
from discord_lora.inference.backend import Busy, GenerationFailed, TooSlow
from fakes import contents

SETTLED = 0.3  # seconds after which what should not happen has had its chance


def test_when_busy_an_hourglass_stands_until_the_answer(server, account, alice, bob, channel,
                                                        start, monkeypatch):  # fmt: skip
    monkeypatch.setattr("discord_lora.discord_bot.answering.BUSY_SECONDS", [0.3] * 9)
    bot = start()
    bot.backend.enqueue(Busy(), Busy(), "here I am")
    question = channel.say(alice, "hi lora")
    question.wait_until(lambda it: account in it.reactions.get(BUSY_SIGN, []))
    second = channel.say(bob, "hi lora")
    second.wait_until(lambda it: account in it.reactions.get(BUSY_SIGN, []))
    answer = channel.wait_for_message(author=account, reply_to=question)
    assert answer.content == "here I am"
    question.wait_until(lambda it: not it.reactions)
    channel.wait_for_message(author=account, reply_to=second)
    second.wait_until(lambda it: not it.reactions)


def test_who_asks_again_while_there_is_no_room_is_answered_once(
    server, account, alice, channel, start, monkeypatch
):
    monkeypatch.setattr("discord_lora.discord_bot.answering.BUSY_SECONDS", [0.3] * 9)
    bot = start()
    bot.backend.enqueue(Busy(), Busy(), "to both")
    first = channel.say(alice, "hi lora")
    first.wait_until(lambda it: account in it.reactions.get(BUSY_SIGN, []))
    again = channel.say(alice, "lora?")
    answer = channel.wait_for_message(author=account, reply_to=again)
    for question in (first, again):
        question.wait_until(lambda it: not it.reactions)
    assert channel.by(account) == [answer]


def test_busy_for_long_it_answers_all_the_same(server, account, alice, channel, start, monkeypatch):
    monkeypatch.setattr("discord_lora.discord_bot.answering.BUSY_SECONDS", [0.02] * 2)
    bot = start()
    bot.backend.enqueue(*(Busy() for _ in range(7)), "at last")
    question = channel.say(alice, "hi lora")
    answer = channel.wait_for_message(author=account, reply_to=question)
    assert answer.content == "at last"
    question.wait_until(lambda it: not it.reactions)


def test_what_is_taken_back_while_there_is_no_room_is_not_read(
    server, account, alice, bob, channel, start, monkeypatch
):
    monkeypatch.setattr("discord_lora.discord_bot.answering.BUSY_SECONDS", [0.3] * 9)
    bot = start()
    secret, typo = channel.say(bob, "my secret"), channel.say(bob, "teh rest")
    bot.backend.enqueue(Busy(), Busy())
    question = channel.say(alice, "hi lora")
    question.wait_until(lambda it: account in it.reactions.get(BUSY_SIGN, []))
    secret.delete()
    typo.edit("the rest")
    channel.wait_for_message(author=account, reply_to=question)
    said = [contents(it.conversation.messages) for it in bot.backend.requests]
    assert said[0] == ["my secret", "teh rest", "hi lora"]
    assert said[-1] == ["the rest", "hi lora"]


def test_a_question_that_is_taken_back_while_there_is_no_room_keeps_no_hourglass(
    server, account, alice, channel, start, monkeypatch
):
    monkeypatch.setattr("discord_lora.discord_bot.answering.BUSY_SECONDS", [0.3] * 9)
    bot = start()
    bot.backend.enqueue(Busy())
    question = channel.say(alice, "hi lora")
    question.wait_until(lambda it: account in it.reactions.get(BUSY_SIGN, []))
    question.edit("   ")
    question.wait_until(lambda it: list(it.reactions) == [HEARD_SIGN])
    assert channel.by(account) == []


def test_who_finds_no_room_in_the_queue_sees_that_there_will_be_no_answer(
    server, account, alice, bob, channel, start, monkeypatch
):
    monkeypatch.setattr("discord_lora.discord_bot.answering.MOST_WAITING", 1)
    carol = server.add_user("carol")
    bot = start()
    bot.backend.hold.clear()
    channel.say(alice, "hi lora")
    server.wait_until(lambda: bot.backend.running)
    waits, too_many = channel.say(bob, "hi lora"), channel.say(carol, "hi lora")
    too_many.wait_until(lambda it: list(it.reactions) == [HEARD_SIGN])
    bot.soon(bot.backend.hold.set)
    channel.wait_for_message(author=account, reply_to=waits)
    assert not waits.reactions


def test_it_waits_for_a_gateway_that_lets_nobody_in_at_first(
    server, account, alice, channel, start, monkeypatch, caplog
):
    monkeypatch.setattr("discord_lora.discord_bot.client.FIRST_CONNECTION_SECONDS", [0.1])
    server.gateway.refuse(1.0)
    start()
    assert server.gateway.refused > 1
    assert len([it for it in caplog.messages if "gateway cannot be reached" in it]) == 1
    channel.wait_for_message(author=account, reply_to=channel.say(alice, "hi lora"))


def test_a_failure_is_apologised_for_once_until_it_works_again(
    server, account, alice, channel, start
):
    bot = start()
    questions = []
    for error in (GenerationFailed("x"), TooSlow(), GenerationFailed("x")):
        bot.backend.enqueue(error)
        questions.append(channel.say(alice, "hi lora"))
        server.wait_until(lambda: not bot.backend.queued)
        server.wait_until(lambda: not bot.client.answering._channels)
    assert [it.content for it in channel.by(account)] == [APOLOGY]
    # Who does not read it sees at least that he was heard.
    for question in questions[1:]:
        question.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    assert not questions[0].reactions
    question = channel.say(alice, "and now, lora?")
    channel.wait_for_message(author=account, reply_to=question)
    bot.backend.enqueue(GenerationFailed("x"))
    question = channel.say(alice, "and again, lora?")
    assert channel.wait_for_message(author=account, reply_to=question).content == APOLOGY
    assert APOLOGY not in contents(bot.backend.requests[-1].conversation.messages)


def test_an_answer_that_discord_refuses_for_good_is_acknowledged(
    server, account, alice, channel, start
):
    start()
    server.fail_next("POST", "/channels/*/messages", status=403, code=50013)
    question = channel.say(alice, "hi lora")
    question.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    assert channel.by(account) == []


def test_a_question_that_is_taken_back_is_not_answered(server, account, alice, channel, start):
    bot = start()
    bot.backend.hold.clear()
    question = channel.say(alice, "hi lora")
    server.wait_until(lambda: bot.backend.running)
    question.delete()
    server.wait_until(lambda: bot.client.memory.was_deleted(str(channel.id), str(question.id)))
    bot.soon(bot.backend.hold.set)
    assert server.stays_quiet(channel, account, SETTLED)


def test_a_model_with_nothing_to_say_is_asked_thrice(server, account, alice, channel, start):
    bot = start()
    bot.backend.enqueue("", " ", "finally")
    question = channel.say(alice, "hi lora")
    assert channel.wait_for_message(author=account, reply_to=question).content == "finally"
    bot.backend.enqueue("", "", "")
    question = channel.say(alice, "lora?")
    question.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    assert len(channel.by(account)) == 1


def test_what_was_missed_in_quiet_hours_is_acknowledged(server, account, alice, channel, start):
    missed = channel.say(alice, "hi lora")
    start(quiet_hours="00:00-00:00")
    missed.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))


def test_quiet_hours_are_acknowledged(server, account, alice, channel, start):
    start(quiet_hours="00:00-00:00")
    question = channel.say(alice, "hi lora")
    question.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    direct = server.open_dm(alice, account)
    direct.wait_for_message(author=account, reply_to=direct.say(alice, "but here?"))
