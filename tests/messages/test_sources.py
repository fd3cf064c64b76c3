"""The formats other than DiscordChatExporter's JSON, and the real samples with their counts."""

import json
import lzma
from pathlib import Path

import pytest

from discord_lora.messages.detect import Format
from messages.example_exports import SHARED_DATA, id_of, run, text_of, zipped

GROUP = """<div class=chatlog__message-group>
<div id=x class=chatlog__message-container data-message-id={id}><div class=chatlog__message>
{reply}<span class=chatlog__author title=ann_1 data-user-id=71>Ann &amp; Co</span>{tag}
<span class=chatlog__timestamp title="01 May 2024 12:00">x</span>
<div class="chatlog__content chatlog__markdown"><span class=chatlog__markdown-preserve>{text}</span>
<span class=chatlog__edited-timestamp title="x">(edited)</span></div>
<div class=chatlog__reactions><div class=chatlog__reaction>
<span class=chatlog__reaction-count>3</span></div></div></div></div>
<div class=chatlog__message-container data-message-id={next_id}><div class=chatlog__message>
<div class="chatlog__content">and more</div></div></div></div>
"""
PAGE = """<!DOCTYPE html><html><body><div class=preamble><div class=preamble__entries-container>
<div class=preamble__entry>Tea House</div>
<div class=preamble__entry>Talk / general</div></div></div>
<div class=chatlog>{groups}</div>
<div class=postamble><div class=postamble__entry>Exported 2 message(s)</div></div></body></html>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def html(text: str, reply: str = "", tag: str = "") -> str:
    group = GROUP.format(id=id_of(1), next_id=id_of(2), text=text, reply=reply, tag=tag)
    return PAGE.format(groups=group)


def test_html_gives_ids_authors_replies_and_reactions(folder: Path) -> None:
    link = (
        f"<span class=chatlog__reply-link onclick=\"scrollToMessage(event,'{id_of(9)}')\">x</span>"
    )
    page = html("hi <strong>you</strong>", reply=f"<div class=chatlog__reply>{link}</div>")
    (folder / "Tea_House-general_900000000000000002.html").write_text(page, encoding="utf-8")
    report, (first, second) = run(folder)
    assert (first["id"], first["author_id"], first["author"]) == (id_of(1), "71", "Ann & Co")
    assert (first["username"], first["content"]) == ("ann_1", "hi **you**")
    assert (first["reply_to"], first["reactions"]) == (id_of(9), 3)
    assert (second["author"], second["content"]) == ("Ann & Co", "and more")
    assert (first["guild"], first["channel"]) == ("Tea House", "general")
    assert first["channel_id"] == "900000000000000002"
    assert (report.replies, report.warnings) == (1, [])


def test_html_markup_becomes_discord_markdown(folder: Path) -> None:
    text = (
        "a <img class=chatlog__emoji alt=👍><img class=chatlog__emoji alt=LUL> "
        '<code class="chatlog__markdown-pre chatlog__markdown-pre--inline">x &lt; y</code> '
        '<span class="chatlog__markdown-mention" title="bo">@Bo</span> <em>z</em>\nnext '
        '<a href="https://example.com">https://example.com</a>'
        '<div class="chatlog__markdown-pre chatlog__markdown-pre--multiline language-py">pass</div>'
    )
    (folder / "a.html").write_text(html(text), encoding="utf-8")
    _, lines = run(folder)
    assert lines[0]["content"] == (
        "a 👍:LUL: `x < y` @Bo *z*\nnext https://example.com```py\npass\n```"
    )


def test_html_bots_are_recognised_for_the_whole_group(folder: Path) -> None:
    page = html("beep", tag="<span class=chatlog__author-tag>BOT</span>")
    (folder / "a.html").write_text(page, encoding="utf-8")
    _, lines = run(folder, skip=frozenset({"bots"}))
    assert [line["is_bot"] for line in lines] == [True, True]


def test_html_of_2020_and_its_system_notices(folder: Path) -> None:
    page = f'''<html><body><div class="chatlog"><div class="chatlog__message-group">
    <span class="chatlog__author-name" title="ann#1234" data-user-id="71">Ann</span>
    <span class="chatlog__timestamp">19-Oct-18 01:34 PM</span>
    <div class="chatlog__message" data-message-id="5"><div class="chatlog__content">hi</div></div>
    </div><div class="chatlog__message-group"><div data-message-id="{id_of(2)}">
    <span class="chatlog__system-notification-author" data-user-id="71">Ann</span>
    <span class="chatlog__system-notification-content">joined the server.</span></div></div></div>
    </body></html>'''
    (folder / "a.html").write_text(page, encoding="utf-8")
    report, (line,) = run(folder)
    assert (line["author"], line["username"], line["author_id"]) == ("Ann", "ann", "71")
    assert (line["content"], line["timestamp"]) == ("hi", "2018-10-19T13:34:00+00:00")
    assert (report.dropped, report.warnings) == ({"system message": 1}, [])


def test_html_in_tiny_chunks_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.html").write_text(html("hi"), encoding="utf-8")
    whole = run(folder)[1]
    monkeypatch.setattr("discord_lora.messages.text_input.CHUNK_BYTES", 50)
    assert run(folder)[1] == whole


CSV = "AuthorID,Author,Date,Content,Attachments,Reactions\n"
ROW = '"71","ann#1234","2024-05-01T12:00:00.1230000+00:00","a ""b"",\nc","","👍 (2),LUL (1)"\n'


def test_csv_takes_its_channel_from_the_file_name(folder: Path) -> None:
    name = "Tea House - Talk - general [900000000000000002] (after 2024-01-01) [part 2].csv"
    (folder / name).write_text(CSV + ROW, encoding="utf-8", newline="")
    (line,) = run(folder)[1]
    assert (line["guild"], line["channel"]) == ("Tea House", "general")
    assert (line["channel_id"], line["author_id"]) == ("900000000000000002", "71")
    assert (line["author"], line["content"], line["reactions"]) == ("ann", 'a "b",\nc', 3)
    assert line["timestamp"] == "2024-05-01T12:00:00.123000+00:00"


def test_overlapping_csv_exports_merge_and_real_repeats_stay(folder: Path) -> None:
    name = "Tea House - Talk - general [900000000000000002]{}.csv"
    (folder / name.format("")).write_text(CSV + ROW + ROW, encoding="utf-8", newline="")
    (folder / name.format(" (after 2024-01-01)")).write_text(
        CSV + ROW + ROW + ROW, encoding="utf-8"
    )
    report, lines = run(folder, skip=frozenset({"repeats"}))
    assert (report.read, len(lines)) == (5, 3)


def test_csv_of_2019(folder: Path) -> None:
    header = "AuthorID;Author;Date;Content;Attachments;Reactions;\n"
    rows = '"71";"ann#1234";"19-Oct-18 01:34 PM";"hi; ""you""";"";"";\n'
    (folder / "csv_general_1.csv").write_text(header + rows, encoding="utf-8")
    (line,) = run(folder)[1]
    assert (line["timestamp"], line["content"]) == ("2018-10-19T13:34:00+00:00", 'hi; "you"')
    assert line["channel"] == "csv_general_1"


