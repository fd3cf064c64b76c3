"""Broken inputs never give a traceback and never lose a message that can be read."""

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from discord_lora.console import UserError
from messages.example_exports import (
    CHANNEL,
    export,
    export_text,
    id_of,
    message,
    rejects_of,
    run,
    text_of,
    user,
    zipped,
)

ALL = {1, 2, 3, 4, 5}
GOOD = export_text([message(n) for n in range(1, 6)])
COMPACT = json.dumps(export([message(n) for n in range(1, 6)]), separators=(",", ":"))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
CSV_HEADER = "AuthorID,Author,Date,Content,Attachments,Reactions\n"
PACKAGE_JSON = json.dumps(
    [{"ID": int(id_of(n)), "Timestamp": "2024-05-01 12:00:00", "Contents": text_of(n),
      "Attachments": ""} for n in range(1, 6)],
    indent=2,
)  # fmt: skip

Built = tuple[dict[str, bytes], set[int]]
CASES: dict[str, Callable[[], Built]] = {}


def case(build: Callable[[], Built]) -> Callable[[], Built]:
    CASES[build.__name__] = build
    return build


def one(text: str | bytes, readable: set[int], name: str = "export.json") -> Built:
    return {name: text.encode() if isinstance(text, str) else text}, readable


def with_messages(*messages: object) -> str:
    return export_text(list(messages))


def csv_row(number: int) -> str:
    day = f"2024-05-01T12:00:{number:02}.0000000+00:00"
    return f'"80000000000000000{number}","user_{number}","{day}","{text_of(number)}","",""\n'


def damaged(number: int, pattern: str, replacement: str, text: str = GOOD) -> str:
    """`text` with the first match after the start of one message replaced."""
    start = text.index(f'"{id_of(number)}"')
    return text[:start] + re.sub(pattern, replacement, text[start:], count=1)


# --- truncated ---------------------------------------------------------------------------------


@case
def truncated_before_the_tail() -> Built:
    return one(GOOD[: GOOD.rindex("]")], ALL)


@case
def truncated_inside_the_last_message() -> Built:
    return one(GOOD[: GOOD.index('"author"', GOOD.index(text_of(5)))], ALL - {5})


@case
def truncated_inside_a_string() -> Built:
    return one(GOOD[: GOOD.index(text_of(5)) + 4], ALL - {5})


@case
def truncated_compact_file() -> Built:
    return one(COMPACT[: COMPACT.index(text_of(4)) + 4], {1, 2, 3})


@case
def truncated_inside_a_character() -> Built:
    text = with_messages(message(1), message(2, content="müde"))
    data = text.encode()
    return one(data[: data.index("ü".encode()) + 1], {1})


@case
def truncated_data_package() -> Built:
    text = PACKAGE_JSON[: PACKAGE_JSON.index(text_of(5))]
    return one(text, ALL - {5}, "messages/c900000000000000002/messages.json")


@case
def truncated_csv() -> Built:
    text = CSV_HEADER + "".join(map(csv_row, range(1, 6)))
    return one(text[:-20], ALL - {5}, "export.csv")


@case
def truncated_json_lines() -> Built:
    lines = "\n".join(json.dumps(message(n)) for n in range(1, 6))
    return one(lines[:-80], ALL - {5}, "lines.jsonl")


# --- encodings ---------------------------------------------------------------------------------


@case
def utf8_with_mark() -> Built:
    return one(b"\xef\xbb\xbf" + GOOD.encode(), ALL)


@case
def utf16_with_mark() -> Built:
    return one(GOOD.encode("utf-16"), ALL)


@case
def utf16_big_endian_without_mark() -> Built:
    return one(GOOD.encode("utf-16-be"), ALL)


@case
def utf16_little_endian_without_mark() -> Built:
    return one(GOOD.encode("utf-16-le"), ALL)


@case
def cp1252_instead_of_utf8() -> Built:
    return one(GOOD.replace("Tea House", "Tëa Höuse").encode("cp1252"), ALL)


@case
def random_bytes_in_a_name() -> Built:
    return one(GOOD.encode().replace(b"User 1", b"\xff\xfe\x80 1"), ALL)


@case
def utf16_csv() -> Built:
    text = CSV_HEADER + "".join(map(csv_row, range(1, 6)))
    return one(text.encode("utf-16"), ALL, "export.csv")


# --- wrong types, nulls ------------------------------------------------------------------------


@case
def content_is_an_object() -> Built:
    return one(with_messages(message(1), message(2, content={"a": 1}), message(3)), {1, 3})


