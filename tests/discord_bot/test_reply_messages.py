import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from discord_lora.discord_bot.reply_messages import (
    LONGEST_DELAY_SECONDS,
    MESSAGE_LIMIT,
    MOST_LINES,
    Show,
    StreamedReply,
    as_typed,
    length,
    split_reply,
    typing_seconds,
    without_guards,
    without_pings,
)

# The only letters in a language are capitals, and capitals are nowhere else.
PIECES = st.sampled_from(
    ["a", "word ", "🦆", "end. ", "line\n", "\n\n", "  ", "```", "\n```PY\n", "```\n", "`x`", "``",
     "e\u0301", "x" * 90, "一" * 40, "👩\u200d👩\u200d👧", "    indented\n", "-", "````"]
)  # fmt: skip
_WORD_AT_FENCE = re.compile(r"(```+)(?=[^\s`A-Z])")
"""What follows three backticks at once is their language, too, and stands there again."""
TEXTS = st.lists(PIECES, max_size=60).map(lambda it: _WORD_AT_FENCE.sub(r"\1\n", "".join(it)))
LIMITS = st.integers(64, 200)


def bare(text):
    """The text without white space, fences and their languages."""
    return re.sub(r"[\s`A-Z]", "", text)


@given(TEXTS, LIMITS)
@settings(max_examples=400, deadline=None)
@example("```PY\n" + "x" * 300, 64)
@example("`" * 400, 64)
def test_split_loses_nothing_and_fits(text, limit):
    parts = split_reply(text, limit)
    assert bare("".join(parts)) == bare(text)
    assert all(length(part) <= limit for part in parts)
    assert all(part.strip() for part in parts)


@given(TEXTS, LIMITS)
@settings(max_examples=200, deadline=None)
def test_parts_do_not_change_while_the_text_grows(text, limit):
    whole = split_reply(text, limit)
    for end in range(0, len(text), 7):
        done = split_reply(text[:end], limit)[:-1]
        assert whole[: len(done)] == done


@given(TEXTS, LIMITS)
@settings(max_examples=200, deadline=None)
def test_every_part_but_the_last_closes_its_code(text, limit):
    for part in split_reply(text, limit)[:-1]:
        assert len(re.findall("```", part)) % 2 == 0


def test_a_short_text_is_one_message_and_a_blank_one_none():
    assert split_reply(" hello\n") == ["hello"]
    assert split_reply(" \n ") == split_reply("") == []
    assert split_reply("x" * MESSAGE_LIMIT) == ["x" * MESSAGE_LIMIT]
    assert list(map(length, split_reply("🦆" * 1001))) == [1996, 6]


def test_code_is_closed_and_opened_again_with_its_language():
    code = "\n".join(f"line = {n}" for n in range(30))
    first, *middle, last = split_reply(f"see:\n```python\n{code}\n```\nok?", 120)
    assert first.startswith("see:\n```python\nline = 0\n") and first.endswith("\n```")
    assert middle
    assert all(part.startswith("```python\nline") and part.endswith("\n```") for part in middle)
    assert last.startswith("```python\n") and last.endswith("```\nok?")


def test_a_block_is_not_opened_at_the_end_of_a_message():
    text = "word " * 20 + "\n```py\n" + "code\n" * 20 + "```"
    first, second, *_ = split_reply(text, 112)
    assert first == ("word " * 20).strip()
    assert second.startswith("```py\ncode")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("a" * 40 + "\n\n" + "b b\n" + "c" * 60, "a" * 40),
        ("a" * 40 + "\n" + "b b. c" * 10, "a" * 40),
        ("One two. Three four? " + "five" * 3 + " six " * 20, "One two. Three four?"),
        ("word " * 30, "word word word word word word word word word word word word"),
    ],
)
def test_it_prefers_to_end_a_paragraph_a_line_a_sentence_a_word(text, first):
    assert split_reply(text, 64)[0] == first


