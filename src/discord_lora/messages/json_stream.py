"""Reads a JSON array object by object, in bounded memory, and goes on after a broken piece.

orjson is four times faster but takes a document whole or not at all; this reader is for what it
cannot take: exports larger than memory, truncated ones, and ones with a damaged message inside.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from discord_lora.messages.fields import without_surrogates

_LARGEST_VALUE_CHARACTERS = 64 << 20
_NEAR_THE_END_CHARACTERS = 64
_DEEP_STEP = 500
"""Objects to skip at once inside a nesting deeper than the decoder's ~1000 levels: trying every
level would take time with the square of the depth."""

_FILLER = re.compile(r"[\s,\ufeff\x00]*")
_OBJECT_START = re.compile(r'\{\s*["}]')
_ARRAY_TAIL = re.compile(r'\]\s*(,\s*"messageCount"\s*:\s*\d+\s*)?\}?\s*$')

_strict = json.JSONDecoder()
_lenient = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Found:
    """One value of the array."""

    value: Any


@dataclass(frozen=True, slots=True)
class Broken:
    """A stretch that is no JSON; `line` is where it starts (from 1)."""

    line: int
    reason: str


class JsonObjects:
    """Iterates over the values of an array (or of a bare sequence of objects).

    `is_record` tells a message from the objects inside one: after a broken piece, reading
    resumes at the next object that it accepts. After the iteration, `closed` tells whether the
    array's `]` was there; a truncated file has none.
    """

    def __init__(
        self,
        chunks: Iterator[str],
        is_record: Callable[[Any], bool],
        *,
        in_array: bool = True,
    ) -> None:
        self.closed = not in_array
        self._chunks = chunks
        self._is_record = is_record
        self._in_array = in_array
        self._buffer = ""
        self._position = 0
        self._lines = 0
        self._lines_counted_to = 0
        self._at_end = False
        self._value_start = 0

    @property
    def line(self) -> int:
        """The line (from 1) on which the latest value starts."""
        self._count_lines_to(self._value_start)
        return self._lines + 1

    def read_until(self, pattern: re.Pattern[str], limit: int) -> str | None:
        """The text before the first match; reading goes on after the match.

        None, with nothing consumed, when the first `limit` characters hold no match.
        """
        while (match := pattern.search(self._buffer, self._position)) is None:
            if len(self._buffer) - self._position > limit or not self._fill():
                return None
        before = self._buffer[self._position : match.start()]
        self._position = match.end()
        self.closed = not self._in_array
        return before

    def __iter__(self) -> Iterator[Found | Broken]:
        while self._go_to_next_value():
            if self._in_array and self._buffer[self._position] == "]":
                self.closed = True
                self._position += 1
                return
            self._value_start = self._position
            try:
                value, self._position = self._decode(self._position)
            except _NotJsonError as problem:
                yield Broken(self.line, str(problem))
                yield from self._resume_after_broken_piece()
            else:
                yield Found(value)

    def _go_to_next_value(self) -> bool:
        self._drop_consumed()
        while True:
            match = _FILLER.match(self._buffer, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._buffer):
                return True
            if not self._fill():
                return False

    def _resume_after_broken_piece(self) -> Iterator[Found]:
        """Yield the next record, or nothing when there is none up to the end."""
        self._position += 1
        to_skip = 0
        while self._go_to_next_object():
            if to_skip:
                to_skip -= 1
                self._position += 1
                continue
            try:
                value, end = self._decode(self._position)
            except _NotJsonError as problem:
                to_skip = _DEEP_STEP if problem.too_deep else 0
                self._position += 1
                continue
            if self._is_record(value):
                self._value_start, self._position = self._position, end
                yield Found(value)
                return
            self._position = end
        self.closed = self.closed or _ARRAY_TAIL.search(self._buffer[-400:]) is not None
        self._position = len(self._buffer)

    def _go_to_next_object(self) -> bool:
        """Go to the next `{` that may begin an object; False at the end of the file."""
        while True:
            if match := _OBJECT_START.search(self._buffer, self._position):
                self._position = match.start()
                return True
            # A `{` may be waiting for its quote at the very end: keep the last characters.
            self._position = max(self._position, len(self._buffer) - _NEAR_THE_END_CHARACTERS)
            self._drop_consumed()
            if not self._fill():
                return False

    def _decode(self, start: int) -> tuple[Any, int]:
        """The value at `start` and where it ends. Raises _NotJsonError."""
        decoder = _strict
        while True:
            try:
                value, end = decoder.raw_decode(self._buffer, start)
                if self._buffer.find("\\u", start, end) >= 0:
                    value = without_surrogates(value)
                return value, end
            except json.JSONDecodeError as error:
                if self._may_be_incomplete(error, start):
                    self._fill_twice_as_far(start)
                elif decoder is _strict and error.msg.startswith("Invalid control character"):
                    decoder = _lenient  # a raw newline inside a string hides no message
                else:
                    raise _NotJsonError(_reason(error, self._at_end, self._buffer)) from None
            except RecursionError:
                raise _NotJsonError("nested too deeply", too_deep=True) from None
            except ValueError:
                raise _NotJsonError("a number with too many digits") from None

    def _may_be_incomplete(self, error: json.JSONDecodeError, start: int) -> bool:
        if self._at_end or len(self._buffer) - start > _LARGEST_VALUE_CHARACTERS:
            return False
        near_the_end = error.pos >= len(self._buffer) - _NEAR_THE_END_CHARACTERS
        return near_the_end or error.msg.startswith("Unterminated string")

    def _fill_twice_as_far(self, start: int) -> None:
        goal = start + 2 * (len(self._buffer) - start)
        while len(self._buffer) <= goal and self._fill():
            pass

    def _fill(self) -> bool:
        chunk = "" if self._at_end else next(self._chunks, "")
        self._at_end = not chunk
        self._buffer += chunk
        return bool(chunk)

    def _drop_consumed(self) -> None:
        if self._position > len(self._buffer) // 2:
            self._count_lines_to(self._position)
            self._buffer = self._buffer[self._position :]
            self._position = self._value_start = self._lines_counted_to = 0

    def _count_lines_to(self, position: int) -> None:
        self._lines += self._buffer.count("\n", self._lines_counted_to, position)
        self._lines_counted_to = max(position, self._lines_counted_to)


class _NotJsonError(ValueError):
    def __init__(self, reason: str, *, too_deep: bool = False) -> None:
        super().__init__(reason)
        self.too_deep = too_deep


def _reason(error: json.JSONDecodeError, at_end: bool, buffer: str) -> str:
    cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(buffer.rstrip())
    if at_end and cut_off:
        return "the file ends in the middle of this piece"
    return f"not JSON: {error.msg.lower()}"