def test_an_ambiguous_csv_date_is_told(folder: Path) -> None:
    rows = '"71","ann","3/4/2019 1:34 PM","hi","",""\n'
    (folder / "a.csv").write_text(CSV + rows, encoding="utf-8")
    report, lines = run(folder)
    assert lines[0]["timestamp"].startswith("2019-03-04T13:34")
    assert "month/day/year" in report.warnings[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_of_any_tool(folder: Path, delimiter: str) -> None:
    rows = [["Sender", "Time", "Channel", "Message"], ["Ann", "2024-05-01 12:00", "tea", "hi"]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    (folder / "a.csv").write_text(text, encoding="utf-8-sig")
    (line,) = run(folder)[1]
    assert (line["author"], line["channel"], line["content"]) == ("Ann", "tea", "hi")


def package(
    messages: str = "messages", account: str = "account", root: str = ""
) -> dict[str, bytes]:
    channel = {"id": "900000000000000002", "type": "GUILD_TEXT", "name": "general",
               "guild": {"id": "900000000000000001", "name": "Tea House"}}  # fmt: skip
    lost = {"id": "900000000000000003", "type": "DM"}
    entry = {"ID": int(id_of(1)), "Timestamp": "2024-05-01 12:00:00", "Contents": text_of(1),
             "Attachments": ""}  # fmt: skip
    table = f'ID,Timestamp,Contents,Attachments\n{id_of(2)},2024-05-01 12:00:01.5+00:00,"a\nb",\n'
    owner = {"id": "71", "username": "ann_1", "global_name": "Ann", "email": "secret@example.com"}
    index = {"900000000000000003": "Direct Message with bo#0", "900000000000000002": None}
    files = {
        f"{messages}/c900000000000000002/channel.json": json.dumps(channel).encode(),
        f"{messages}/c900000000000000002/messages.json": json.dumps([entry], indent=2).encode(),
        f"{messages}/c900000000000000003/channel.json": json.dumps(lost).encode(),
        f"{messages}/c900000000000000003/messages.csv": table.encode(),
        f"{messages}/index.json": json.dumps(index).encode(),
        f"{account}/user.json": json.dumps(owner).encode(),
        f"{account}/avatar.png": b"\x89PNG",
        "servers/900000000000000001/guild.json": b'{"id": "1", "name": "Tea House"}',
        "Activit\u00e9s/analytics/events-2024-00000-of-00001.json": b'{"user": "x", "text": "y"}',
        "README.txt": b"Welcome",
    }
    return {root + name: data for name, data in files.items()}


@pytest.mark.parametrize(
    ("messages", "account", "root"),
    [("messages", "account", ""), ("Messages", "Compte", ""), ("Messages", "Account", "package/")],
)
def test_a_data_package_in_any_spelling(
    folder: Path, messages: str, account: str, root: str
) -> None:
    (folder / "package.zip").write_bytes(zipped(package(messages, account, root)))
    report, lines = run(folder)
    assert [(line["channel"], line["guild"]) for line in lines] == [
        ("general", "Tea House"), ("bo", "Direct Messages"),
    ]  # fmt: skip
    assert {(line["author_id"], line["author"], line["username"]) for line in lines} == {
        ("71", "Ann", "ann_1")
    }
    assert lines[1]["content"] == "a\nb"
    assert report.has_data_package
    assert report.rejects == 0


def test_nothing_private_of_a_data_package_gets_out(folder: Path) -> None:
    (folder / "package.zip").write_bytes(zipped(package()))
    run(folder)
    written = (folder.parent / "in-out" / "training_data.jsonl").read_text(encoding="utf-8")
    assert "secret@" not in written


def test_a_package_folder_beside_other_exports_hides_none(folder: Path) -> None:
    for name, data in package().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "talk.csv").write_text("user,text,date\nbo,hello,2024-01-01\n")
    assert "hello" in [line["content"] for line in run(folder)[1]]


def test_messages_of_discordchatexporter_one_a_line(folder: Path) -> None:
    from messages.example_exports import message

    lines = [message(1), message(2, type="GuildMemberJoin"), message(3, type="Reply",
             reference={"messageId": id_of(1)})]  # fmt: skip
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report, kept = run(folder)
    assert report.dropped == {"system message": 1}
    assert kept[1]["reply_to"] == id_of(1)


def test_a_conversation_is_no_export_whatever_stands_in_it(folder: Path) -> None:
    turns = [{"content": "{x} [y]", "role": "user"}, {"content": "ok", "role": "assistant"}]
    records = [{"channel": "x", "messages": turns}, {"messages": turns}]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    report, lines = run(folder)
    assert (report.conversations, report.read) == (2, 0)
    assert [line["messages"] for line in lines] == [
        [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    ] * 2


def test_an_archive_that_is_no_zip_is_named_as_what_it_is(folder: Path) -> None:
    (folder / "a.tar.xz").write_bytes(lzma.compress(b'{"text": "x", "user": "y"}' * 9))
    (folder / "b.csv").write_text("user,text,date\nbo,hello,2024-01-01\n")
    report, _ = run(folder)
    assert "unpack it" in report.unrecognised[0].reason
    assert report.rejects == 0


def test_a_plain_text_export_is_named_as_what_it_is(folder: Path) -> None:
    (folder / "a.txt").write_text("=" * 62 + "\nGuild: Tea House\n")
    (folder / "b.csv").write_text("user,text,date\nbo,hello,2024-01-01\n")
    report, _ = run(folder)
    assert "export the channel as JSON" in report.unrecognised[0].reason


@pytest.mark.parametrize(
    ("sample", "kind", "read", "replies"),
    [
        ("pyscript", Format.DISCORDCHATEXPORTER_JSON, 6072, 1341),
        ("html-sample", Format.DISCORDCHATEXPORTER_HTML, 19, 8),
        ("csv-2019-sample", Format.DISCORDCHATEXPORTER_CSV, 100, 0),
        ("data-package/2021-csv", Format.DATA_PACKAGE_CSV, 737, 0),
        ("data-package/2024-json", Format.DATA_PACKAGE_JSON, 737, 0),
        ("data-package/2026-json-capitalised", Format.DATA_PACKAGE_JSON, 737, 0),
    ],
)
def test_the_real_samples_hold_their_documented_counts(
    tmp_path: Path, sample: str, kind: Format, read: int, replies: int
) -> None:
    source = SHARED_DATA / sample
    if not source.exists():
        pytest.skip(f"the shared sample {sample} is not beside this repository")
    report, lines = run(tmp_path / "in", source)
    assert (report.read, report.replies, report.rejects) == (read, replies, 0)
    assert report.kept == len(lines) > 0.9 * read
    assert set(report.files) == {kind}
    names: dict[str, set[str]] = {}
    for line in lines:
        names.setdefault(line["author_id"], set()).add(line["author"])
    assert all(len(of_one) == 1 for of_one in names.values())