def test_a_letter_keeps_its_accents():
    parts = split_reply("e\u0301\u0302" * 100, 64)
    assert all(part.startswith("e") for part in parts)


def test_too_small_a_limit_is_refused():
    with pytest.raises(ValueError):
        split_reply("x", 10)


# Like a person ----------------------------------------------------------------------------------


def test_a_message_a_line_with_the_time_it_takes_to_type():
    typed = as_typed("always\n\nwhat's up with the tea\n")
    assert [message.text for message in typed] == ["always", "what's up with the tea"]
    assert 0 < typed[0].delay_seconds < typed[1].delay_seconds <= LONGEST_DELAY_SECONDS
    assert typing_seconds("x" * 5000) == LONGEST_DELAY_SECONDS


def test_code_stays_in_one_message_and_messages_are_few():
    assert [m.text for m in as_typed("look\n```py\na\n\nb\n```\nok")] == [
        "look", "```py\na\n\nb\n```", "ok",
    ]  # fmt: skip
    many = as_typed("\n".join(map(str, range(20))))
    assert len(many) == MOST_LINES
    assert many[-1].text == "\n".join(map(str, range(5, 20)))


@given(TEXTS)
@settings(deadline=None)
def test_typed_like_a_person_nothing_is_lost(text):
    assert bare("".join(message.text for message in as_typed(text, 64))) == bare(text)


# Streaming --------------------------------------------------------------------------------------


@given(TEXTS, st.lists(st.floats(0, 3), min_size=1, max_size=60), LIMITS)
@settings(deadline=None)
def test_a_stream_keeps_its_distance_and_ends_with_the_whole_text(text, pauses, limit):
    reply = StreamedReply(delay_seconds=1.0, limit=limit)
    discord: list[str] = []
    times = []
    now = 0.0
    for number, pause in enumerate(pauses, 1):
        now += pause
        shows = reply.show(text[: len(text) * number // (len(pauses) + 1)], now)
        assert len(shows) <= 1
        times += [now] * len(shows)
        apply(discord, shows, limit)
    apply(discord, reply.finish(text), limit)
    assert discord == split_reply(text, limit) == reply.shown
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(times))
    assert reply.finish(text) == []


def apply(discord, shows, limit):
    for show in shows:
        assert show.index <= len(discord)
        assert 0 < length(show.text) <= limit
        discord[show.index : show.index + 1] = [show.text]


def test_a_stream_begins_at_once_and_waits_before_the_next_edit():
    reply = StreamedReply(delay_seconds=1.0)
    assert reply.show("", 10.0) == []
    assert reply.show("he", 10.0) == [Show(0, "he")]
    assert reply.show("hello", 10.9) == []
    assert reply.show("hello", 11.0) == [Show(0, "hello")]
    assert reply.show("hello", 13.0) == []
    assert reply.finish("hello you") == [Show(0, "hello you")]


def test_the_next_message_begins_when_the_text_outgrows_one():
    reply = StreamedReply(delay_seconds=1.0, limit=64)
    reply.show("word " * 10, 0.0)
    grown = "word " * 20
    assert [show.index for now in (1.0, 2.0, 3.0) for show in reply.show(grown, now)] == [0, 1]


def test_code_that_is_being_written_is_shown_closed():
    reply = StreamedReply()
    assert reply.show("```py\nx = 1", 0.0) == [Show(0, "```py\nx = 1\n```")]
    assert reply.finish("```py\nx = 1\n```") == []


# What must not be said --------------------------------------------------------------------------


def test_nobody_is_pinged_and_everything_reads_well():
    names = {"1": "Ann"}.get
    text = "@everyone <@1> <@!2> <@&3> <#4> @here mail@heretic"
    safe = without_pings(text, names, {"4": "general"}.get)
    assert not re.search(r"<[@#]|@everyone|@here", safe)
    assert safe.replace("\u200b", "") == "@everyone @Ann @someone @role #general @here mail@heretic"
    assert without_guards(safe) == safe.replace("\u200b", "")
