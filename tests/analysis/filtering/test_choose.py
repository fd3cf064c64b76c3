"""Who is chosen, and that the counts add up."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discord_lora.analysis.filtering.choose import Criteria, best_of, choose, moments, summarise
from discord_lora.analysis.report.columns import MessageColumns, columns_of
from discord_lora.analysis.report.measure import Options, measure
from discord_lora.console import UserError
from discord_lora.messages.timestamps import to_microseconds
from fakes import chatter, say

LONG = "the quick brown fox jumps over the lazy dog tonight"
PEOPLE = ("Ada", "Bob", "Smith, John")


def measured(*messages):
    return measure(MessageColumns(columns_of(messages)), Options())


def chosen(messages, **criteria):
    """Ids of the chosen ones."""
    measures = measured(*messages)
    choice = choose(measures, Criteria(**criteria))
    return measures.frame["id"].filter(pl.Series(choice.chosen)).to_list()


def test_people_are_named_by_name_user_name_or_id_with_commas_or_again():
    talk = chatter(9, people=PEOPLE)
    assert chosen(talk, authors=["ada"]) == ["m0", "m3", "m6"]
    assert chosen(talk, authors=["@bob, id-Ada"]) == ["m0", "m1", "m3", "m4", "m6", "m7"]
    assert chosen(talk, authors=["Bob", "smith, john"]) == ["m1", "m2", "m4", "m5", "m7", "m8"]
    assert chosen(talk, without_authors=["Smith, John", "Bob"]) == ["m0", "m3", "m6"]
    assert chosen(talk, authors=["Ada,Bob"], without_authors=["Ada"]) == ["m1", "m4", "m7"]


def test_channels_are_named_with_their_sign_or_without():
    talk = [say("Ada", id=room, channel=room) for room in ("tea", "chess", "dogs")]
    assert chosen(talk, channels=["#Tea, guild / dogs"]) == ["tea", "dogs"]
    assert chosen(talk, without_channels=["tea"]) == ["chess", "dogs"]


def test_all_that_is_unknown_is_told_at_once():
    with pytest.raises(UserError) as raised:
        chosen(chatter(9), authors=["Adda, Bobb"], channels=["x"], since="yesterday", until="13")
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        "--authors", "--authors", "--channels", "--since",
    ]  # fmt: skip
    assert "the nearest are ada (3 messages)" in raised.value.problems[0]


def test_a_day_is_meant_to_its_end_and_a_moment_to_itself():
    talk = chatter(4)  # 18:00 to 18:03 on 2 March 2026, in UTC
    assert chosen(talk, since="2026-03-02", until="2026-03-02") == ["m0", "m1", "m2", "m3"]
    assert chosen(talk, until="2026-03-01") == []
    assert chosen(talk, since="2026-03-03") == []
    assert chosen(talk, since="2026-03-02T18:01", until="2026-03-02T18:02") == ["m1", "m2"]
    assert chosen(talk, since="2026-03-02T19:03+01:00") == ["m3"]
    assert chosen(talk, since="2026-03-02 03:02", timezone="Asia/Tokyo") == [
        "m0", "m1", "m2", "m3",
    ]  # fmt: skip
    assert chosen(talk, since="2026-03-03 03:02", timezone="Asia/Tokyo") == ["m2", "m3"]
    with pytest.raises(UserError, match="is after --until"):
        chosen(talk, since="2026-03-03", until="2026-03-02")


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)).map(lambda it: it.replace(fold=0)),
    st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Chatham"]),
)
@settings(max_examples=150, deadline=None)
def test_local_moments_are_those_of_pythons_own_zones(moment, zone):
    local = moment.replace(tzinfo=ZoneInfo(zone))
    begin, end = moments(moment.isoformat(), "--since", zone)
    exists = local.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) == moment
    if exists:
        assert begin == to_microseconds(local.astimezone(UTC))
    assert end == begin + 1
    day, next_day = moments(moment.date().isoformat(), "--since", zone)
    midnight = datetime.combine(moment.date(), datetime.min.time(), ZoneInfo(zone))
    assert day == to_microseconds(midnight.astimezone(UTC))
    assert 23 <= (next_day - day) / 3.6e9 <= 25


@pytest.mark.parametrize("text", ["", "yesterday", "2024-02-30", "9999-12-31", "1.5.2024"])
def test_what_is_no_date_is_refused(text):
    with pytest.raises(UserError, match="--since"):
        moments(text, "--since", "UTC")


def test_a_midnight_that_the_clocks_jump_over_is_an_hour_later():
    begin, _ = moments("2024-03-31", "--since", "Asia/Beirut")
    assert begin == to_microseconds(datetime(2024, 3, 30, 22, tzinfo=UTC))


def test_messages_without_a_time_of_their_own_are_left_out_by_that_name():
    frame = columns_of(chatter(4)).with_columns(has_time=pl.Series([True, True, True, False]))
    measures = measure(MessageColumns(frame), Options())
    choice = choose(measures, Criteria(since="2026-03-02"))
    assert choice.chosen.tolist() == [True, True, True, False]
    assert choice.left_out == {"no time of its own": 1, "before 2026-03-02": 0}


def test_of_near_duplicates_the_first_that_is_left_stays_and_short_ones_all():
    talk = [
        say("Bot", LONG, id="by a bot", train=False),
        say("Ada", LONG, id="other person", minute=1),
        say("Bob", LONG, id="first", minute=2),
        say("Bob", f"{LONG} !", id="copy", minute=3),
        say("Bob", "thanks", id="short", minute=4),
        say("Bob", "thanks", id="short again", minute=5),
    ]
    measures = measured(*talk)
    choice = choose(measures, Criteria(authors=["Bob"], drop_near_duplicates=True))
    assert measures.frame["id"].filter(pl.Series(choice.chosen)).to_list() == [
        "first", "short", "short again",
    ]  # fmt: skip
    assert choice.left_out == {"by other people": 1, "near duplicates": 1}
    assert choice.context_before == 1


def test_the_best_are_those_of_the_highest_score_and_of_equals_the_earlier():
    talk = [*chatter(40), *(replace(it, id=f"{it.id}x") for it in chatter(40))]
    measures = measured(*talk)
    everybody = np.ones(80, np.bool_)
    ranked = sorted(range(80), key=lambda row: (-measures.score[row], row))
    for count in (1, 7, 80, 500):
        assert set(np.flatnonzero(best_of(measures, everybody, count))) == set(ranked[:count])


def test_context_stays_context_and_does_not_count_for_the_best():
    talk = [replace(message, train=number % 2 == 0) for number, message in enumerate(chatter(20))]
    measures = measured(*talk)
    choice = choose(measures, Criteria(best=6))
    assert choice.chosen.sum() == 6
    assert not (choice.chosen & ~measures.frame["train"].to_numpy()).any()
    assert (choice.context_before, choice.left_out) == (10, {"not among the best 6": 4})


def test_a_ticked_message_that_is_not_there_is_told():
    assert chosen(chatter(5), picked=frozenset({"m1", "m3"})) == ["m1", "m3"]
    with pytest.raises(UserError, match=r"1 of 2 ticked messages are not in the data .*gone"):
        chosen(chatter(5), picked=frozenset({"m1", "gone"}))


def test_a_ticked_message_of_somebody_who_opted_out_since_is_left_out():
    picked = frozenset({"m1", "gone"})
    choice = choose(measured(*chatter(5)), Criteria(picked=picked, opted_out=1))
    assert choice.chosen.tolist() == [False, True, False, False, False]
    assert (choice.gone, choice.left_out) == (1, {"not ticked": 4})
    with pytest.raises(UserError, match="1 of 1 ticked messages"):
        chosen(chatter(5), picked=frozenset({"gone"}), opted_out=1)


NAMES = st.lists(st.sampled_from(["Ada", "Bob", "Cy"]), max_size=2)
CRITERIA = st.builds(
    Criteria,
    authors=NAMES,
    without_authors=NAMES,
    channels=st.lists(st.sampled_from(["tea", "chess"]), max_size=1),
    without_channels=st.lists(st.sampled_from(["tea", "chess"]), max_size=1),
    since=st.sampled_from([None, "2026-03-02T18:10"]),
    until=st.sampled_from([None, "2026-03-02T18:30"]),
    drop_near_duplicates=st.booleans(),
    drop_private=st.booleans(),
    min_quality=st.sampled_from([None, 0.0, 35.0, 60.0]),
    picked=st.sampled_from([None, frozenset(f"m{n}" for n in range(0, 50, 3))]),
    best=st.sampled_from([None, 1, 5, 100]),
)
OWN = {0: LONG, 3: "write to ann@example.org"}
TALK = [
    replace(
        message,
        channel_id="tea" if number % 5 else "chess",
        channel="tea" if number % 5 else "chess",
        content=OWN.get(number % 7, message.content),
        train=number % 6 != 1,
    )
    for number, message in enumerate(chatter(50))
]
MEASURES = measured(*TALK)


@given(CRITERIA)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_counts_add_up_and_the_chosen_fit_everything(criteria):
    choice = choose(MEASURES, criteria)
    picked = [TALK[row] for row in np.flatnonzero(choice.chosen)]
    assert len(picked) + choice.context_before + sum(choice.left_out.values()) == len(TALK)
    assert choice.context_before == sum(not message.train for message in TALK)
    for message in picked:
        assert fits(message, criteria)
    # Without the two that look at the others, nothing that fits is missing.
    alone = replace(criteria, drop_near_duplicates=False, best=None)
    fitting = {message.id for message in TALK if fits(message, alone)}
    assert {TALK[row].id for row in np.flatnonzero(choose(MEASURES, alone).chosen)} == fitting
    if not criteria.drop_near_duplicates:
        assert len(picked) == min(len(fitting), criteria.best or len(TALK))
    summary = summarise(MEASURES, choice.chosen)
    assert summary.learned == len(picked)
    assert summary.people == len({message.author for message in picked})
    assert summary.channels == len({message.channel for message in picked})


def fits(message, criteria):
    """The same in plain Python; near duplicates and the best are the others' business."""
    minute = message.timestamp.hour * 60 + message.timestamp.minute - 18 * 60
    score = MEASURES.score[int(message.id[1:])]
    return (
        message.train
        and (not criteria.authors or message.author in criteria.authors)
        and message.author not in criteria.without_authors
        and (not criteria.channels or message.channel in criteria.channels)
        and message.channel not in criteria.without_channels
        and not (criteria.drop_private and "@" in message.content)
        and (criteria.since is None or minute >= 10)
        and (criteria.until is None or minute <= 30)
        and (criteria.min_quality is None or score >= criteria.min_quality)
        and (criteria.picked is None or message.id in criteria.picked)
    )
