"""Nothing that history shows is lost, and nothing is answered twice."""

from datetime import UTC, datetime, timedelta

import pytest

from discord_bot.running_bot import all_is_done
from discord_lora.discord_bot import delivery
from discord_lora.discord_bot.channel_memory import MESSAGES_PER_CHANNEL, RESET_NOTICE
from discord_lora.discord_bot.signs import BUSY_SIGN, HEARD_SIGN
from fakes import contents


def answers(channel, account, question):
    return [it for it in channel.by(account) if it.reply_to is question]


def test_what_was_missed_is_answered_at_the_start(server, account, alice, bob, channel, start):
    old = channel.say(alice, "lora, yesterday?", at=datetime.now(UTC) - timedelta(hours=20))
    channel.say(alice, "some talk")
    question = channel.say(alice, "hi @Lora", mentions=[account])
    first, second = channel.say(bob, "lora?"), channel.say(bob, "lora, hello?")
    bot = start()
    channel.wait_for_message(author=account, reply_to=question)
    channel.wait_for_message(author=account, reply_to=second)
    all_is_done(channel, account, alice)
    assert not answers(channel, account, old) and not answers(channel, account, first)
    said = contents(bot.backend.requests[0].conversation.messages)
    assert said == ["some talk", "hi @Lora"]


def test_a_restart_remembers_and_answers_nothing_twice(server, account, alice, channel, start):
    first_life = start()
    question = channel.say(alice, "lora, one?")
    channel.wait_for_message(author=account, reply_to=question)
    first_life.kill()
    missed = channel.say(alice, "lora, two?")
    second_life = start()
    channel.wait_for_message(author=account, reply_to=missed)
    all_is_done(channel, account, alice)
    assert len(answers(channel, account, question)) == 1
    said = contents(second_life.backend.requests[0].conversation.messages)
    assert said == ["lora, one?", "you said lora, one?", "lora, two?"]


def test_killed_while_answering_it_answers_after_the_restart(
    server, account, alice, channel, start
):
    first_life = start()
    first_life.backend.hold.clear()
    question = channel.say(alice, "lora, one?")
    server.wait_until(lambda: first_life.backend.running)
    first_life.kill()
    start()
    channel.wait_for_message(author=account, reply_to=question)
    all_is_done(channel, account, alice)
    assert len(answers(channel, account, question)) == 1


def test_an_answer_that_was_deleted_is_not_given_again(account, alice, bob, channel, start):
    first_life = start()
    question = channel.say(alice, "lora, one?")
    channel.wait_for_message(author=account, reply_to=question).delete()
    question.wait_until(lambda it: account in it.reactions.get(HEARD_SIGN, []))
    first_life.stop()
    start()
    all_is_done(channel, account, bob)
    assert answers(channel, account, question) == []


def test_an_hourglass_of_before_the_restart_is_taken_off(server, account, alice, channel, start):
    question = channel.say(alice, "lora?")
    question.react(account, BUSY_SIGN)
    start()
    channel.wait_for_message(author=account, reply_to=question)
    question.wait_until(lambda it: not it.reactions)


@pytest.mark.parametrize("resumable", [True, False])
def test_mentions_while_the_connection_was_gone(
    server, account, alice, bob, channel, start, resumable
):
    bot = start()
    channel.wait_for_message(author=account, reply_to=channel.say(alice, "lora, zero?"))
    server.gateway.refuse(0.2)
    server.gateway.abort()
    if not resumable:
        server.gateway.forget_sessions()
    questions = [channel.say(alice, "lora, one?"), channel.say(alice, "lora, two?")]
    typo = channel.say(alice, "teh end")
    answer = channel.wait_for_message(author=account, reply_to=questions[-1], timeout=30)
    typo.edit("the end")
    last = channel.say(alice, "still there, lora?")
    channel.wait_for_message(author=account, reply_to=last)
    all_is_done(channel, account, bob)
    assert len(answers(channel, account, questions[0])) <= 1
    assert answers(channel, account, questions[1]) == [answer]
    said = contents(bot.backend.requests[-1].conversation.messages)
    assert "the end" in said and "teh end" not in said


