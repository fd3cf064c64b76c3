"""An answer as Discord messages: split, typed like a person, or streamed by edits.

Lengths are counted in UTF-16 units, which are never fewer than the characters Discord counts, so
an emoji counts twice and nothing is refused. Discord trims the white space around a message; it
is left out here, and apart from it and from fences that are closed and opened again, the parts
joined are the text.
"""

import re
from dataclasses import dataclass, field

from discord_lora.messages.mentions import NameOf, resolve_mentions

MESSAGE_LIMIT = 2000
"""Discord's limit for a message's content."""

EDIT_DELAY_SECONDS = 1.2
"""Between two edits: Discord allows five in five seconds a channel, which other answers share."""

MOST_LINES = 6
"""Messages of an answer typed like a person; more lines stay together in the last one."""

LONGEST_DELAY_SECONDS = 6.0
_THINKING_SECONDS = 0.4
_CHARACTERS_PER_SECOND = 25.0

_FENCE = re.compile(r"```(?:([\w+#.-]{1,20})(?=\n))?")
_OPENING_AT_END = re.compile(r"`{1,3}[\w+#.-]{0,20}\n?\Z")
_SENTENCE_END = re.compile(r"[.!?…。！？]['\")\]]*\s")
_JOINING = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]")
_EVERYBODY = re.compile(r"@(?=everyone|here)")
_GUARD = "\u200b"


# Splitting ------------------------------------------------------------------------------------


def length(text: str) -> int:
    """UTF-16 units, as JavaScript counts."""
    return len(text) + sum(char > "\uffff" for char in text)


def split_reply(text: str, limit: int = MESSAGE_LIMIT) -> list[str]:
    """`text` in messages of at most `limit` units; none for a blank one.

    Cut at the end of a paragraph, line, sentence or word. A code block that is cut is closed and
    opened again with its language. A part never changes when the text goes on growing, once
    there is another part behind it. `limit` is at least 64.
    """
    if limit < 64:
        raise ValueError("a limit below 64 leaves no room for a fence and its language")
    parts = []
    opening, rest = "", text.strip()
    while rest:
        if opening and not rest.strip("` \n"):
            break  # all the code was said: only its end is left
        if length(opening) + length(rest) <= limit:
            parts.append(opening + rest)
            break
        piece, rest = _cut(rest, limit - length(opening) - len("\n```"))
        language = _open_fence(opening + piece)
        if language is None:
            part, rest = (opening + piece).rstrip(), rest.lstrip()
            opening = ""
        else:
            part = opening + piece + ("```" if piece.endswith("\n") else "\n```")
            opening = f"```{language}\n"
            if rest.lstrip().startswith("```"):
                opening, rest = "", rest.lstrip()[len("```") :].lstrip()
        if _FENCE.sub("", part).strip():
            parts.append(part)
    return parts


def _open_fence(text: str) -> str | None:
    """The language of the code block that `text` ends in ("" without one); None outside."""
    fences = list(_FENCE.finditer(text))
    return (fences[-1][1] or "") if len(fences) % 2 else None


