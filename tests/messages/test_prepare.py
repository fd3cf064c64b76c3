"""Merging, names and the account of a whole run, on small invented exports."""

import json
from datetime import datetime
from pathlib import Path

import orjson
import pytest

from discord_lora.console import UserError
from discord_lora.messages.account import DUPLICATE
from discord_lora.messages.prepare import PrepareOptions, prepare
from discord_lora.messages.sources import discordchatexporter_json
from messages.example_exports import (
    CHANNEL,
    GUILD,
    export_text,
    id_of,
    message,
    prepare_messages,
    run,
    text_of,
    user,
    zipped,
)

KEYS = {
    "id", "guild", "channel_id", "channel", "timestamp", "author_id", "author", "username",
    "content", "reply_to", "reactions", "is_bot", "train",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_has_exactly_the_agreed_keys(folder: Path) -> None:
    reactions = [{"emoji": {"name": "tea"}, "count": 2, "users": []}, {"emoji": {}, "count": 1}]
    (line,) = prepare_messages(folder, [message(1, reactions=reactions)])
    assert set(line) == KEYS
    assert line == {
        "id": id_of(1),
        "guild": "Tea House",
        "channel_id": CHANNEL["id"],
        "channel": "general",
        "timestamp": "2024-05-01T12:00:01.500000+00:00",
        "author_id": user(1)["id"],
        "author": "User 1",
        "username": "user_1",
        "content": text_of(1),
        "reply_to": None,
        "reactions": 3,
        "is_bot": False,
        "train": True,
    }


def test_the_later_export_wins_whatever_the_order(folder: Path) -> None:
    newer = export_text([message(1, content="edited")], exportedAt="2024-07-01T00:00:00+00:00")
    older = export_text([message(1), message(2)], exportedAt="2024-06-01T23:00:00-05:00")
    for names in (("a.json", "b.json"), ("b.json", "a.json")):
        write(folder, names[0], newer)
        write(folder, names[1], older)
        report, lines = run(folder)
        assert [line["content"] for line in lines] == ["edited", text_of(2)]
        assert (report.read, report.kept, report.dropped) == (3, 2, {DUPLICATE: 1})


def test_without_an_export_date_the_file_named_last_wins(folder: Path) -> None:
    first = write(folder, "z.json", export_text([message(1, content="first")], exportedAt=None))
    last = write(folder, "a.json", export_text([message(1, content="last")], exportedAt=None))
    _, lines = run(folder, first, last)
    assert [line["content"] for line in lines] == ["last"]


def test_a_file_named_twice_is_read_once(folder: Path) -> None:
    path = write(folder, "a.json", export_text([message(1)]))
    report, _ = run(folder, folder, path, path)
    assert report.read == 1


def test_partitions_come_out_in_the_order_of_time(folder: Path) -> None:
    write(folder, "x [part 2].json", export_text([message(3), message(4)]))
    write(folder, "x.json", export_text([message(2), message(1)]))
    _, lines = run(folder)
    assert [line["content"] for line in lines] == [text_of(n) for n in (1, 2, 3, 4)]


def test_local_zone_times_are_stored_as_utc(folder: Path) -> None:
    local = [
        message(1, timestamp="2024-11-03T01:30:00.1234567-07:00"),
        message(2, timestamp="2024-11-03T01:10:00-08:00"),
    ]
    lines = prepare_messages(folder, local)
    assert [line["timestamp"] for line in lines] == [
        "2024-11-03T08:30:00.123456+00:00",
        "2024-11-03T09:10:00+00:00",
    ]


def test_only_replies_answer(folder: Path) -> None:
    reference = {"messageId": id_of(1), "channelId": CHANNEL["id"], "guildId": GUILD["id"]}
    messages = [
        message(1),
        message(2, type="Reply", reference=reference),
        message(3, type="Reply", reference=reference | {"messageId": None}),
        message(4, type="Reply", reference=reference | {"messageId": "5"}),
        message(5, type="Default", reference=reference),
        message(6, type="19", reference=reference),
    ]
    write(folder, "a.json", export_text(messages))
    report, lines = run(folder)
    targets = [line["reply_to"] for line in lines]
    assert targets == [None, id_of(1), None, "5", None, id_of(1)]
    assert (report.replies, report.answered_replies) == (4, 2)


def test_a_thread_and_a_private_channel_keep_their_names(folder: Path) -> None:
    thread = CHANNEL | {
        "id": "77",
        "type": "GuildPublicThread",
        "category": "general",
        "name": "cake",
    }
    private = CHANNEL | {"id": "78", "type": "DirectTextChat", "category": "Private", "name": "Ann"}
    write(folder, "t.json", export_text([message(1)], channel=thread))
    direct = {"id": "0", "name": "Direct Messages", "iconUrl": ""}
    write(folder, "p.json", export_text([message(2)], guild=direct, channel=private))
    _, lines = run(folder)
    named = {(line["guild"], line["channel_id"], line["channel"]) for line in lines}
    assert named == {("Direct Messages", "78", "Ann"), ("Tea House", "77", "cake")}


def test_system_types_by_name_or_number_are_dropped(folder: Path) -> None:
    kinds = [
        "GuildMemberJoin",
        "ChannelPinnedMessage",
        "8",
        "11",
        "21",
        "24",
        "46",
        "ThreadCreated",
    ]
    messages = [message(n, type=kind) for n, kind in enumerate(kinds, 2)]
    write(folder, "a.json", export_text([message(1), *messages]))
    report, lines = run(folder)
    assert len(lines) == 1
    assert report.dropped == {"system message": len(kinds)}


def test_bots_and_slash_answers_can_be_kept_as_context(folder: Path) -> None:
    interaction = {"id": "1", "name": "roll", "user": user(1)}
    messages = [
        message(1),
        message(2, author=user(2, isBot=True)),
        message(3, type="20", author=user(2, isBot=True)),
        message(4, interaction=interaction),
        message(5, type="23"),
    ]
    write(folder, "a.json", export_text(messages))
    report, _ = run(folder)
    assert report.dropped == {"bot message": 1, "answer to a slash command": 3}
    _, lines = run(folder, skip=frozenset({"bots"}))
    assert [line["train"] for line in lines] == [True, False, False, False, False]


def test_a_forward_is_context_and_never_learned(folder: Path) -> None:
    forwarded = {"timestamp": "2024-01-01T00:00:00+00:00", "content": "their words",
                 "attachments": [], "embeds": [], "stickers": []}  # fmt: skip
    reference = {"type": "Forward", "messageId": "1", "channelId": "2", "guildId": None}
    lines = prepare_messages(
        folder,
        [message(1, content="", forwardedMessage=forwarded, reference=reference), message(2)],
    )
    assert [(line["content"], line["train"], line["reply_to"]) for line in lines] == [
        ("their words", False, None),
        (text_of(2), True, None),
    ]


def test_the_same_person_never_has_two_names(folder: Path) -> None:
    old, new = user(1, nickname="Old", name="old_name"), user(1, nickname="New", name="new_name")
    write(
        folder, "a.json", export_text([message(1, author=old)], exportedAt="2023-01-01T00:00:00Z")
    )
    write(
        folder, "b.json", export_text([message(2, author=new)], exportedAt="2024-01-01T00:00:00Z")
    )
    for choice, expected in (("nickname", "New"), ("username", "new_name")):
        _, lines = run(folder, names=choice)
        assert {(line["author"], line["username"]) for line in lines} == {(expected, "new_name")}


def test_two_people_with_one_name_are_told_apart(folder: Path) -> None:
    busy, quiet = user(1, nickname="Alex"), user(2, nickname="alex")
    third = user(3, nickname="ALEX", name="Alex")
    messages = [
        message(1, author=busy), message(2, author=busy), message(3, author=quiet),
        message(4, author=third),
    ]  # fmt: skip
    lines = prepare_messages(folder, messages)
    assert [line["author"] for line in lines] == ["Alex", "Alex", "user_2", "ALEX 2"]


def test_deleted_accounts_get_neutral_distinct_names(folder: Path) -> None:
    gone = [
        user(1, name="Deleted User", nickname="Deleted User"),
        user(2, name="deleted_user_0a1b2c", nickname="deleted_user_0a1b2c"),
        user(3, name="former member", nickname="former member"),
    ]
    lines = prepare_messages(folder, [message(n, author=who) for n, who in enumerate(gone, 1)])
    names = [line["author"] for line in lines]
    assert len(set(names)) == 3
    assert all(name.startswith("former member") for name in names)


def test_names_fit_on_one_line_before_a_colon(folder: Path) -> None:
    odd = [" Ann: :\n", "Cafe\u0301", "\u202eevil\u200b", "::", "x" * 500]
    lines = prepare_messages(
        folder, [message(n, author=user(n, nickname=name)) for n, name in enumerate(odd, 1)]
    )
    assert [line["author"] for line in lines] == ["Ann", "Café", "evil", "user_4", "x" * 64]


def test_an_old_rendered_mention_gets_the_persons_settled_name(folder: Path) -> None:
    ann, anna = user(1, nickname="Ann"), user(2, nickname="Anna")
    ping = message(1, content="@Anna @Ann hi @everyone", mentions=[ann, anna])
    write(folder, "a.json", export_text([ping], exportedAt="2023-01-01T00:00:00Z"))
    renamed = [
        message(2, author=user(1, nickname="Anna")),
        message(3, author=user(1, nickname="Anna")),
        message(4, author=user(2, nickname="Zoe")),
    ]
    write(folder, "b.json", export_text(renamed, exportedAt="2024-01-01T00:00:00Z"))
    _, lines = run(folder)
    assert lines[0]["content"] == "@Zoe @Anna hi @everyone"


def test_raw_tokens_become_readable(folder: Path) -> None:
    raw = (
        f"<@{user(1)['id']}> <@!{user(1)['id']}> <@5> <#{CHANNEL['id']}> <#6> <@&7> "
        "<a:LUL:123> <:tea:5> <t:1700000000:R> <t:1700000000:d> </roll:12>"
    )
    lines = prepare_messages(folder, [message(1, content=raw)])
    assert lines[0]["content"] == (
        "@User 1 @User 1 @someone #general #channel @role "
        ":LUL: :tea: 2023-11-14 22:13 UTC 2023-11-14 /roll"
    )


def test_the_same_text_again_within_minutes_is_spam(folder: Path) -> None:
    def said(number: int, minute: int, text: str, **changes: object) -> dict[str, object]:
        return message(number, content=text, author=user(1), **changes) | {
            "timestamp": f"2024-05-01T{10 + minute // 60}:{minute % 60:02}:00+00:00"
        }

    elsewhere = CHANNEL | {"id": "900000000000000003", "name": "other"}
    spam = "free nitro"
    write(folder, "a.json", export_text([
        said(1, 0, spam), said(2, 1, spam), said(4, 40, spam), said(5, 41, "ok"), said(6, 41, "ok"),
        message(7, content=spam, author=user(2), timestamp="2024-05-01T10:01:00Z"),
    ]))  # fmt: skip
    write(folder, "b.json", export_text([said(3, 2, spam)], channel=elsewhere))
    report, lines = run(folder)
    assert [line["id"] for line in lines] == [id_of(n) for n in (1, 7, 4, 5, 6)]
    assert report.dropped == {"exact repeat": 2}
    assert len(run(folder, skip=frozenset({"repeats"}))[1]) == 7


def test_every_drop_has_a_named_reason(folder: Path) -> None:
    messages = [
        message(1),
        message(2, content=""),
        message(3, content=" ", attachments=[{"id": "1", "url": "u"}]),
        message(4, content="!play song"),
        message(5, content="/roll"),
        message(6, content="/usr/bin/python is old!"),
        message(7, content="!!! wow"),
        message(8, content="https://example.com/x"),
    ]
    write(folder, "a.json", export_text(messages))
    report, lines = run(folder, drop_links=True)
    assert [line["content"] for line in lines] == [text_of(1), messages[5]["content"], "!!! wow"]
    assert report.dropped == {
        "empty": 1, "only an attachment": 1, "bot command": 2, "only a link": 1,
    }  # fmt: skip


def test_links_stay_unless_they_are_to_go(folder: Path) -> None:
    talk = [message(1, content="look <https://example.com/a?b=c> nice")]
    assert prepare_messages(folder, talk)[0]["content"] == talk[0]["content"]
    assert prepare_messages(folder, talk, drop_links=True)[0]["content"] == "look nice"


def test_csv_copies_of_json_messages_are_merged(folder: Path) -> None:
    write(folder, "a.json", export_text([message(1), message(2)]))
    rows = "".join(
        f'"{user(n % 3)["id"]}","u","2024-05-01T12:00:0{n}.5000000+00:00","{text_of(n)}","",""\n'
        for n in (1, 2, 3)
    )
    name = f"Tea House - Talk - general [{CHANNEL['id']}] (after 2024-01-01).csv"
    write(folder, name, "AuthorID,Author,Date,Content,Attachments,Reactions\n" + rows)
    report, lines = run(folder)
    assert [line["content"] for line in lines] == [text_of(n) for n in (1, 2, 3)]
    assert {line["channel"] for line in lines} == {"general"}
    assert report.dropped == {DUPLICATE: 2}


def test_the_streaming_reader_agrees_with_the_whole_file_reader(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [message(n, content=f'{text_of(n)} ü 😀 \\" {{') for n in range(1, 300)]
    whole = prepare_messages(folder, talk)
    monkeypatch.setattr(discordchatexporter_json, "WHOLE_FILE_BYTES", 1000)
    monkeypatch.setattr("discord_lora.messages.text_input.CHUNK_BYTES", 777)
    assert run(folder)[1] == whole


def test_inputs_of_every_shape_in_one_zip(folder: Path) -> None:
    conversation = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    }
    members = {
        "exports/a.json": export_text([message(1)]).encode(),
        "exports/a.json_Files/picture.png": b"\x89PNG",
        "exports/a.json_Files/attached.json": b'{"text": "private", "author": "x"}',
        "lines.jsonl": b'{"user": "bo", "text": "two", "date": "2024-01-01T00:00:00Z"}\n',
        "ready.jsonl": json.dumps(conversation).encode(),
        "notes.txt": b"remember the milk",
    }
    (folder / "all.zip").write_bytes(zipped(members))
    report, lines = run(folder)
    assert [line.get("content") for line in lines] == [text_of(1), "two", None]
    assert lines[2]["messages"] == conversation["messages"]
    assert report.conversations == 1
    assert [reject.file.rpartition(": ")[2] for reject in report.unrecognised] == ["notes.txt"]


def test_our_own_output_is_not_read_back(tmp_path: Path) -> None:
    write(tmp_path, "a.json", export_text([message(1)]))
    out = tmp_path / "training_data.jsonl"
    for _ in range(2):
        assert prepare(PrepareOptions((tmp_path,), out)).read == 1


def test_the_output_can_be_prepared_again_without_change(folder: Path) -> None:
    prepare_messages(folder, [message(1), message(2, content="x\n\ny", type="Reply")])
    first = folder.parent / "in-out" / "training_data.jsonl"
    before = first.read_bytes()
    prepare(PrepareOptions((first,), first))
    assert first.read_bytes() == before


def test_a_failed_run_leaves_the_previous_output(folder: Path) -> None:
    write(folder, "a.json", export_text([message(1, content="")]))
    out = folder.parent / "in-out" / "training_data.jsonl"
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(UserError, match="empty 1"):
        run(folder)
    assert [path.name for path in out.parent.iterdir()] == ["training_data.jsonl"]
    assert out.read_text() == "precious"


def test_an_interrupted_run_leaves_nothing_half_written(folder: Path) -> None:
    write(folder, "a.json", export_text([message(1)]))
    out = folder.parent / "in-out" / "training_data.jsonl"

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(PrepareOptions((folder,), out), on_bytes=interrupt)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("paths", [("missing.json",), ("in", "missing", "gone.zip")])
def test_missing_paths_are_named_all_at_once(folder: Path, paths: tuple[str, ...]) -> None:
    wanted = tuple(folder.parent / path for path in paths)
    with pytest.raises(UserError) as error:
        prepare(PrepareOptions(wanted, folder / "out.jsonl"))
    assert len(error.value.problems) == len([path for path in wanted if not path.exists()])


def test_an_output_that_cannot_be_written_is_told_before_reading(folder: Path) -> None:
    write(folder, "a.json", export_text([message(1)]))
    (folder / "file").write_text("")
    for out in (folder / "file" / "x.jsonl", folder):
        with pytest.raises(UserError, match="cannot be written"):
            prepare(PrepareOptions((folder,), out))


def test_the_same_input_gives_the_same_bytes(folder: Path) -> None:
    prepare_messages(folder, [message(n, id=None, author=user(n)) for n in range(1, 20)])
    out = folder.parent / "in-out" / "training_data.jsonl"
    before = out.read_bytes()
    run(folder)
    assert out.read_bytes() == before
    assert len({orjson.loads(line)["id"] for line in before.splitlines()}) == 19


def test_progress_ends_at_the_total(folder: Path) -> None:
    write(folder, "a.json", export_text([message(1)]))
    write(folder, "b.csv", "user,text,date\nbo,hi,2024-01-01\n")
    totals: list[int] = []
    done: list[int] = []
    prepare(PrepareOptions((folder,), folder.parent / "o.jsonl"), totals.append, done.append)
    assert done == sorted(done)
    assert done[-1] == totals[0] > 0


def test_every_time_that_is_written_has_a_zone(folder: Path) -> None:
    lines = prepare_messages(folder, [message(1, timestamp="2024-05-01 12:00"), message(2)])
    assert all(datetime.fromisoformat(line["timestamp"]).utcoffset() is not None for line in lines)
