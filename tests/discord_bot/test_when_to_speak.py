from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_bot.seen import seen
from discord_lora.discord_bot.speak_rules import QuietHours, SpeakRules
from discord_lora.discord_bot.when_to_speak import (
    MOST_ANSWERS_TO_BOTS,
    MOST_UNASKED,
    Answer,
    WhenToSpeak,
    chance_to_speak_up,
)
from discord_lora.messages.sources.base import Kind
from discord_lora.settings import load_settings

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ADDRESSED, UNASKED, SILENT = Answer.ADDRESSED, Answer.UNASKED, Answer.SILENT
HOME = frozenset({"77"})


class World:
    """A bot called Heron with a clock and a die of the test's own."""

    def __init__(
        self, *, dice=1.0, opted_out=frozenset(), names=("Heron", "Heron | calm"), **rules
    ):
        self.now = NOON
        self.dice = dice
        self.bot = WhenToSpeak(
            SpeakRules(**rules), names, lambda: self.now, lambda: self.dice, opted_out
        )
        self.number = 0

    def say(self, content="", after=0.0, **changes):
        self.number += 1
        self.now += timedelta(seconds=after)
        return self.bot.hear(seen(self.number, content, **changes))

    def answer(self, *said, **changes):
        return self.say(*said, **changes).answer


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mentions_bot": True}, "mentioned"),
        ({"replies_to_bot": True}, "replied to"),
        ({"is_dm": True}, "a direct message"),
        ({"content": "what do you think, heron?"}, "called by name"),
        ({"in_own_thread": True}, "in its own thread"),
        ({"in_own_thread": True, "speaks_to_others": True, "mentions_bot": True}, "mentioned"),
    ],
)
def test_spoken_to_it_answers(changes, reason):
    decision = World().say(**changes)
    assert (decision.answer, decision.reason) == (ADDRESSED, reason)
    assert decision.speaks and str(decision) == f"answer, spoken to: {reason}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "not spoken to"),
        ({"author": "bot", "mentions_bot": True}, "it is the bot's own"),
        ({"is_bot": True, "mentions_bot": True}, "it is from a bot"),
        ({"kind": Kind.SYSTEM, "mentions_bot": True}, "it is a notice, not talk"),
        ({"kind": Kind.INTERACTION, "is_dm": True}, "it is a notice, not talk"),
        ({"in_own_thread": True, "speaks_to_others": True}, "not spoken to"),
    ],
)
def test_otherwise_it_is_silent(changes, reason):
    decision = World(dice=0.0).say(**changes)
    assert (decision.answer, decision.reason, decision.acknowledge) == (SILENT, reason, False)


@pytest.mark.parametrize("text", ["Heron", "HERON!", "hey heron, you", "(heron)", "heron's",
                                  "@heron", "heron | calm", "`a` heron `b`",
                                  "> quoted\nheron"])  # fmt: skip
def test_its_name_is_heard_as_a_word(text):
    assert World().answer(text) is ADDRESSED


@pytest.mark.parametrize("text", ["herons fly", "theron", "heron_x", "`heron`", "```py\nheron\n```",
                                  "``x heron``", "https://heron.org", "<https://a/heron>",
                                  "<:heron:123>", "> heron said", "```\nheron never closed",
                                  ">>> all\nof heron"])  # fmt: skip
def test_its_name_is_not_heard_in_code_links_and_other_words(text):
    assert World().answer(text) is SILENT


@pytest.mark.parametrize("name", ["C++", "ヘロン", "a.b*", "^_^", "Name:", "🦆"])
def test_any_name_is_taken_literally(name):
    world = World(names=(name,))
    assert world.answer(f"well {name} hm") is ADDRESSED
    assert world.answer("aXbb") is SILENT


def test_without_a_name_nobody_calls_it():
    assert World(names=("", " ")).answer("anything") is SILENT


# Unasked ----------------------------------------------------------------------------------------


@given(
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 100_000),
    st.none() | st.timedeltas(min_value=timedelta(days=-1), max_value=timedelta(days=9999)),
)
def test_the_chance_is_bounded(base, unanswered, since):
    chance = chance_to_speak_up(base, unanswered, since)
    assert 0 <= chance <= MOST_UNASKED
    assert chance_to_speak_up(base, unanswered + 1, since) <= chance
    assert chance_to_speak_up(base, unanswered, None) <= chance
    if since is not None:
        assert chance_to_speak_up(base, unanswered, since + timedelta(minutes=5)) <= chance


def test_the_chance_is_what_the_formula_says():
    assert chance_to_speak_up(0.08, 0, None) == 0.08
    assert chance_to_speak_up(0.08, 2, None) == 0.02
    assert chance_to_speak_up(0.08, 0, timedelta(0)) == pytest.approx(0.32)
    assert chance_to_speak_up(0.08, 0, timedelta(minutes=10)) == pytest.approx(0.2)
    assert chance_to_speak_up(0.4, 0, timedelta(0)) == MOST_UNASKED


