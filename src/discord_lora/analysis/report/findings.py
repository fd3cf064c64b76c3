"""Sentences for the figures that should change what somebody does, and silence for the others."""

from collections.abc import Iterator

from discord_lora.analysis.report.data_report import (
    Authors,
    Content,
    DataReport,
    Duplicates,
    Finding,
    Learned,
)

_GRAVITY = {"warning": 0, "advice": 1, "good": 2}
LITTLE, SOME = 500, 2_000
"""Messages to learn from: below the first only a tone is learned, below the second little more."""

DOMINANT = 0.5
_NOISE = 0.05
_FILTERED_NOISE = 0.015
_FILTERED_SHORT = 0.10
_FEWEST_CLEAR, _FEWEST_OF_ONE = 50, 20
"""Messages that show a language, and of a single language, below which nothing is said of it."""

_FIRST_REPLIES = "2020-11"
"""When Discord began to have replies."""


def find(report: DataReport, max_seq_length: int) -> list[Finding]:
    """Everything worth saying, the gravest first.

    What stands in the messages is judged of those to learn from alone (`report.learned`): what a
    filter has made context is read and never imitated, and needs no advice any more.
    `max_seq_length` is where a message would be cut off, in tokens.
    """
    found = [
        *_amount(report),
        *_authors(report),
        *_noise(report),
        *_talk(report),
        *_long_messages(report, max_seq_length),
        *_languages(report),
        *_privacy(report),
        *_reading(report),
    ]
    return sorted(found, key=lambda finding: _GRAVITY[finding.level])


