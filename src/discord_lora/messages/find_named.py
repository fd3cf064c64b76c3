"""Whom or which channel somebody means: by id, or by a name in any case."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from discord_lora.console import UserError

_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Named:
    """A member or a channel. Of `names` the earlier ones are tried first; "" is none."""

    id: str
    names: tuple[str, ...]
    messages: int


def find_named(
    all_of: Sequence[Named],
    wanted: str,
    option: str,
    *,
    nobody: str = "nobody",
    several: str = "people",
) -> Named:
    """The one that is meant; `@` or `#` before a name may be there or not.

    Raises:
        UserError: nothing is called so (with the nearest names), or several are. `option`,
            `nobody` and `several` are the words it is said in.
    """
    text = wanted.strip()
    spellings = {text.casefold(), text.lstrip("@#").casefold()}
    for found in all_of:
        if found.id == text:
            return found
    for kind in range(max((len(it.names) for it in all_of), default=0)):
        matches = [it for it in all_of if it.names[kind : kind + 1] and _fits(it, kind, spellings)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(f"{it.id} ({it.names[-1]})" for it in matches)
            raise UserError(
                f"{option}: {len(matches)} {several} are called {wanted}; use an id: {ids}."
            )
    raise UserError(f"{option}: {nobody} in the data is called {wanted}; {_nearest(all_of, text)}.")


def _fits(found: Named, kind: int, spellings: set[str]) -> bool:
    name = found.names[kind].casefold()
    return bool(name) and name in spellings


def _nearest(all_of: Sequence[Named], wanted: str) -> str:
    text = wanted.lstrip("@#").casefold()
    by_name = {name.casefold(): it for it in all_of for name in it.names if name}
    near = [by_name[name] for name in difflib.get_close_matches(text, by_name, n=3, cutoff=0.5)]
    near += [it for name, it in by_name.items() if text and text in name][:3]
    most_active = sorted(all_of, key=lambda it: -it.messages)[:3]
    shown = list(dict.fromkeys(near)) or most_active
    names = ", ".join(
        f"{next(filter(None, it.names), it.id)} ({it.messages:,} messages)"
        for it in shown[:_MOST_SHOWN]
    )
    return f"{'the nearest are' if near else 'the most active are'} {names}"