@case
def content_is_null() -> Built:
    return one(with_messages(message(1), message(2, content=None), message(3)), {1, 3})


@case
def author_is_null() -> Built:
    return one(with_messages(message(1), message(2, author=None), message(3)), {1, 2, 3})


@case
def author_is_a_list() -> Built:
    return one(with_messages(message(1), message(2, author=[1]), message(3)), {1, 2, 3})


@case
def names_are_lists() -> Built:
    odd = user(2, name=["a"], nickname={"b": 1})
    return one(with_messages(message(1), message(2, author=odd), message(3)), {1, 2, 3})


@case
def timestamp_is_null() -> Built:
    return one(with_messages(message(1), message(2, timestamp=None)), {1, 2})


@case
def timestamp_is_nonsense_and_the_id_no_snowflake() -> Built:
    return one(with_messages(message(1), message(2, timestamp="soon", id="x2")), {1, 2})


@case
def timestamp_of_the_year_zero() -> Built:
    return one(with_messages(message(1), message(2, timestamp="0001-01-01T00:00:00+14:00")), {1, 2})


@case
def id_is_missing() -> Built:
    without = message(2)
    del without["id"]
    return one(with_messages(message(1), without, message(3)), {1, 2, 3})


@case
def id_is_null_twice() -> Built:
    return one(with_messages(message(1, id=None), message(2, id=None)), {1, 2})


@case
def ids_are_64_bit_numbers() -> Built:
    return one(with_messages(*(message(n, id=int(id_of(n))) for n in ALL)), ALL)


@case
def id_is_a_very_long_number() -> Built:
    return one(with_messages(message(1, id="9" * 30), message(2, id="0"), message(3, id="-5")),
               {1, 2, 3})  # fmt: skip


@case
def reactions_mentions_and_attachments_are_wrong() -> Built:
    odd = message(2, reactions={"a": 1}, mentions=[None, 5], attachments="x", embeds=7)
    odder = message(3, reactions=[None, {"count": "many"}, {"count": -4}], mentions="@all")
    return one(with_messages(message(1), odd, odder), {1, 2, 3})


@case
def reference_is_a_string() -> Built:
    return one(with_messages(message(1), message(2, type="Reply", reference="1")), {1, 2})


@case
def nulls_numbers_and_lists_among_the_messages() -> Built:
    return one(with_messages(None, message(1), 7, "text", [], [message(9)], {}, message(2)), {1, 2})


@case
def header_is_a_list() -> Built:
    return one(export_text([message(1), message(2)], guild=[1], channel="general"), {1, 2})


@case
def header_is_null() -> Built:
    text = export_text([message(1), message(2)], guild=None, channel=None, exportedAt=None)
    return one(text, {1, 2})


@case
def messages_is_an_object() -> Built:
    text = json.dumps({"guild": {}, "channel": CHANNEL, "messages": {"a": 1}})
    return {"bad.json": text.encode(), "good.json": GOOD.encode()}, ALL


@case
def an_array_where_the_export_is_due() -> Built:
    return one(json.dumps([message(n) for n in range(1, 6)]), ALL)


@case
def an_array_of_exports() -> Built:
    return one(json.dumps([export([message(1)]), export([message(2)])]), {1, 2})


@case
def duplicate_ids() -> Built:
    return one(with_messages(message(1), message(2), message(2), message(3)), {1, 2, 3})


# --- damage in the middle ----------------------------------------------------------------------


@case
def a_missing_brace_in_the_middle() -> Built:
    return one(damaged(3, r'"author": \{', '"author": '), ALL - {3})


@case
def a_missing_quote_in_the_middle() -> Built:
    return one(damaged(3, text_of(3) + '"', text_of(3)), ALL - {3})


@case
def a_missing_quote_in_a_compact_file() -> Built:
    return one(damaged(3, text_of(3) + '"', text_of(3), COMPACT), ALL - {3})


@case
def a_missing_comma_between_messages() -> Built:
    return one(re.sub(r"\},\n    \{\n", "}\n    {\n", GOOD, count=2), ALL)


@case
def a_doubled_comma_between_messages() -> Built:
    return one(GOOD.replace("},\n    {\n", "},,\n    {\n"), ALL)


@case
def a_hole_across_two_messages() -> Built:
    start, end = GOOD.index(text_of(2)) + 3, GOOD.index('"author"', GOOD.index(text_of(3)))
    return one(GOOD[:start] + GOOD[end:], {1, 4, 5})


