"""What a rewritten file reads as, whatever lines it was made of."""

import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discord_lora.analysis.filtering.filter_files import fates_of
from discord_lora.analysis.report.columns import read_columns
from discord_lora.console import UserError
from discord_lora.messages.rewrite import Fate, as_context, rewrite
from discord_lora.messages.training_data import read_training_data
from odd_lines import LINES, MESSAGES, line_of
from run_scripts import write_chat

KEPT, CONTEXT, REMOVED = Fate.KEPT, Fate.CONTEXT, Fate.REMOVED


def rewritten(path, *fates):
    out = io.BytesIO()
    rewrite(path, bytes(fates), out)
    return out.getvalue()


def comparable(message, has_time):
    """Without what a reader makes up from the place in the file."""
    made_up = message.id.startswith("data-")
    moment = message.timestamp if has_time else None
    return replace(message, id="" if made_up else message.id, timestamp=moment)


def read(path):
    columns = read_columns(path)
    messages = read_training_data(path).messages
    return columns, [
        comparable(message, known)
        for message, known in zip(messages, columns.frame["has_time"], strict=True)
    ]


@given(st.data(), LINES, st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_exactly_the_chosen_messages_change(tmp_path_factory, data, lines, remove):
    folder = tmp_path_factory.getbasetemp()
    path, out = folder / "data.jsonl", folder / "out" / "data.jsonl"
    out.parent.mkdir(exist_ok=True)
    # A first line that reads, or there is nothing to choose among.
    first = line_of(replace(data.draw(MESSAGES), id="first", content="hello"))
    path.write_bytes(b"\n".join([first, *lines]))
    columns, before = read(path)
    left_out = data.draw(st.lists(st.booleans(), min_size=len(before), max_size=len(before)))
    left_out[0] = False
    fates = fates_of(columns, ~np.array(left_out), remove=remove)
    with out.open("wb") as stream:
        rewrite(path, fates, stream)
    after, found = read(out)
    expected = [
        replace(message, train=message.train and not gone)
        for message, gone in zip(before, left_out, strict=True)
        if not (gone and remove and message.train)
    ]
    assert Counter(found) == Counter(expected)
    # Nothing is left that a reader would have to leave out.
    assert after.account.lines == len(found)


def test_what_is_kept_stays_byte_for_byte(tmp_path):
    lines = [
        b'{"user": "Ann",  "text": "caf\\u00e9", "date": "2024-05-01", "mood": 7.50}\r\n',
        b'{"id": 7, "content": "lone \\ud83d surrogate", "big": 123456789012345678901234567890}\n',
        b'{"id": "8", "content": "no line end"}',
    ]
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"".join(lines))
    assert rewritten(path, KEPT, KEPT, KEPT) == b"".join(lines) + b"\n"
    first, second, third = rewritten(path, CONTEXT, CONTEXT, KEPT).splitlines(keepends=True)
    assert orjson.loads(first) == {**orjson.loads(lines[0]), "train": False}
    assert list(orjson.loads(first)) == ["user", "text", "date", "mood", "train"]
    assert json.loads(second)["big"] == 123456789012345678901234567890
    assert third == lines[2] + b"\n"


def test_only_the_flag_of_a_line_of_our_own_changes(tmp_path):
    path = write_chat(tmp_path / "chat.jsonl", 3)
    one, two, three = path.read_bytes().splitlines(keepends=True)
    changed = two.replace(b'"train":true', b'"train":false')
    assert changed != two
    assert rewritten(path, KEPT, CONTEXT, KEPT) == one + changed + three
    assert rewritten(path, REMOVED, KEPT, REMOVED) == two


@pytest.mark.parametrize("key", ["train", "Train", "TRAIN"])
def test_the_flag_is_found_under_any_spelling(key):
    assert as_context({"id": "1", key: True, "content": "a"}) == {
        "id": "1", key: False, "content": "a",
    }  # fmt: skip


def test_a_list_and_utf_16_become_lines(tmp_path):
    path = tmp_path / "chat.json"
    path.write_text('[{"id": "1", "content": "a"}, {"id": "2", "content": "ü"}]', encoding="utf-16")
    lines = rewritten(path, CONTEXT, KEPT).splitlines()
    assert [orjson.loads(line) for line in lines] == [
        {"id": "1", "content": "a", "train": False},
        {"id": "2", "content": "ü"},
    ]


def test_dates_that_another_line_decided_are_written_out_when_that_line_goes(tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [{"id": "a", "content": "x", "date": "3/4/2019"},
            {"id": "b", "content": "y", "date": "13/4/2019"}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    before = read_training_data(path).messages
    assert [message.timestamp.day for message in before] == [3, 13]
    out = tmp_path / "out.jsonl"
    out.write_bytes(rewritten(path, KEPT, REMOVED))
    assert read_training_data(out).messages[0].timestamp == before[0].timestamp
    assert rewritten(path, KEPT, KEPT) == path.read_bytes() + b"\n"


@pytest.mark.parametrize("count", [2, 4])
def test_a_file_that_was_changed_meanwhile_is_refused(tmp_path, count):
    path = write_chat(tmp_path / "chat.jsonl", 3)
    with pytest.raises(UserError, match="changed meanwhile"):
        rewritten(path, *[KEPT] * count)
