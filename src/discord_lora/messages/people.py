"""Who is who: one id is one person, one person has one name, one name is one person."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from discord_lora.messages.sources.base import Person

NameChoice = Literal["nickname", "username"]

_DELETED_ACCOUNT = re.compile(r"deleted[ _]user(?:[ _#][0-9a-f]*)?", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_FORMER_MEMBER = "former member"
_SOMEBODY = "somebody"
_LONGEST_NAME_CHARACTERS = 64


@dataclass(slots=True)
class _Names:
    """What a person was called, each name as of the latest export that had it."""

    username: str = ""
    username_rank: int = -1
    nickname: str = ""
    nickname_rank: int = -1


class People:
    """Collects names while reading; `settle` then gives everybody one name for good."""

    def __init__(self, choice: NameChoice = "nickname") -> None:
        self.choice: NameChoice = choice
        self._names: dict[str, _Names] = {}
        self._just_seen: dict[str, Person] = {}
        self._rank = -1
        self._shown: dict[str, str] = {}

    def saw(self, person: Person, rank: int) -> None:
        """Note the names of one export; `rank` is its time, the latest names win."""
        if rank != self._rank:
            self._rank = rank
            self._just_seen.clear()
        if self._just_seen.get(person.id) == person:
            return  # the usual case: one export names a person the same way every time
        self._just_seen[person.id] = person
        names = self._names.setdefault(person.id, _Names())
        if person.username and rank >= names.username_rank:
            names.username, names.username_rank = person.username, rank
        if person.nickname and rank >= names.nickname_rank:
            names.nickname, names.nickname_rank = person.nickname, rank

    def settle(self, messages_by_author: Mapping[str, int]) -> None:
        """Choose everybody's name. Of two people with the same one the more active keeps it."""
        self._just_seen.clear()
        by_activity = sorted(self._names, key=lambda who: (-messages_by_author.get(who, 0), who))
        taken: set[str] = set()
        later: list[str] = []
        for who in by_activity:
            name = self._wished_name(who)
            if name.casefold() in taken or name == _FORMER_MEMBER:
                later.append(who)
            else:
                self._take(who, name, taken)
        for who in later:
            free = (name for name in self._other_names(who) if name.casefold() not in taken)
            self._take(who, next(free), taken)

    def name_of(self, person_id: str) -> str | None:
        """The name a person is shown under; None for somebody no export names."""
        return self._shown.get(person_id)

    def username_of(self, person_id: str) -> str:
        """The account name, "" when no export tells it."""
        names = self._names.get(person_id)
        return names.username if names else ""

    def _take(self, who: str, name: str, taken: set[str]) -> None:
        self._shown[who] = name
        taken.add(name.casefold())

    def _wished_name(self, who: str) -> str:
        names = self._names[who]
        if any(_DELETED_ACCOUNT.fullmatch(name) for name in (names.username, names.nickname)):
            return _FORMER_MEMBER
        wishes = [names.nickname, names.username]
        if self.choice == "username":
            wishes.reverse()
        return clean_name(wishes[0]) or clean_name(wishes[1]) or _SOMEBODY

    def _other_names(self, who: str) -> Iterator[str]:
        """Names to fall back on, without end."""
        wished = self._wished_name(who)
        if wished == _FORMER_MEMBER:
            yield from (f"{wished} {number}" for number in count(1))
        if username := clean_name(self._names[who].username):
            yield username
        yield from (f"{wished} {number}" for number in count(2))


def clean_name(name: str) -> str:
    """A name that stands safely before a colon on one line: NFC, no control characters."""
    name = unicodedata.normalize("NFC", name)
    name = "".join(" " if char.isspace() else char for char in name if _is_visible(char))
    name = _SPACE.sub(" ", name)[:_LONGEST_NAME_CHARACTERS]
    return name.strip().rstrip(" :：")


def _is_visible(char: str) -> bool:
    # Cf holds the zero-width joiner, without which family emoji fall apart: it stays.
    category = unicodedata.category(char)
    return char.isspace() or char == "\u200d" or category not in {"Cc", "Cf", "Cs", "Co"}
