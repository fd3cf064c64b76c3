"""Which messages to learn from: what somebody asks for, as a mask over the messages.

A message is chosen when everything that is asked for holds. `best` comes last, among those that
the rest leaves. What is context only already stays so and counts nowhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.report.duplicates import FEWEST_WORDS, first_of_each
from discord_lora.analysis.report.measure import Measures
from discord_lora.analysis.report.private_data import find_private_data
from discord_lora.console import UserError
from discord_lora.messages.find_named import Named, find_named
from discord_lora.messages.timestamps import to_microseconds

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Criteria:
    """What is asked for; what is None, empty or False is not asked for."""

    authors: Sequence[str] = ()
    without_authors: Sequence[str] = ()
    channels: Sequence[str] = ()
    without_channels: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    timezone: str = "UTC"
    """Of `since` and `until`, where they do not name one."""
    drop_private: bool = False
    drop_near_duplicates: bool = False
    min_quality: float | None = None
    picked: frozenset[str] | None = None
    """Ids that somebody ticked."""
    opted_out: int = 0
    """Messages that were left out on reading: ticks that are not found may be of them."""
    best: int | None = None


@dataclass(frozen=True)
class Choice:
    """`chosen` has one entry a message. Messages = chosen + context before + all of left out."""

    chosen: Mask
    context_before: int
    left_out: dict[str, int]
    """By the first reason that applies; each reason asked for is there."""
    gone: int = 0
    """Ticked messages that are not in the data any more; they count nowhere else."""


@dataclass(frozen=True)
class Summary:
    """What a choice of messages comes to; `quality` is the mean, None of no messages."""

    learned: int
    people: int
    channels: int
    conversations: int
    quality: float | None


Fits = Callable[[Mask], Mask]
"""Of the messages that are left, the mask of those that hold; the other entries may be anything."""

Step = tuple[str, Fits]
"""Under which reason a message is left out, and which ones hold."""


def choose(measures: Measures, criteria: Criteria) -> Choice:
    """Choose among the messages to learn from.

    Raises:
        UserError: an author, a channel, a date or a ticked id that is not there; all at once.
    """
    learned = measures.frame["train"].to_numpy().copy()
    left = learned
    left_out = {}
    for reason, fits in _steps(measures, criteria):
        fitting = left & fits(left)
        left_out[reason] = int(np.count_nonzero(left) - np.count_nonzero(fitting))
        left = fitting
    gone = len(_not_found(measures.frame["id"], criteria.picked or frozenset()))
    return Choice(left, int(np.count_nonzero(~learned)), left_out, gone)


def summarise(measures: Measures, mask: Mask) -> Summary:
    """Figures of the messages in `mask`."""
    frame = measures.frame.select("author_id", "channel_id").filter(pl.Series(mask))
    return Summary(
        learned=len(frame),
        people=frame["author_id"].n_unique(),
        channels=frame["channel_id"].n_unique(),
        conversations=len(np.unique(measures.engagement.conversation[mask])),
        quality=float(measures.score[mask].mean()) if len(frame) else None,
    )


def best_of(measures: Measures, left: Mask, count: int) -> Mask:
    """The `count` messages of `left` with the highest scores; of equal ones the earlier."""
    rows = np.flatnonzero(left)
    ranked = rows[np.argsort(-measures.score[rows], kind="stable")]
    return _only(ranked[:count], len(left))


def _only(rows: npt.NDArray[np.int64], count: int) -> Mask:
    mask = np.zeros(count, np.bool_)
    mask[rows] = True
    return mask


def _steps(measures: Measures, criteria: Criteria) -> list[Step]:
    steps: list[Step] = []
    problems: list[str] = []
    for part in (_by_author, _by_channel, _by_time, _by_worth):
        try:
            steps += part(measures, criteria)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return steps


def _always(mask: Mask) -> Fits:
    return lambda _: mask


# Who and where ---------------------------------------------------------------------------------


def _by_author(measures: Measures, criteria: Criteria) -> list[Step]:
    if not (criteria.authors or criteria.without_authors):
        return []
    found = _groups(measures.frame, "author_id", "username", "author")
    people = [Named(it["author_id"], (it["username"], it["author"]), it["len"]) for it in found]
    ids = measures.frame["author_id"]
    steps: list[Step] = []
    if criteria.authors:
        steps.append(("by other people", _is_in(ids, people, criteria.authors, "--authors")))
    if criteria.without_authors:
        theirs = _is_in(ids, people, criteria.without_authors, "--without-authors")
        steps.append(("by people left out", lambda left: ~theirs(left)))
    return steps


def _by_channel(measures: Measures, criteria: Criteria) -> list[Step]:
    if not (criteria.channels or criteria.without_channels):
        return []
    found = _groups(measures.frame, "channel_id", "guild", "channel")
    rooms = [
        Named(it["channel_id"], (it["channel"], f"{it['guild']} / {it['channel']}"), it["len"])
        for it in found
    ]
    ids = measures.frame["channel_id"]
    steps: list[Step] = []
    if criteria.channels:
        steps.append(("in other channels", _is_in(ids, rooms, criteria.channels, "--channels")))
    if criteria.without_channels:
        there = _is_in(ids, rooms, criteria.without_channels, "--without-channels")
        steps.append(("in channels left out", lambda left: ~there(left)))
    return steps


def _groups(frame: pl.DataFrame, by: str, *names: str) -> list[dict[str, Any]]:
    """One entry an id, with its latest names and its number of messages (`len`)."""
    groups = frame.group_by(by, maintain_order=True).agg(pl.col(names).last(), pl.len())
    return groups.with_columns(pl.col(by, *names).cast(pl.String)).to_dicts()


def _is_in(ids: pl.Series, named: Sequence[Named], wanted: Sequence[str], option: str) -> Fits:
    """Those whose id is one of the wanted. Raises UserError with each that is not there."""
    words = {"nobody": "no channel", "several": "channels"} if "channel" in option else {}
    known = {name.casefold() for it in named for name in it.names}
    found: list[str] = []
    problems: list[str] = []
    for text in (part for it in wanted for part in _parted(it, known)):
        try:
            found.append(find_named(named, text, option, **words).id)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return _always(ids.cast(pl.String).is_in(found).to_numpy())


def _parted(text: str, known: set[str]) -> list[str]:
    """Names with commas between them, unless it is one name with a comma in it."""
    if text.strip().lstrip("@#").casefold() in known:
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()] or [text]


# When ------------------------------------------------------------------------------------------


def _by_time(measures: Measures, criteria: Criteria) -> list[Step]:
    if criteria.since is None and criteria.until is None:
        return []
    frame, zone = measures.frame, criteria.timezone
    times = frame["timestamp"].dt.epoch("us").to_numpy()
    steps: list[Step] = []
    if not frame["has_time"].all():
        steps.append(("no time of its own", _always(frame["has_time"].to_numpy())))
    since = until = None
    if criteria.since is not None:
        since, _ = moments(criteria.since, "--since", zone)
        steps.append((f"before {criteria.since}", _always(times >= since)))
    if criteria.until is not None:
        _, until = moments(criteria.until, "--until", zone)
        steps.append((f"after {criteria.until}", _always(times < until)))
    if since is not None and until is not None and since >= until:
        raise UserError("--since: is after --until; exchange the two.")
    return steps


def moments(text: str, option: str, zone: str) -> tuple[int, int]:
    """Begin and end of a day or a moment, in µs since 1970: what is in it is >= and <.

    Raises:
        UserError: it is no date.
    """
    try:
        try:
            day = datetime.combine(date.fromisoformat(text.strip()), time())
            return _in_utc(day, zone), _in_utc(day + timedelta(days=1), zone)
        except ValueError:
            begin = _in_utc(datetime.fromisoformat(text.strip()), zone)
            return begin, begin + 1
    except (ValueError, OverflowError):
        raise UserError(
            f"{option}: {text} is no date; write one such as 2024-05-01 or 2024-05-01T18:30."
        ) from None


def _in_utc(moment: datetime, zone: str) -> int:
    """Without a zone of its own a moment is one of `zone` (polars brings the zones along)."""
    if moment.tzinfo is not None:
        return to_microseconds(moment.astimezone(UTC))
    local = pl.Series([moment]).cast(pl.Datetime("us"))
    known = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    if known[0] is None:  # the clocks jumped over it
        return _in_utc(moment + timedelta(hours=1), zone)
    return int(known.dt.epoch("us")[0])


# What it is worth ------------------------------------------------------------------------------


def _by_worth(measures: Measures, criteria: Criteria) -> list[Step]:
    steps: list[Step] = []
    if criteria.drop_private:
        private = find_private_data(measures.frame["content"])["any"]
        steps.append(("private data", _always(~private)))
    if criteria.drop_near_duplicates:
        steps.append(("near duplicates", lambda left: _first_of_each(measures, left)))
    if criteria.min_quality is not None:
        good = measures.score >= criteria.min_quality
        steps.append((f"quality below {criteria.min_quality:g}", _always(good)))
    if criteria.picked is not None:
        ticked = _ticked(measures.frame["id"], criteria.picked, criteria.opted_out)
        steps.append(("not ticked", _always(ticked)))
    if criteria.best is not None:
        count = criteria.best
        steps.append((f"not among the best {count:,}", lambda left: best_of(measures, left, count)))
    return steps


def _first_of_each(measures: Measures, left: Mask) -> Mask:
    """Of long texts that say nearly the same the first that is left; short ones are no copies."""
    rows = np.flatnonzero(left)
    first = rows[first_of_each(measures.duplicates.group[rows])]
    return (measures.words.counts < FEWEST_WORDS) | _only(first, len(left))


def _ticked(ids: pl.Series, picked: frozenset[str], opted_out: int) -> Mask:
    unknown = _not_found(ids, picked)
    if len(unknown) > opted_out or len(unknown) == len(picked) > 0:
        raise UserError(
            f"--picked: {len(unknown):,} of {len(picked):,} ticked messages are not in the data "
            f"(the first: {unknown[0]}); name the data that the CSV was written from."
        )
    return ids.is_in(list(picked)).to_numpy()


def _not_found(ids: pl.Series, picked: frozenset[str]) -> pl.Series:
    ticked = pl.Series(sorted(picked), dtype=pl.String)
    return ticked.filter(~ticked.is_in(ids.implode()))