@case
def binary_garbage_between_messages() -> Built:
    place = GOOD.index("    {", GOOD.index(text_of(2)))
    garbage = random.Random(3).randbytes(500)
    return one(GOOD[:place].encode() + garbage + GOOD[place:].encode(), ALL)


@case
def zeros_in_the_middle() -> Built:
    place = GOOD.index(text_of(3)) + 3
    return one(GOOD[:place] + "\0" * 4096 + GOOD[place:], ALL)


@case
def a_raw_newline_inside_a_string() -> Built:
    return one(GOOD.replace("User 1", "User\n1"), ALL)


@case
def a_bad_escape() -> Built:
    return one(damaged(3, "User", r"\\q"), ALL - {3})


@case
def a_number_of_ten_thousand_digits() -> Built:
    return one(damaged(3, "false", "9" * 10_000), ALL - {3})


@case
def the_last_message_is_broken_but_the_tail_is_there() -> Built:
    return one(damaged(5, '"author":', "author"), ALL - {5})


@case
def the_header_is_broken() -> Built:
    return one(GOOD.replace('"categoryId": null', '"categoryId": nul'), ALL)


@case
def two_exports_glued_together() -> Built:
    return one(with_messages(message(1)) + with_messages(message(2)), {1, 2})


@case
def one_broken_line_among_json_lines() -> Built:
    lines = [json.dumps(message(n)) for n in range(1, 6)]
    lines[2] = lines[2][10:]
    return one("\n".join(lines), ALL - {3}, "lines.jsonl")


@case
def two_records_on_one_line() -> Built:
    lines = [json.dumps(message(n)) for n in range(1, 6)]
    return one(lines[0] + "\n" + "".join(lines[1:]), ALL, "lines.jsonl")


@case
def a_broken_data_package_entry() -> Built:
    text = PACKAGE_JSON.replace(f'"{text_of(3)}"', text_of(3))
    return one(text, ALL - {3}, "messages/c900000000000000002/messages.json")


# --- size and depth ----------------------------------------------------------------------------


@case
def a_message_of_5_megabytes() -> Built:
    return one(with_messages(message(1), message(2, content="a" * 5_000_000), message(3)), {1, 3})


@case
def a_message_of_5_megabytes_before_a_broken_one() -> Built:
    long = message(2, content="long " * 1_000_000)
    text = export_text([message(1), long, message(3), message(4)])
    return one(text.replace(f'"{text_of(3)}"', text_of(3)), {1, 4})


@case
def nested_ten_thousand_deep() -> Built:
    deep = '{"a":' * 10_000 + "1" + "}" * 10_000
    return one(damaged(3, '"embeds": \\[\\]', f'"embeds": {deep}'), ALL - {3})


@case
def brackets_without_end_in_the_middle() -> Built:
    return one(damaged(3, '"embeds": \\[\\]', '"embeds": ' + "[" * 50_000), ALL - {3})


@case
def lone_surrogates() -> Built:
    text = with_messages(message(1), message(2)).replace("User 1", "\\ud83d 1")
    return one(text, {1, 2})


@case
def not_a_number_values() -> Built:
    return one(GOOD.replace('"color": null', '"color": NaN'), ALL)


# --- files -------------------------------------------------------------------------------------


@case
def an_empty_file() -> Built:
    return {"empty.json": b"", "blank.json": b" \n", "good.json": GOOD.encode()}, ALL


@case
def a_picture_named_json() -> Built:
    return {"picture.json": PNG, "good.json": GOOD.encode()}, ALL


@case
def random_bytes_named_json() -> Built:
    return {"a.json": random.Random(1).randbytes(9999), "good.json": GOOD.encode()}, ALL


