"""Who waits for an answer, and who is turned away when there are too many."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the line looks at."""

    @property
    def addressed(self) -> bool: ...


T = TypeVar("T", bound=Waiting)


class WaitingLine(Generic[T]):
    """A bounded queue: the addressed go first, the oldest unaddressed is dropped first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: list[T] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """In order of arrival; the line may change meanwhile."""
        return iter(list(self._waiting))

    def join(self, new: T) -> T | None:
        """Let somebody in; returns who has to go for it, which may be the new one."""
        self._waiting.append(new)
        if len(self._waiting) <= self.most:
            return None
        dropped = next((it for it in self._waiting if not it.addressed), new)
        self._waiting.remove(dropped)
        return dropped

    def put_back(self, first: T) -> None:
        """Somebody whose turn it was already: next again, whatever the bound."""
        self._waiting.insert(0, first)

    def peek(self) -> T | None:
        return next((it for it in self._waiting if it.addressed), next(iter(self._waiting), None))

    def remove(self, leaving: T) -> None:
        self._waiting.remove(leaving)
