"""What a file is, by its first bytes: names and endings are only a hint about the rest."""

import re
from enum import Enum

from discord_lora.messages.inputs import InputFile
from discord_lora.messages.record_fields import field_of_key
from discord_lora.messages.text_input import detect_encoding

HEAD_BYTES = 1 << 16
_LOOK_AHEAD_CHARACTERS = 4000


class Format(Enum):
    """The formats that are told apart."""

    DISCORDCHATEXPORTER_JSON = "DiscordChatExporter JSON"
    DISCORDCHATEXPORTER_CSV = "DiscordChatExporter CSV"
    DISCORDCHATEXPORTER_HTML = "DiscordChatExporter HTML"
    DATA_PACKAGE_JSON = "Discord data package (JSON)"
    DATA_PACKAGE_CSV = "Discord data package (CSV)"
    GENERIC_JSON = "JSON records"
    GENERIC_CSV = "CSV records"
    MEDIA = "media"
    EMPTY = "empty file"
    UNKNOWN = "not recognised"


_MEDIA_MAGIC = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"OggS", b"ID3", b"fLaC", b"%PDF",
    b"\x1aE\xdf\xa3", b"wOFF", b"wOF2", b"BM6",
    b"\x00\x00\x01\x00", b"\xff\xfb", b"\xff\xf3", b"II*\x00", b"MM\x00*",
)  # fmt: skip
_ARCHIVE_MAGIC = (b"\xfd7zXZ", b"\x1f\x8b", b"BZh", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")
_MEDIA_ENDINGS = frozenset({
    "png", "apng", "jpg", "jpeg", "gif", "webp", "bmp", "svg", "ico", "heic", "avif", "lottie",
    "mp4", "mov", "webm", "mkv", "avi", "mp3", "ogg", "wav", "flac", "m4a",
    "pdf", "woff", "woff2", "ttf", "css", "js",
})  # fmt: skip
_DATA_ENDINGS = frozenset({"json", "jsonl", "ndjson", "csv", "tsv", "html", "htm", "txt", "zip"})
_MESSAGES_LIST = re.compile(r'"messages"\s*:\s*\[')
_PACKAGE_KEYS = re.compile(r'"ID"\s*:.{0,200}?"(Timestamp|Contents)"\s*:', re.DOTALL)
_JSON_LINE = re.compile(r'^\s*\{\s*"[^"\n]{1,40}"\s*:', re.MULTILINE)
_PLAIN_TEXT_EXPORT = re.compile(r"={62}\s+Guild: ")


def detect_format(head: bytes, file: InputFile) -> tuple[Format, str]:
    """The format and, for MEDIA, EMPTY and UNKNOWN, what to tell the user ("" for nothing)."""
    ending = file.parts[-1].rpartition(".")[2].lower()
    if not head:
        return Format.EMPTY, "the file is empty"
    if head.startswith(_MEDIA_MAGIC) or head[4:8] == b"ftyp":
        told = "it holds an image, sound or video" if ending in _DATA_ENDINGS else ""
        return Format.MEDIA, told
    if head.startswith(_ARCHIVE_MAGIC) or head[257:262] == b"ustar":
        return Format.UNKNOWN, "an archive other than a ZIP: unpack it and name the folder"
    if ending in _MEDIA_ENDINGS:
        return Format.MEDIA, ""
    text = head.decode(detect_encoding(head), errors="ignore").lstrip("\ufeff\x00 \t\r\n")
    if not text:
        return Format.EMPTY, "the file is empty"
    return _detect_text(text, ending)


def _detect_text(text: str, ending: str) -> tuple[Format, str]:
    if text.startswith("<"):
        if "chatlog__" in text or "data-message-id" in text or "DiscordChatExporter" in text:
            return Format.DISCORDCHATEXPORTER_HTML, ""
        return Format.UNKNOWN, "a web page that DiscordChatExporter did not write"
    if text.startswith(("{", "[")):
        return _detect_json(text), ""
    if _PLAIN_TEXT_EXPORT.match(text):
        return Format.UNKNOWN, "a plain-text export: it has no ids, export the channel as JSON"
    if found := _detect_csv(text.splitlines()[0]):
        return found, ""
    if ending in {"json", "jsonl", "ndjson"} or _JSON_LINE.search(text):
        return _detect_json(text), ""
    return Format.UNKNOWN, "no known export format"


def _detect_json(text: str) -> Format:
    if text.startswith("{") and (match := _MESSAGES_LIST.search(text)):
        inside = text[match.end() : match.end() + _LOOK_AHEAD_CHARACTERS]
        # A conversation has roles; an export has authors, whose "roles" is another key.
        if '"role"' not in inside or '"author"' in inside:
            return Format.DISCORDCHATEXPORTER_JSON
    if text.startswith("{") and '"guild"' in text[:500] and '"exportedAt"' in text:
        return Format.DISCORDCHATEXPORTER_JSON
    if _PACKAGE_KEYS.search(text[:4000]):
        return Format.DATA_PACKAGE_JSON
    return Format.GENERIC_JSON


def _detect_csv(header: str) -> Format | None:
    columns = [cell.strip().strip('"') for cell in re.split(r"[,;\t|]", header)]
    names = {column.lower() for column in columns}
    if {"author", "date", "content"} <= names and "attachments" in names:
        return Format.DISCORDCHATEXPORTER_CSV
    if {"id", "timestamp", "contents"} <= names:
        return Format.DATA_PACKAGE_CSV
    known = {field_of_key(column) for column in columns}
    if "content" in known and known & {"author", "author_id", "username", "timestamp"}:
        return Format.GENERIC_CSV
    return None
