"""Lines of a training_data.jsonl: our own, those of others, and broken ones."""

import json
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from discord_lora.messages.record import Message
from discord_lora.messages.training_data import write_line

START = datetime(2024, 5, 1, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = st.sampled_from(["Ann", '"quoted"', "[bold]x[/]", " padded ", "שלום", "a\\b", "", "\u00a0"])
MESSAGES = st.builds(
    Message,
    id=st.integers(1, 30).map(str),
    guild=NAME,
    channel_id=st.sampled_from(["1", "2"]),
    channel=NAME,
    timestamp=st.integers(0, 10**12).map(lambda n: START + timedelta(microseconds=n)),
    author_id=st.sampled_from(["7", "8", ""]),
    author=NAME,
    content=TEXT,
    username=NAME,
    reply_to=st.sampled_from([None, "3", "gone"]),
    reactions=st.integers(0, 5),
    is_bot=st.booleans(),
    train=st.booleans(),
)
PLAIN = {
    "id": "77", "guild": "", "channel_id": "1", "channel": "talk",
    "timestamp": "2024-05-01T12:00:00+00:00", "author_id": "7", "author": "Ann", "content": "hi",
    "username": "", "reply_to": None, "reactions": 0, "is_bot": False, "train": True,
}  # fmt: skip
ODD = [
    b"",
    b"   ",
    b"\xef\xbb\xbf{}",
    b"not json",
    b'{"id": "5", "content": "no time"}',
    b'{"text": "other names", "user": "Bo", "date": "3/4/2019"}',
    b'{"id":"6","content":"two"} {"id":"7","content":"objects"}',
    b'{"id":"8","content":"caf\xe9"}',
    b'{"id":"9","content":"lone \\ud83d surrogate"}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
    b"[1, 2]",
    json.dumps(PLAIN).encode(),
    json.dumps(PLAIN, separators=(",", ":")).encode() + b" \r",
    json.dumps(PLAIN | {"content": '😀 \\ " \n'}).encode(),
    json.dumps(PLAIN | {"timestamp": "2024-02-30T12:00:00+00:00"}).encode(),
    json.dumps(PLAIN | {"timestamp": "2024-05-01T12:00:00+02:00", "id": "78"}).encode(),
    json.dumps(PLAIN | {"timestamp": None, "id": "not a number"}).encode(),
    json.dumps(PLAIN | {"id": 78, "reactions": -1, "train": "no"}).encode(),
    json.dumps(PLAIN | {"content": "\x1c \u2003"}).encode(),
    json.dumps(PLAIN | {"reactions": 10**17}).encode(),
    json.dumps(PLAIN | {"reactions": 10**30}).encode(),
    json.dumps({key: value for key, value in PLAIN.items() if key != "username"}).encode(),
    json.dumps(PLAIN)[:-1].encode() + b', "id": "twice"}',
    json.dumps(PLAIN | {"timestamp": "1875-05-01T12:00:00+00:00"}).encode(),
    json.dumps(PLAIN | {"timestamp": "2024-05-01T12:00:60+00:00"}).encode(),
    *(
        json.dumps(PLAIN).encode().replace(b"hi", text)
        for text in (
            rb"\ud83d\ude00",
            rb"\ud83d x",
            rb"\ude00\ude00",
            rb"\ude00\ud83d",
            rb"\x41",
            b"caf\xe9",
            b"raw\ttab",
            b"nul\x00",
            rb"\u0000",
            b"a\xe2\x80\xa8b",
            b"a\rb",
        )
    ),
]


def line_of(message):
    class Sink(bytearray):
        write = bytearray.extend

    sink = Sink()
    write_line(sink, message)
    return bytes(sink).rstrip(b"\n")


LINES = st.lists(st.one_of(MESSAGES.map(line_of), st.sampled_from(ODD)), min_size=1, max_size=30)