@case
def a_broken_zip() -> Built:
    data = zipped({"export.json": GOOD.encode()})
    return {"broken.zip": data[: len(data) // 2], "good.json": GOOD.encode()}, ALL


@case
def a_zip_with_a_damaged_member() -> Built:
    data = bytearray(
        zipped({"a.json": GOOD.encode(), "b.json": with_messages(message(1)).encode()})
    )
    data[200:220] = bytes(20)
    return {"damaged.zip": bytes(data)}, {1}


@case
def a_zip_that_climbs_out_of_its_folder() -> Built:
    names = ("../../outside.json", "/etc/outside.json", "..\\outside.json", "C:\\outside.json")
    members = {
        name: with_messages(message(number)).encode() for number, name in enumerate(names, 1)
    }
    return {"climbing.zip": zipped(members)}, {1, 2, 3, 4}


@case
def a_zip_in_a_zip() -> Built:
    inner = zipped({"export.json": GOOD.encode()})
    return {"outer.zip": zipped({"inner.zip": inner, "__MACOSX/._export.json": b"\0\5"})}, ALL


@case
def csv_with_zero_bytes() -> Built:
    text = CSV_HEADER + "".join(map(csv_row, range(1, 6)))
    return one(text.replace("user_", "us\0er_"), ALL, "export.csv")


@case
def csv_with_an_open_quote_in_the_middle() -> Built:
    rows = [csv_row(n) for n in range(1, 6)]
    rows[2] = rows[2].replace(f'{text_of(3)}"', text_of(3))
    return one(CSV_HEADER + "".join(rows), ALL - {3}, "export.csv")


@case
def csv_with_a_short_row_and_a_bad_date() -> Built:
    rows = [csv_row(n) for n in range(1, 6)]
    rows[1] = '"800000000000000002","user_2"\n'
    rows[3] = rows[3].replace("2024-05-01T", "someday ")
    return one(CSV_HEADER + "".join(rows), {1, 3, 5}, "export.csv")


@case
def generic_csv_with_an_open_quote() -> Built:
    rows = [f"u{n},2024-05-01 12:00:0{n},{text_of(n)}\n" for n in range(1, 6)]
    rows[1] = rows[1].replace("u2", '"u2')
    return one("user,date,text\n" + "".join(rows), ALL - {2}, "talk.csv")


@case
def html_cut_in_the_middle() -> Built:
    groups = [
        f'<div class="chatlog__message-group"><div data-message-id="{id_of(n)}">'
        f'<span class="chatlog__author" data-user-id="{n}">u{n}</span>'
        f'<div class="chatlog__content">{text_of(n)}</div></div></div>\n'
        for n in range(1, 6)
    ]
    page = '<!DOCTYPE html><html><div class="chatlog">' + "".join(groups)
    return one(page[: page.index(id_of(5)) - 5], ALL - {5}, "export.html")


@case
def html_without_attributes() -> Built:
    page = '<html><div class="chatlog"><div class="chatlog__message-group"><div></div></div>'
    return {"odd.html": page.encode(), "good.json": GOOD.encode()}, ALL


def test_there_are_fifty_cases() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize("name", CASES)
def test_no_readable_message_is_lost(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    files, readable = CASES[name]()
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)
    _, lines = run(folder)
    found = {
        int(m[1]) for line in lines if (m := re.fullmatch(r"message number (\d)", line["content"]))
    }
    assert found == readable


def test_what_cannot_be_read_is_reported_with_file_place_and_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "export.json").write_text(damaged(3, '"author":', "author"), encoding="utf-8")
    report, _ = run(folder)
    (reject,) = rejects_of(folder)
    line = GOOD.splitlines().index(f'      "id": "{id_of(3)}",')
    assert report.rejects == 1
    assert reject["file"].endswith("export.json")
    assert reject["place"] == f"line {line}"
    assert "not JSON" in reject["reason"]


def test_a_truncated_export_is_told_in_one_warning(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "export.json").write_text(GOOD[: GOOD.rindex("]")], encoding="utf-8")
    report, _ = run(folder)
    (warning,) = report.warnings
    assert "truncated" in warning and "export it again" in warning


def test_nothing_of_a_zip_is_written_to_disk(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "climbing.zip").write_bytes(zipped({"../escaped.json": GOOD.encode()}))
    run(folder)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "climbing.zip",
        "training_data.jsonl",
    }


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_loses_the_messages_around_it(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    data = bytearray(export_text([message(n) for n in range(1, 60)]).encode())
    first, last = data.index(text_of(20).encode()), data.index(text_of(40).encode())
    for _ in range(rng.randint(1, 5)):
        place = rng.randint(first, last)
        data[place : place + rng.randint(0, 40)] = rng.randbytes(rng.randint(0, 40))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "export.json").write_bytes(data)
    _, lines = run(folder)
    found = {line["content"] for line in lines}
    assert {text_of(n) for n in [*range(1, 19), *range(42, 60)]} <= found


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a file that is forbidden")
def test_a_file_that_cannot_be_opened_is_a_reject(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.json").write_text(GOOD, encoding="utf-8")
    (folder / "locked.json").write_text(GOOD, encoding="utf-8")
    (folder / "locked.json").chmod(0)
    report, _ = run(folder)
    assert report.rejects == 1


def test_only_unreadable_files_give_one_sentence_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "picture.json").write_bytes(PNG)
    with pytest.raises(UserError, match=r"picture\.json.*image"):
        run(folder)
