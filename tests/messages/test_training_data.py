"""The reader of `training_data.jsonl`: generous, precise, losing nothing silently."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discord_lora.console import UserError
from discord_lora.messages.record import Message, Reject, Turn
from discord_lora.messages.training_data import (
    TrainingData,
    conversation_as_json,
    read_training_data,
    write_line,
)

FULL = {
    "id": "1100000000000000000", "guild": "Tea House", "channel_id": "5", "channel": "general",
    "timestamp": "2024-05-01T12:00:00.5+02:00", "author_id": "7", "author": "Ann",
    "username": "ann_1", "content": "hi", "reply_to": "6", "reactions": 2, "is_bot": False,
    "train": False,
}  # fmt: skip


def read(tmp_path: Path, *lines: Any, encoding: str = "utf-8", newline: str = "\n") -> TrainingData:
    path = tmp_path / "talk.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes(newline.join(texts).encode(encoding))
    data = read_training_data(path)
    parts = (data.messages, data.conversations, data.rejects)
    assert data.lines == sum(map(len, parts)) + data.dropped.total()
    return data


def test_a_full_line_becomes_the_same_message(tmp_path: Path) -> None:
    (message,) = read(tmp_path, FULL).messages
    moment = datetime(2024, 5, 1, 10, 0, 0, 500_000, tzinfo=UTC)
    assert message == Message(**FULL | {"timestamp": moment})


@pytest.mark.parametrize(
    "record",
    [
        {"text": "hi", "user": "Ann", "date": "2024-05-01T10:00:00.5Z"},
        {"body": "hi", "name": "Ann", "time": 1714557600.5},
        {"message": "hi", "sender": "Ann", "created_at": 1714557600500},
        {"Content": "hi", "Author Name": "Ann", "Date": "1714557600500"},
        {"contents": "hi", "author": {"id": 7, "name": "ann_1", "nickname": "Ann"},
         "timestamp": "2024-05-01 10:00:00.500"},
        {"content": "hi", "author": {"id": "7", "username": "ann_1", "global_name": "Ann"},
         "timestamp": "2024-05-01T10:00:00.500000+00:00"},
    ],
)  # fmt: skip
def test_other_tools_names_are_understood(tmp_path: Path, record: dict[str, Any]) -> None:
    (message,) = read(tmp_path, record).messages
    assert (message.content, message.author) == ("hi", "Ann")
    assert message.timestamp == datetime(2024, 5, 1, 10, 0, 0, 500_000, tzinfo=UTC)
    assert message.channel == "talk"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n \n"])
def test_encodings_line_ends_and_blank_lines(tmp_path: Path, encoding: str, newline: str) -> None:
    lines = [json.dumps(FULL | {"id": n, "content": "müde 😀"}, ensure_ascii=False) for n in (1, 2)]
    data = read(tmp_path, *lines, encoding=encoding, newline=newline)
    assert [message.content for message in data.messages] == ["müde 😀", "müde 😀"]
    assert data.lines == 2


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_as_good_as_lines(tmp_path: Path, indent: int | None) -> None:
    records = [FULL | {"id": str(n)} for n in range(5)]
    data = read(tmp_path, json.dumps(records, indent=indent))
    assert [message.id for message in data.messages] == list("01234")


def test_indented_objects_one_after_another(tmp_path: Path) -> None:
    records = [json.dumps(FULL | {"id": str(n)}, indent=2) for n in range(3)]
    assert len(read(tmp_path, *records).messages) == 3


def test_64_bit_ids_keep_their_digits(tmp_path: Path) -> None:
    (message,) = read(tmp_path, FULL | {"id": 1157754295157002371, "reply_to": 2**63 - 1}).messages
    assert (message.id, message.reply_to) == ("1157754295157002371", "9223372036854775807")


def test_what_cannot_be_read_has_line_and_reason(tmp_path: Path) -> None:
    data = read(tmp_path, FULL, "{broken", {"user": "x"}, "[1]", {"text": {"a": 1}}, "7")
    assert [reject.place for reject in data.rejects] == [f"line {n}" for n in range(2, 7)]
    assert all(isinstance(r, Reject) and r.file.endswith("talk.jsonl") for r in data.rejects)
    assert "content, text, body" in data.rejects[1].reason


def test_empty_texts_and_repeated_ids_are_counted(tmp_path: Path) -> None:
    data = read(tmp_path, FULL, FULL | {"content": "later"}, {"user": "x", "text": None})
    assert [message.content for message in data.messages] == ["later"]
    assert data.dropped == {"duplicate id": 1, "empty": 1}


def test_missing_times_keep_the_order_and_are_told(tmp_path: Path) -> None:
    data = read(tmp_path, *({"user": "x", "text": str(n)} for n in range(5)))
    times = [message.timestamp for message in data.messages]
    assert times == sorted(set(times))
    assert len({message.id for message in data.messages}) == 5
    assert "without a readable time: 5" in data.warnings[0]


def test_the_id_tells_the_time_when_the_date_does_not(tmp_path: Path) -> None:
    (message,) = read(tmp_path, {"id": "175928847299117063", "user": "x", "text": "y"}).messages
    assert message.timestamp == datetime(2016, 4, 30, 11, 18, 25, 796_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("dates", "expected", "warnings"),
    [
        (["3/4/2019 10:00", "13/4/2019 10:00"], datetime(2019, 4, 3, 10, tzinfo=UTC), 0),
        (["3/4/2019 10:00", "4/13/2019 10:00"], datetime(2019, 3, 4, 10, tzinfo=UTC), 0),
        (["3/4/2019 10:00 PM"], datetime(2019, 3, 4, 22, tzinfo=UTC), 1),
        (["3/4/2019 10:00"], datetime(2019, 4, 3, 10, tzinfo=UTC), 1),
    ],
)
def test_the_other_rows_decide_an_ambiguous_date(
    tmp_path: Path, dates: list[str], expected: datetime, warnings: int
) -> None:
    data = read(tmp_path, *({"user": "x", "text": "y", "date": date} for date in dates))
    assert data.messages[0].timestamp == expected
    assert len(data.warnings) == warnings


def test_conversations_of_openai_and_sharegpt(tmp_path: Path) -> None:
    openai = {"messages": [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": [{"type": "text", "text": "why"}]},
        {"role": "assistant", "content": "yes", "weight": 1}, {"role": "tool", "content": "42"},
    ]}  # fmt: skip
    sharegpt = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "be brief"}  # fmt: skip
    first, second = read(tmp_path, openai, sharegpt).conversations
    assert first.turns == (
        Turn("system", "be kind"), Turn("user", "hi"), Turn("assistant", "no"), Turn("user", "why"),
        Turn("assistant", "yes", train=True),
    )  # fmt: skip
    assert second.turns == (
        Turn("system", "be brief"),
        Turn("user", "q"),
        Turn("assistant", "a", True),
    )


def test_conversations_survive_writing_and_reading(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "train": False},
             {"role": "assistant", "content": "a", "train": False},
             {"role": "assistant", "content": "b"}]  # fmt: skip
    first = read(tmp_path, {"messages": turns}).conversations
    again = read(tmp_path, *map(conversation_as_json, first)).conversations
    assert again == first
    assert [turn.train for turn in again[0].turns] == [False, False, True]


@pytest.mark.parametrize(
    "bad",
    [{"messages": []}, {"messages": [{"content": "x"}]}, {"messages": [7]},
     {"messages": [{"role": "pope", "content": "x"}]}, {"conversations": [{"from": "gpt"}]}],
)  # fmt: skip
def test_odd_conversations_are_rejects(tmp_path: Path, bad: dict[str, Any]) -> None:
    assert len(read(tmp_path, FULL, bad).rejects) == 1


def test_missing_empty_and_unreadable_files_say_what_to_do(tmp_path: Path) -> None:
    empty, picture = tmp_path / "empty.jsonl", tmp_path / "picture.jsonl"
    empty.write_bytes(b"\n")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    for path in (tmp_path / "missing.jsonl", tmp_path, empty, picture):
        with pytest.raises(UserError, match=r"python scripts/prepare_training_data\.py") as error:
            read_training_data(path)
        assert len(error.value.problems) == 1


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MOMENTS = st.datetimes(datetime(1991, 1, 1), datetime(2150, 1, 1), timezones=st.just(UTC))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, MOMENTS, st.booleans()), min_size=1, max_size=8))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, datetime, bool]]
) -> None:
    messages = [
        Message(str(number), "g", "5", "c", moment, f"a{number}", author.strip() or "somebody",
                f"x{content}", train=train)
        for number, (author, content, moment, train) in enumerate(rows)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("round") / "data.jsonl"
    with path.open("wb") as stream:
        for message in messages:
            write_line(stream, message)
    assert read_training_data(path).messages == messages


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.text(max_size=9), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip
RECORD = st.dictionaries(
    st.sampled_from([*FULL, "text", "date", "user", "messages", "conversations", "name", "role"]),
    JSON, max_size=8,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(RECORD, max_size=5))
def test_no_record_of_any_shape_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    data = read(tmp_path_factory.mktemp("any"), FULL, *records)
    assert data.messages
    for message in data.messages:
        assert message.timestamp.utcoffset() == timedelta(0)