def test_a_mention_far_back_is_found_although_somebody_wrote_since(
    server, account, alice, bob, channel, start, monkeypatch
):
    # It is in again, and hears the one word, before it looks at any history.
    monkeypatch.setattr("discord_bot.running_bot.GUILD_READY_SECONDS", 0.5)
    start()
    channel.wait_for_message(author=account, reply_to=channel.say(alice, "lora, zero?"))
    server.gateway.refuse(0.2)
    server.gateway.abort()
    server.gateway.forget_sessions()
    missed = channel.say(alice, "hi @Lora", mentions=[account], deliver=False)
    for number in range(250):
        channel.say(bob, f"talk {number}", deliver=False)
    server.wait_until_connected(account)
    channel.say(bob, "one word")
    channel.wait_for_message(author=account, reply_to=missed, timeout=30)


def test_a_mention_is_answered_however_far_back(server, account, alice, bob, channel, start):
    channel.say(alice, "before")
    missed = channel.say(alice, "hi @Lora", mentions=[account])
    for number in range(450):
        channel.say(bob, f"talk {number}")
    bot = start()
    channel.wait_for_message(author=account, reply_to=missed)
    all_is_done(channel, account, bob)
    assert contents(bot.backend.requests[0].conversation.messages) == ["before", "hi @Lora"]
    # Then no more is remembered of the channel than of any other.
    server.wait_until(lambda: not bot.client.answering._channels)
    assert len(bot.client.memory._channels[str(channel.id)].ids) == MESSAGES_PER_CHANNEL


@pytest.mark.parametrize("then", ["a new round", "another question"])
def test_a_question_is_taken_up_again_when_no_answer_could_be_sent(
    server, account, alice, bob, channel, start, monkeypatch, then
):
    monkeypatch.setattr(delivery, "RETRY_SECONDS", [0.01, 0.01])
    bot = start()
    fault = server.fail_next("POST", "/channels/*/messages", drop_request=True, times=3)
    question = channel.say(alice, "lora?")
    server.wait_until(lambda: fault.is_spent and not bot.client.answering._channels)
    assert channel.by(account) == []
    if then == "a new round":
        server.gateway.reconnect()
    else:
        channel.wait_for_message(author=account, reply_to=channel.say(bob, "lora, and I?"))
    channel.wait_for_message(author=account, reply_to=question)
    all_is_done(channel, account, bob)
    assert len(answers(channel, account, question)) == 1


def test_a_channel_that_is_closed_to_it_is_forgotten(server, account, alice, channel, start):
    from fake_discord import Permissions

    bot = start()
    question = channel.say(alice, "lora?")
    channel.wait_for_message(author=account, reply_to=question)
    memory, history = bot.client.memory, bot.client.history
    record = bot.client.journal.answer(str(question.id))
    assert record.conversation is not None
    assert memory.knows(str(channel.id), str(question.id)) and channel.id in history._read
    channel.deny(account, Permissions.VIEW_CHANNEL)
    server.wait_until(lambda: str(channel.id) not in memory._channels)
    server.wait_until(lambda: channel.id not in history._read)
    assert record.conversation is None and not history._reading


def test_what_was_deleted_while_the_connection_was_gone_is_no_longer_shown(
    server, account, alice, bob, channel, start
):
    bot = start()
    channel.say(bob, "hello")
    secret = channel.say(alice, "my secret")
    question = channel.say(bob, "lora?")
    channel.wait_for_message(author=account, reply_to=question)
    record = bot.client.journal.answer(str(question.id))
    assert "my secret" in contents(record.conversation.messages)
    server.gateway.refuse(0.2)
    server.gateway.abort()
    server.gateway.forget_sessions()
    secret.delete()
    server.wait_until(lambda: record.conversation is None, timeout=30)
    assert not bot.client.memory.knows(str(channel.id), str(secret.id))


