"""Small invented exports for the tests of this room."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import orjson

from discord_lora.messages.account import PrepareReport
from discord_lora.messages.prepare import PrepareOptions, prepare

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FIRST_ID = 1_100_000_000_000_000_000
GUILD = {"id": "900000000000000001", "name": "Tea House", "iconUrl": ""}
CHANNEL = {
    "id": "900000000000000002",
    "type": "GuildTextChat",
    "categoryId": None,
    "category": "Talk",
    "name": "general",
    "topic": None,
}


def id_of(number: int) -> str:
    return str(FIRST_ID + (number << 34))


def text_of(number: int) -> str:
    return f"message number {number}"


def user(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": str(800_000_000_000_000_000 + number),
        "name": f"user_{number}",
        "discriminator": "0000",
        "nickname": f"User {number}",
        "color": None,
        "isBot": False,
        "roles": [],
        "avatarUrl": "",
    } | changes


def message(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": id_of(number),
        "type": "Default",
        "timestamp": f"2024-05-01T12:{number // 60:02}:{number % 60:02}.5+00:00",
        "timestampEdited": None,
        "callEndedTimestamp": None,
        "isPinned": False,
        "content": text_of(number),
        "author": user(number % 3),
        "attachments": [],
        "embeds": [],
        "stickers": [],
        "reactions": [],
        "mentions": [],
        "inlineEmojis": [],
    } | changes


def export(messages: list[Any], **changes: Any) -> dict[str, Any]:
    return {
        "guild": GUILD,
        "channel": CHANNEL,
        "dateRange": {"after": None, "before": None},
        "exportedAt": "2024-06-01T00:00:00+00:00",
        "messages": messages,
        "messageCount": len(messages),
    } | changes


def export_text(messages: list[Any], **changes: Any) -> str:
    """As DiscordChatExporter writes it: indented by two, non-ASCII raw."""
    return json.dumps(export(messages, **changes), indent=2, ensure_ascii=False)


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def run(folder: Path, *paths: Path, **options: Any) -> tuple[PrepareReport, list[dict[str, Any]]]:
    """Prepare `paths` (or `folder`) into a file beside it; the report and the lines written."""
    out = folder.parent / f"{folder.name}-out" / "training_data.jsonl"
    report = prepare(PrepareOptions(paths or (folder,), out, **options))
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert report.read == report.kept + report.dropped.total()
    for count in report.channels:
        assert count.read == count.kept + count.dropped.total()
    return report, lines


def prepare_messages(folder: Path, messages: list[Any], **options: Any) -> list[dict[str, Any]]:
    """The lines that one export of these messages becomes."""
    (folder / "export.json").write_text(export_text(messages), encoding="utf-8")
    return run(folder, **options)[1]


def rejects_of(folder: Path) -> list[dict[str, str]]:
    path = folder.parent / f"{folder.name}-out" / "training_data.rejects.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