def test_it_speaks_up_where_it_may_and_falls_silent_when_nobody_takes_it_up():
    world = World(channels=HOME, probability=0.4, dice=0.15)
    answers = [world.answer(after=61) for _ in range(5)]
    # 0.4, then 0.2, then 0.1 is below the die's 0.15.
    assert answers == [UNASKED, UNASKED, SILENT, SILENT, SILENT]
    assert world.answer("heron?", after=61) is ADDRESSED
    assert world.answer(after=61) is UNASKED
    assert World(channels=frozenset({"1"}), probability=0.4, dice=0.0).answer() is SILENT


def test_a_home_channel_includes_its_threads():
    world = World(channels=frozenset({"5"}), probability=0.4, dice=0.0)
    assert world.answer(place_ids=("77", "5", "6")) is UNASKED


def test_it_does_not_speak_up_twice_at_once():
    world = World(channels=HOME, probability=0.9, dice=0.0)
    assert world.answer() is UNASKED
    assert world.say(after=59).reason == "spoke up here a moment ago"
    assert world.answer(after=2) is UNASKED
    assert world.answer("heron") is ADDRESSED


def test_a_picture_alone_is_no_cause_to_speak_up():
    world = World(channels=HOME, probability=0.9, dice=0.0)
    assert world.say(" ").reason == "nothing to read"


# Limits -----------------------------------------------------------------------------------------


def test_one_member_is_cooled_down_and_told_so():
    world = World(user_cooldown=timedelta(seconds=10))
    assert world.answer("heron") is ADDRESSED
    again = world.say("heron", after=9)
    assert (again.answer, again.acknowledge) == (SILENT, True)
    assert world.answer("heron", author="Bob") is ADDRESSED
    assert world.answer("heron", after=1) is ADDRESSED


def test_without_a_cool_down_every_call_is_answered():
    world = World()
    assert [world.answer("heron") for _ in range(50)] == [ADDRESSED] * 50


def test_two_bots_do_not_talk_for_ever():
    world = World(answer_bots=True)
    robot = {"author": "Robot", "is_bot": True, "replies_to_bot": True}
    answers = [world.answer(**robot) for _ in range(MOST_ANSWERS_TO_BOTS + 3)]
    assert answers == [ADDRESSED] * MOST_ANSWERS_TO_BOTS + [SILENT] * 3
    # The bot's own messages between them are no person's.
    world.say(author="bot")
    assert world.answer(**robot) is SILENT
    assert world.answer("hello you two") is SILENT
    assert world.answer(**robot) is ADDRESSED


def test_unasked_answers_to_bots_count_too():
    world = World(answer_bots=True, channels=HOME, probability=0.9, dice=0.0)
    answers = [world.answer(author="Robot", is_bot=True, after=61) for _ in range(9)]
    assert answers.count(UNASKED) <= MOST_ANSWERS_TO_BOTS


def test_who_opted_out_is_not_answered():
    world = World(opted_out={"id-Ada"})
    assert world.say("heron").reason == "the user opted out"
    assert world.answer("heron", author="Bob") is ADDRESSED


@pytest.mark.parametrize(
    ("rules", "changes", "reason"),
    [
        ({"blocked_users": {"id-Ada"}}, {}, "the user is blocked"),
        ({"blocked_roles": {"r"}}, {"role_ids": {"q", "r"}}, "a role of the user's is blocked"),
        ({"blocked_channels": {"6"}}, {"place_ids": ("77", "6")}, "the channel is blocked"),
        ({"allowed_users": {"id-Bob"}}, {}, "the user is not among the allowed ones"),
        ({"allowed_roles": {"r"}}, {}, "the user is not among the allowed ones"),
        ({"allowed_channels": {"6"}}, {}, "the channel is not among the allowed ones"),
        ({"allowed_users": {"id-Ada"}, "blocked_users": {"id-Ada"}}, {}, "the user is blocked"),
        ({"allowed_users": {"id-Ada"}}, {}, None),
        ({"allowed_users": {"id-Bob"}, "allowed_roles": {"r"}}, {"role_ids": {"r"}}, None),
        ({"allowed_channels": {"6"}}, {"place_ids": ("77", "6")}, None),
        ({"allowed_channels": {"6"}}, {"is_dm": True}, None),
        ({"blocked_users": {"id-Ada"}, "owners": {"id-Ada"}}, {}, None),
        ({"blocked_channels": {"77"}, "owners": {"id-Ada"}}, {}, "the channel is blocked"),
        ({"blocked_roles": {"r"}}, {"role_ids": None}, "the user's roles are not known"),
        ({"allowed_roles": {"r"}}, {"role_ids": None}, "the user is not among the allowed ones"),
        ({"allowed_users": {"id-Ada"}, "allowed_roles": {"r"}}, {"role_ids": None}, None),
        ({"allowed_users": {"id-Ada"}}, {"role_ids": None}, None),
        ({}, {"role_ids": None}, None),
    ],
)
def test_lists(rules, changes, reason):
    rules = {name: frozenset(ids) for name, ids in rules.items()}
    if changes.get("role_ids"):
        changes = changes | {"role_ids": frozenset(changes["role_ids"])}
    decision = World(**rules).say("heron", **changes)
    assert decision.answer is (ADDRESSED if reason is None else SILENT)
    assert reason is None or decision.reason == reason
    assert not decision.acknowledge