def _cut(text: str, room: int) -> tuple[str, str]:
    """The first piece of a text that does not fit, and the rest."""
    most = _characters_in(text, room)
    head = text[:most]
    cut = (
        _end_of(head, "\n\n", most // 2)
        or _end_of(head, "\n", most // 3)
        or max((it.end() for it in _SENTENCE_END.finditer(head)), default=0)
    )
    if cut < most // 3:
        cut = max(head.rfind(" "), head.rfind("\n")) + 1 or _hard_cut(text, most)
    dangling = _OPENING_AT_END.search(text, 0, cut)
    # A fence that was just opened goes with its code; a run of backticks stays whole.
    if dangling and dangling.start() and (_open_fence(text[:cut]) is not None or cut == most):
        cut = dangling.start()
    return text[:cut], text[cut:]


def _characters_in(text: str, room: int) -> int:
    """How many characters of `text` fit into `room` UTF-16 units."""
    used = 0
    for index, char in enumerate(text):
        used += 1 + (char > "\uffff")
        if used > room:
            return index
    return len(text)


def _end_of(head: str, mark: str, least: int) -> int:
    found = head.rfind(mark)
    return found + len(mark) if found >= least and found > 0 else 0


def _hard_cut(text: str, most: int) -> int:
    """In the middle of a word, but not between a letter and its accents."""
    cut = most
    while cut > most // 2 and (_JOINING.match(text[cut]) or text[cut - 1] == "\u200d"):
        cut -= 1
    return cut if cut > most // 2 else most


# Like a person --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypedMessage:
    """A message and how long its writer types before it is sent."""

    text: str
    delay_seconds: float


def as_typed(text: str, limit: int = MESSAGE_LIMIT) -> list[TypedMessage]:
    """A message a line, each after the time it takes to type; code blocks stay whole."""
    lines = _lines(text)
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = ["\n".join(lines[MOST_LINES - 1 :])]
    parts = [part for line in lines for part in split_reply(line, limit)]
    return [TypedMessage(part, typing_seconds(part)) for part in parts]


def typing_seconds(text: str) -> float:
    """A little to think, then 25 characters a second: quick, but a person. At most six seconds."""
    return min(LONGEST_DELAY_SECONDS, _THINKING_SECONDS + len(text) / _CHARACTERS_PER_SECOND)


def _lines(text: str) -> list[str]:
    lines: list[str] = []
    in_code = False
    for line in text.strip().split("\n"):
        if in_code:
            lines[-1] += "\n" + line
        elif line.strip():
            lines.append(line)
        in_code ^= line.count("```") % 2 == 1
    return lines


# Streaming ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Show:
    """Make message number `index` of an answer read `text`: the first time send, then edit."""

    index: int
    text: str


@dataclass
class StreamedReply:
    """When to send and edit the messages of an answer that is still being written.

    `show` with all the text there is so far; it returns what to do now, which is nothing until
    the delay is over. `finish` returns what is left to do, whenever it comes. Times are seconds
    of any one clock.
    """

    delay_seconds: float = EDIT_DELAY_SECONDS
    limit: int = MESSAGE_LIMIT
    shown: list[str] = field(default_factory=list)
    """The messages as Discord has them, or soon will."""
    _last: float = float("-inf")

    def show(self, text: str, now: float) -> list[Show]:
        """At most one message is touched, and none sooner than the delay after the last."""
        if now - self._last < self.delay_seconds:
            return []
        changes = self._changes(text)[:1]
        if changes:
            self._last = now
        return self._done(changes)

    def finish(self, text: str) -> list[Show]:
        """Everything that still differs from the whole text; the caller spaces them."""
        return self._done(self._changes(text, whole=True))

    def _changes(self, text: str, *, whole: bool = False) -> list[Show]:
        parts = split_reply(text, self.limit)
        if parts and not whole:
            parts[-1] = _closed(parts[-1], self.limit)
        return [
            Show(index, part)
            for index, part in enumerate(parts)
            if index >= len(self.shown) or self.shown[index] != part
        ]

    def _done(self, changes: list[Show]) -> list[Show]:
        for change in changes:
            self.shown[change.index : change.index + 1] = [change.text]
        return changes


def _closed(part: str, limit: int) -> str:
    """A code block that is still being written, closed for as long as it is."""
    closed = part + "\n```"
    return closed if _open_fence(part) is not None and length(closed) <= limit else part


# What must not be said ------------------------------------------------------------------------


def without_pings(text: str, person_name: NameOf, channel_name: NameOf) -> str:
    """Mentions as readable words that ping nobody, whatever the client allows.

    `<@1>` becomes `@name`, `<@&2>` `@role`, and an invisible character stands in @everyone.
    """
    text = resolve_mentions(text, person_name, channel_name)
    return _EVERYBODY.sub(f"@{_GUARD}", text)


def without_guards(text: str) -> str:
    """The bot's own message as it meant it: the inverse of what guards @everyone."""
    return text.replace(f"@{_GUARD}", "@")
