"""One message under the magnifying glass: each part of its quality score, with the facts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from discord_lora.analysis.report.findings import percent
from discord_lora.analysis.report.measure import Measures
from discord_lora.analysis.report.quality import WEIGHTS
from discord_lora.console import UserError, printable

_MOST_CHARACTERS = 500


@dataclass(frozen=True)
class Explanation:
    """Why a message has the score that it has."""

    id: str
    author: str
    channel: str
    text: str
    score: float
    better_than: float
    """Share of the messages with a lower score."""

    parts: dict[str, float]
    facts: dict[str, str]
    """For each part what it was computed from."""


def explain(measures: Measures, message_id: str) -> Explanation:
    """Raises UserError when no message has this id."""
    row = measures.frame["id"].index_of(message_id)
    if row is None:
        raise UserError(f"--explain: no message has the id {message_id}; ids are in the data.")
    shown = measures.frame.select("content", "author", "channel", "reactions")
    message = shown.row(row, named=True)
    text = str(message["content"])
    words = int(measures.words.counts[row])
    talk, letters = measures.words.talk_characters[row], measures.words.letters[row]
    duplicates, replies = measures.duplicates, measures.engagement.replies
    bits = measures.words.surprise_bits()[row]
    repeated = duplicates.near_copies[row] > 1
    return Explanation(
        id=message_id,
        author=str(message["author"]),
        channel=str(message["channel"]),
        text=text,
        score=float(measures.score[row]),
        better_than=float(np.mean(measures.score < measures.score[row])),
        parts=measures.quality.parts_of(row),
        facts={
            "length": f"{len(text):,} characters",
            "information": f"{bits:.0f} bits of surprise in {words:,} words",
            "originality": f"the text is there {duplicates.copies[row]:,} times, "
            f"nearly the same {duplicates.near_copies[row]:,} times"
            + (", and this is the first" if repeated and duplicates.first[row] else ""),
            "own_words": f"{talk:,} of {len(text):,} characters are talk, {letters:,} of them "
            "letters",
            "engagement": f"{message['reactions']:,} reactions, {replies[row]:,} replies",
        },
    )


def print_explanations(console: Console, found: Iterable[Explanation]) -> None:
    """Print each; foreign text is never markup and never a terminal command."""
    for explanation in found:
        console.print()
        for line in lines(explanation):
            console.print(line, markup=False)


def lines(found: Explanation) -> Iterator[str]:
    """The explanation as plain lines."""
    text = printable(found.text)
    more = " ..." if len(text) > _MOST_CHARACTERS else ""
    yield (
        f"message {found.id} by {printable(found.author)} in {printable(found.channel)}: "
        f"score {found.score:.1f} of 100, better than {percent(found.better_than)}"
    )
    yield f"  {text[:_MOST_CHARACTERS]}{more}"
    for name, value in found.parts.items():
        weight = f"x {WEIGHTS[name]:.2f}" if name in WEIGHTS else "factor"
        yield f"  {name:12} {value:.2f}  {weight:6}  {found.facts[name]}"
    sums = " + ".join(f"{weight:.2f} x {found.parts[name]:.2f}" for name, weight in WEIGHTS.items())
    own, original = found.parts["own_words"], found.parts["originality"]
    yield f"  100 x {own:.2f} x {original:.2f} x ({sums}) = {found.score:.1f}"