def percent(share: float) -> str:
    """A share as people write it: 61 %, 0.4 %, under 0.1 %."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return (
        f"{share:.1%}".replace("%", " %") if share < 0.0995 else f"{share:.0%}".replace("%", " %")
    )


def _whose(report: DataReport) -> str:
    """Behind a share of what is learned from, where there is more than that."""
    overview = report.overview
    return "" if overview.learned == overview.messages else " of the messages to learn from"


def _amount(report: DataReport) -> Iterator[Finding]:
    learned = report.overview.learned
    if learned < LITTLE:
        yield Finding(
            "very_little_data", "warning", learned,
            f"{learned:,} messages to learn from are very little: a model picks up a tone from "
            f"them and recites the rest. Export more channels, or a longer time.",
        )  # fmt: skip
    elif learned < SOME:
        yield Finding(
            "little_data", "advice", learned,
            f"{learned:,} messages to learn from are enough for a way of talking, not for what "
            "people know. More channels or a longer time help more than any setting.",
        )  # fmt: skip
    context = report.overview.messages - learned
    if context > report.overview.messages / 2:
        yield Finding(
            "mostly_context", "advice", context,
            f"{context:,} of {report.overview.messages:,} messages are context only (train: "
            "false): they are read and never imitated. If that is not meant, prepare anew.",
        )  # fmt: skip
    if report.learned and report.learned.by_bots:
        yield Finding(
            "bots", "advice", report.learned.by_bots,
            f"{report.learned.by_bots:,} messages to learn from are by bots, so the model learns "
            "to talk like them. prepare_training_data.py drops what bots say.",
        )  # fmt: skip


def _authors(report: DataReport) -> Iterator[Finding]:
    if report.authors.count == 1:
        yield Finding(
            "one_author", "warning", 1,
            f"Everything is by one author, {report.authors.top[0].name}: there is nobody to "
            "answer, so the model learns to talk and not to reply. Export the channels as the "
            "others see them, too.",
        )  # fmt: skip
    elif report.learned:
        yield from _concentration(report.learned.authors, _whose(report))


def _concentration(authors: Authors, whose: str) -> Iterator[Finding]:
    name = authors.top[0].name
    if authors.top1_share >= DOMINANT:
        yield Finding(
            "dominant_author", "advice", authors.top1_share,
            f"One author, {name}, wrote {percent(authors.top1_share)}{whose}. PERSONA={name} "
            "clones them; without it the server's voice is mostly theirs.",
        )  # fmt: skip
    elif authors.count > 10 and authors.top5_share >= DOMINANT:
        yield Finding(
            "few_authors", "advice", authors.top5_share,
            f"Five of {authors.count:,} people wrote {percent(authors.top5_share)}{whose}: the "
            f"server's voice will be mostly theirs (as varied as {authors.effective:.0f} equally "
            "active people).",
        )  # fmt: skip


def _noise(report: DataReport) -> Iterator[Finding]:
    if report.learned is None:
        return
    whose = _whose(report)
    pieces = [
        *_links_and_commands(report.learned.content, whose),
        *_repeats(report.learned.duplicates, whose),
    ]
    yield from pieces
    yield _noise_in_all(report.learned, whose, advised=bool(pieces))


def _links_and_commands(content: Content, whose: str) -> Iterator[Finding]:
    if content.link_only.share >= 0.02:
        yield Finding(
            "link_only", "advice", content.link_only.share,
            f"{percent(content.link_only.share)}{whose} are link-only: they teach posting links "
            "without a word. Leave them out, or prepare with --drop-links.",
        )  # fmt: skip
    if content.commands.share >= 0.01:
        yield Finding(
            "commands", "advice", content.commands.share,
            f"{percent(content.commands.share)}{whose} look like bot commands (!play): the bot "
            "would give them, too. Prepare with the prefixes of your bots (--command-prefixes).",
        )  # fmt: skip


def _repeats(repeats: Duplicates, whose: str) -> Iterator[Finding]:
    if repeats.near_repeats.share >= 0.02:
        of = whose or " of the messages"
        yield Finding(
            "near_repeats", "advice", repeats.near_repeats.share,
            f"{percent(repeats.near_repeats.share)}{of} say (nearly) word for word what an "
            "earlier one said: those sentences will be recited. Keep one of each: "
            "filter_training_data.py --drop-near-duplicates.",
        )  # fmt: skip
    if repeats.copypasta.share >= 0.005:
        yield Finding(
            "copypasta", "advice", repeats.copypasta.share,
            f"{repeats.copypasta.messages:,} messages are copies of {repeats.copypasta_texts:,} "
            "long texts (copypasta, rules, bot notices): keep one of each "
            "(filter_training_data.py --drop-near-duplicates).",
        )  # fmt: skip


def _noise_in_all(learned: Learned, whose: str, *, advised: bool) -> Finding:
    """What to do about all of it; `advised`: there is advice about some of it already."""
    noise, short = learned.noise.share, learned.content.up_to_three_words.share
    if not advised and noise <= _FILTERED_NOISE and short <= _FILTERED_SHORT:
        return Finding(
            "filtered_already", "good", noise,
            f"Your data looks filtered already ({percent(noise)} links alone, commands or repeats, "
            f"{percent(short)} of up to three words): use all of it and do not filter further.",
        )  # fmt: skip
    if noise <= _NOISE:
        return Finding(
            "clean", "good", noise,
            f"There is little to filter: {percent(noise)}{whose} are links alone, commands or "
            "repeats. Short messages are part of how people talk here: keep them.",
        )  # fmt: skip
    return Finding(
        "noisy", "advice", noise,
        f"{percent(noise)}{whose} are links alone, commands or repeats: training without them is "
        f"shorter and better (filter_training_data.py {_filter_options(learned)}).",
    )  # fmt: skip


def _filter_options(learned: Learned) -> str:
    """What leaves the noise out. Links alone and commands have a score of 0, repeats do not."""
    without_words = learned.content.link_only.share + learned.content.commands.share
    options = {
        "--min-quality 20": without_words,
        "--drop-near-duplicates": learned.duplicates.near_repeats.share,
    }
    return " ".join(option for option, share in options.items() if share > _FILTERED_NOISE)


def _talk(report: DataReport) -> Iterator[Finding]:
    talk, overview = report.engagement, report.overview
    alone = talk.monologues / talk.conversation_messages.count
    if overview.authors > 1 and alone >= 0.4:
        yield Finding(
            "monologues", "advice", alone,
            f"{percent(alone)} of the conversations have one person in them: nobody answers there. "
            "If answers are missing, export the other channels; if the server is slow, raise "
            "CONVERSATION_GAP_MINUTES.",
        )  # fmt: skip
    crowded = any(channel.authors > 2 for channel in report.channels)
    could_reply = overview.last is not None and overview.last >= _FIRST_REPLIES
    if crowded and could_reply and not talk.replies.messages:
        yield Finding(
            "no_replies", "advice", 0,
            "No message is marked as a reply: who answers whom is guessed from names and silence. "
            "A new export as JSON has the replies, which Discord knows since November 2020.",
        )  # fmt: skip


def _long_messages(report: DataReport, max_seq_length: int) -> Iterator[Finding]:
    long = report.learned and report.learned.tokens
    if long and long.p99 > max_seq_length:
        yield Finding(
            "long_messages", "advice", long.p99,
            f"One message in a hundred has more than {long.p99:,} tokens: what is longer than "
            f"MAX_SEQ_LENGTH={max_seq_length} is cut off.",
        )  # fmt: skip


def _languages(report: DataReport) -> Iterator[Finding]:
    if report.learned is None:
        return
    messages, shares = report.learned.languages.messages, report.learned.languages.shares
    if sum(messages[code] for code in shares) < _FEWEST_CLEAR:
        return
    known = [(code, share) for code, share in shares.items() if messages[code] >= _FEWEST_OF_ONE]
    ranked = sorted(known, key=lambda item: -item[1])
    if len(ranked) > 1 and ranked[1][1] >= 0.05:
        shown = ", ".join(f"{code} {percent(share)}" for code, share in ranked[:4])
        yield Finding(
            "several_languages", "advice", ranked[1][1],
            f"Several languages ({shown} of the messages that show one): choose a BASE_MODEL that "
            "speaks them, or leave out the channels of the others.",
        )  # fmt: skip
    elif ranked and ranked[0][0] != "en":
        yield Finding(
            "not_english", "advice", ranked[0][1],
            f"The language is {ranked[0][0]} ({percent(ranked[0][1])}): choose a BASE_MODEL that "
            "speaks it; most small ones know English only.",
        )  # fmt: skip


def _privacy(report: DataReport) -> Iterator[Finding]:
    private = report.learned and report.learned.private_data
    if private and private.any.messages:
        kinds = ", ".join(
            f"{kind.replace('_', ' ')} {count:,}" for kind, count in private.kinds.items() if count
        )
        secret = private.kinds["key_or_token"] + private.kinds["discord_token"]
        yield Finding(
            "private_data", "warning" if secret or private.kinds["password"] else "advice",
            private.any.messages,
            f"{private.any.messages:,}{_whose(report) or ' messages'} seem to hold private data "
            f"({kinds}). A model can repeat what it has learned: leave them out before anybody "
            "else talks to it (filter_training_data.py --drop-private).",
        )  # fmt: skip


def _reading(report: DataReport) -> Iterator[Finding]:
    source, overview = report.source, report.overview
    if source.unreadable:
        yield Finding(
            "unreadable", "warning", source.unreadable,
            f"{source.unreadable:,} of {source.lines:,} lines could not be read; the first are "
            "named under what was read.",
        )  # fmt: skip
    if overview.without_time and not source.ready_conversations:
        yield Finding(
            "no_times", "warning", overview.without_time,
            f"{overview.without_time:,} of {overview.messages:,} messages have no time: where a "
            "conversation ends cannot be seen there. Export as JSON, with dates.",
        )  # fmt: skip