def test_direct_messages_that_were_missed(server, account, alice, start, channel):
    start()
    direct = server.open_dm(alice, account)
    direct.wait_for_message(author=account, reply_to=direct.say(alice, "hello"))
    missed = direct.say(alice, "are you there?", deliver=False)
    server.gateway.invalidate(resumable=False)
    direct.wait_for_message(author=account, reply_to=missed, timeout=30)


def test_a_reset_holds_across_a_restart(server, account, alice, channel, start):
    first_life = start()
    channel.say(alice, "forget this")
    server.use_command(alice, channel, "reset").wait_for_response()
    channel.wait_for_message(author=account, where=lambda it: it.content == RESET_NOTICE)
    first_life.stop()
    second_life = start()
    question = channel.say(alice, "what do you know, lora?")
    channel.wait_for_message(author=account, reply_to=question)
    said = contents(second_life.backend.requests[0].conversation.messages)
    assert said == ["what do you know, lora?"]


def test_channels_it_cannot_read_or_may_not_speak_in_are_left_alone(
    server, account, alice, guild, channel, start
):
    from fake_discord import Permissions

    blocked, closed = guild.add_channel("blocked"), guild.add_channel("closed")
    closed.deny(account, Permissions.READ_MESSAGE_HISTORY)
    for it in (blocked, closed):
        it.say(alice, "lora?")
    start(blocked_channels=str(blocked.id))
    channel.wait_for_message(author=account, reply_to=channel.say(alice, "lora?"))
    asked = {it.path.split("/")[2] for it in server.requests("GET", "/channels/*/messages")}
    assert asked == {str(channel.id)}
    # Where history is closed it answers without a reply.
    question = closed.say(alice, "lora, now?")
    assert closed.wait_for_message(author=account, after=question).reply_to is None


# --- who is who -------------------------------------------------------------------------------


@pytest.fixture
def nicknames(alice, bob, guild):
    guild.change_member(alice, nick="Al")
    guild.change_member(bob, nick="Bobby")


def test_after_a_restart_everybody_has_the_name_of_the_server(
    server, account, alice, bob, owner, channel, start, nicknames
):
    guest = server.add_user("guest")
    channel.say(alice, "hi @bob", mentions=[bob])
    channel.say(guest, "bye")
    channel.guild.remove_member(guest)
    second = channel.guild.add_channel("second")
    second.say(alice, "and here?")
    bot = start()
    for it in (channel, second):
        it.wait_for_message(author=account, reply_to=it.say(owner, "who is here, lora?"))
    first, other = (it.conversation.messages for it in bot.backend.requests)
    assert [it.author for it in first] == ["Al", "Guest", "Olga"]
    assert first[0].content == "hi @Bobby"
    assert [it.author for it in other] == ["Al", "Olga"]
    asked = [it for ids in server.gateway.asked_for for it in ids]
    assert {str(alice.id), str(bob.id), str(guest.id)} <= set(asked)


def test_without_nicknames_history_is_read_all_the_same(
    server, account, alice, bob, channel, start, nicknames, monkeypatch, caplog
):
    monkeypatch.setattr("discord_lora.discord_bot.lookups.SECONDS_FOR_NAMES", 0.1)
    server.gateway.withholds_members = True
    channel.say(alice, "hi @bob", mentions=[bob])
    missed = channel.say(alice, "lora?")
    bot = start()
    channel.wait_for_message(author=account, reply_to=missed)
    (request,) = bot.backend.requests
    assert [it.author for it in request.conversation.messages] == ["Alice", "Alice"]
    assert request.conversation.messages[0].content == "hi @Bob"
    assert caplog.text.count("no nicknames") == 1


def test_missed_messages_keep_to_the_roles_of_their_authors(
    server, account, alice, bob, guild, channel, start
):
    trolls = guild.add_role("trolls")
    guild.change_member(bob, roles=[trolls])
    of_bob, of_alice = channel.say(bob, "lora, me!"), channel.say(alice, "lora, me!")
    start(blocked_roles=str(trolls.id))
    channel.wait_for_message(author=account, reply_to=of_alice)
    all_is_done(channel, account, alice)
    assert answers(channel, account, of_bob) == []
