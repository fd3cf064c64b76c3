"""CSV rows with their line, one at a time, going on after a row whose quotes do not close."""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from discord_lora.messages.text_input import detect_encoding, lines_of

_HEAD_BYTES = 400
_LONGEST_ROW_LINES = 20_000
_LARGEST_FIELD_CHARACTERS = 64 << 20
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Row:
    """One row; `closed` is False when a quote in it was never closed."""

    line: int
    cells: list[str]
    closed: bool = True


def guess_delimiter(header: str) -> str:
    """The delimiter of a header line: the commonest of comma, semicolon, tab and bar."""
    return max(_DELIMITERS, key=header.count)


def read_rows(
    lines: Iterator[str], delimiter: str, row_start: re.Pattern[str] | None = None
) -> Iterator[Row]:
    """Rows of physical `lines` (which keep their line ends).

    `row_start` matches the line that begins a row, where the format allows to know it: a broken
    row then ends where the next begins. Otherwise quotes are counted, and a row that never
    closes is given up after its first line.
    """
    csv.field_size_limit(_LARGEST_FIELD_CHARACTERS)
    splitter = _RowSplitter(lines, row_start)
    for number, row_lines in splitter:
        cells = next(csv.reader(row_lines, delimiter=delimiter), [])
        if any(cell.strip() for cell in cells):
            yield Row(number, cells, closed=not _is_open(row_lines))


@dataclass(frozen=True, slots=True)
class NamedRow:
    """One row by column name (lower case). `complete` is False when quotes or cells are amiss."""

    line: int
    cells: dict[str, str]
    complete: bool


def read_named_rows(
    open_file: Callable[[], BinaryIO], row_start: re.Pattern[str] | None = None
) -> Iterator[NamedRow]:
    """The rows of a CSV file under the names of its header line, in any encoding."""
    with open_file() as stream:
        head = stream.read(_HEAD_BYTES)
    with open_file() as stream:
        lines = lines_of(stream, detect_encoding(head))
        header = next(lines, "").lstrip("\ufeff")
        delimiter = guess_delimiter(header)
        columns = next(csv.reader([header], delimiter=delimiter), [])
        names = [column.strip().lower() for column in columns]
        for row in read_rows(lines, delimiter, row_start):
            complete = row.closed and len(row.cells) >= len([name for name in names if name])
            cells = dict(zip(names, row.cells, strict=False))
            yield NamedRow(row.line + 1, cells, complete)


def _is_open(lines: list[str]) -> bool:
    return sum(line.count('"') for line in lines) % 2 == 1


@dataclass
class _RowSplitter:
    """Groups physical lines into rows: (line number, lines)."""

    lines: Iterator[str]
    row_start: re.Pattern[str] | None
    _again: list[str] = field(default_factory=list)
    _number: int = 0

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        return self._by_start() if self.row_start else self._by_quotes()

    def _next_line(self) -> str | None:
        line = self._again.pop() if self._again else next(self.lines, None)
        self._number += line is not None
        return None if line is None else line.replace("\x00", "")

    def _by_start(self) -> Iterator[tuple[int, list[str]]]:
        row: list[str] = []
        first = 1
        while (line := self._next_line()) is not None:
            starts = self.row_start is not None and self.row_start.match(line)
            if starts and row:
                yield first, row
                row = []
            if not row:
                first = self._number
            row.append(line)
        if row:
            yield first, row

    def _by_quotes(self) -> Iterator[tuple[int, list[str]]]:
        row: list[str] = []
        open_quote = False
        while (line := self._next_line()) is not None:
            row.append(line)
            open_quote ^= line.count('"') % 2 == 1
            if open_quote and len(row) >= _LONGEST_ROW_LINES:
                yield self._give_up(row)
            elif open_quote:
                continue
            else:
                yield self._number - len(row) + 1, row
            row, open_quote = [], False
        while row:
            yield self._give_up(row)
            row = []
            yield from self._by_quotes()

    def _give_up(self, row: list[str]) -> tuple[int, list[str]]:
        """Only the first line is lost: the others are read again as rows of their own."""
        first = self._number - len(row) + 1
        self._again.extend(reversed(row[1:]))
        self._number -= len(row) - 1
        return first, row[:1]
