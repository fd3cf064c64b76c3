"""That cleaning takes no longer than a text is long, and what it must not change for that."""

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discord_lora.messages.cleaning import (
    _BLANK_LINES,
    _LONG_TEXT,
    Cleaner,
    CleaningContext,
    _composed,
)
from discord_lora.messages.sources.base import Kind
from discord_lora.messages.store import StoredMessage

NOBODY = CleaningContext(lambda _: None, lambda _: None)
MARKS = "\u0301\u0315\u0323\u0327\u0328\u0345"
LETTERS = st.tuples(st.sampled_from("eo a가가"), st.text(MARKS, max_size=30)).map("".join)


def cleaned(text):
    message = StoredMessage(
        id="1", channel=0, time=0, author_id="1", content=text, kind=Kind.TALK.value, is_bot=False,
        reply_to=None, reactions=0, has_attachments=False, mentions=[], train=True,
        is_repeat=False,
    )  # fmt: skip
    Cleaner(NOBODY).clean(message)
    return message.content


@given(st.text(" \t\nx", max_size=80))
def test_blank_lines_are_those_that_a_plain_search_finds(text):
    plain = re.compile(r"[ \t]*\n(?:[ \t]*\n){2,}")
    assert _BLANK_LINES.sub("\n\n", text) == plain.sub("\n\n", text)


@given(st.lists(LETTERS, max_size=30))
def test_letters_with_as_many_marks_as_a_writing_has_are_composed_as_ever(letters):
    text = "x" * _LONG_TEXT + "".join(letters)
    assert _composed(text) == unicodedata.normalize("NFC", text)


HOSTILE = {
    "spaces": "é" + " " * 100_000 + "x",
    "spaces and lines": ("é" + " " * 1000 + "\n \n") * 100,
    "marks": "e" + "\u0315\u0323" * 50_000,
    "control characters": "\u200e" * 100_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_is_cleaned_in_time(text):
    began = time.perf_counter()
    cleaned(text)
    assert time.perf_counter() - began < 1