@pytest.mark.parametrize(
    ("span", "quiet", "loud"),
    [
        ("23:00-07:30", [(23, 0), (0, 0), (7, 29)], [(22, 59), (7, 30), (12, 0)]),
        ("9:00 - 17:00", [(9, 0), (16, 59)], [(8, 59), (17, 0)]),
        ("00:00-00:00", [(0, 0), (12, 0)], []),
    ],
)
def test_quiet_hours(span, quiet, loud):
    hours = QuietHours.parse(span, "UTC")
    moments = [NOON.replace(hour=hour, minute=minute) for hour, minute in [*quiet, *loud]]
    assert [hours.cover(it) for it in moments] == [True] * len(quiet) + [False] * len(loud)


def test_an_answer_is_written_anew_only_where_another_may_be_given():
    world = World(user_cooldown=timedelta(seconds=10))
    answer = seen(1, author="bot")
    assert world.bot.objection_to_another(answer, "1") is None
    assert world.bot.objection_to_another(answer, "1") == "the user was answered a moment ago"
    world.now += timedelta(seconds=10)
    assert world.bot.objection_to_another(answer, "1") is None
    assert world.say("heron", author="Bob").speaks
    assert world.bot.objection_to_another(answer, "id-Bob") == "the user was answered a moment ago"
    world.bot.quiet("77")
    assert world.bot.objection_to_another(answer, "2") == "told to be quiet"


def test_quiet_hours_are_those_of_the_zone():
    hours = QuietHours.parse("23:00-07:00", "Europe/Berlin")
    summer, winter = (
        datetime(2026, 7, 1, 21, 30, tzinfo=UTC),
        datetime(2026, 1, 1, 21, 30, tzinfo=UTC),
    )
    assert hours.cover(summer) and not hours.cover(winter)
    assert hours.cover(summer.astimezone(timezone(timedelta(hours=-7))))
    assert QuietHours.parse("", "Europe/Berlin") is None
    with pytest.raises(ValueError):
        QuietHours.parse("always")


def test_in_quiet_hours_only_direct_messages_are_answered():
    world = World(quiet_hours=QuietHours.parse("11:00-13:00", "UTC"), channels=HOME, dice=0.0)
    called = world.say("heron")
    assert (called.answer, called.reason, called.acknowledge) == (SILENT, "quiet hours", True)
    assert not world.say("hello").acknowledge
    assert world.answer(is_dm=True) is ADDRESSED


def test_quiet_and_wake():
    world = World()
    world.bot.quiet("77", until=NOON + timedelta(hours=1))
    assert world.say("heron").reason == "told to be quiet"
    assert world.answer("heron", channel="78") is ADDRESSED
    assert world.answer("heron", after=3600) is ADDRESSED
    world.bot.quiet()
    assert world.bot.is_quiet(["77"]) and world.bot.is_quiet(["78"])
    world.bot.wake("77")
    assert world.bot.is_quiet(["77"])
    world.bot.wake()
    assert world.answer("heron") is ADDRESSED


def test_quiet_in_a_channel_is_quiet_in_its_threads():
    world = World()
    world.bot.quiet("77")
    thread = {"channel": "99", "place_ids": ("99", "77", "5")}
    assert world.say("heron", **thread).reason == "told to be quiet"
    assert world.answer("heron", channel="98", place_ids=("98", "78")) is ADDRESSED
    assert not world.bot.is_quiet()
    world.bot.wake("77")
    assert world.answer("heron", **thread) is ADDRESSED


def test_the_same_clock_and_chance_decide_the_same():
    def replay():
        world = World(channels=HOME, probability=0.4, dice=0.1)
        return [str(world.say("heron" if n % 7 == 3 else "", after=20)) for n in range(60)]

    assert replay() == replay()


def test_state_is_bounded():
    world = World(user_cooldown=timedelta(seconds=1))
    for number in range(10_050):
        world.say("heron", author=str(number), channel=str(number))
    assert len(world.bot._channels) == len(world.bot._answered_user) == 10_000


def test_rules_come_from_the_settings():
    rules = SpeakRules.from_settings(
        load_settings(
            {"blocked_users": "1, 2", "quiet_hours": "1:00-2:00", "bot_channels": "7"}, None
        )
    )
    assert rules.blocked_users == {"1", "2"} and rules.channels == {"7"}
    assert rules.quiet_hours.cover(NOON.replace(hour=1).astimezone().replace(hour=1))
    assert replace(rules, blocked_users=frozenset()).blocked_users == frozenset()
