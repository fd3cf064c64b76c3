"""The data report as plain typed data: what the terminal page, the JSON file and HTML all show.

`as_json` writes it under the names of the fields; they are stable, and REPORT_FORMAT is raised
when one changes its meaning or goes. `documented_keys` lists them all with what they mean.
Shares are from 0 to 1. Whatever is not known (no times, no tokens counted) is null.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import orjson

REPORT_FORMAT = 1


def means(text: str) -> Any:
    """A field of the report with what it means."""
    return dataclasses.field(metadata={"means": text})


@dataclass(frozen=True)
class Distribution:
    """Percentiles by nearest rank: the smallest value that is not below p % of the values."""

    count: int = means("values")
    total: int = means("their sum")
    mean: float = means("their mean")
    median: int = means("50th percentile")
    p90: int = means("90th percentile")
    p95: int = means("95th percentile")
    p99: int = means("99th percentile")
    longest: int = means("largest value")


@dataclass(frozen=True)
class Part:
    messages: int = means("messages that are so")
    share: float = means("of all messages")


@dataclass(frozen=True)
class Preparation:
    """What prepare_training_data.py said about making the file."""

    read: int = means("messages in the exports, copies included")
    kept: int = means("messages written; read = kept + all of dropped")
    dropped: dict[str, int] = means("messages by the reason why they were dropped")
    unreadable: int = means("pieces of the exports that could not be read")


@dataclass(frozen=True)
class Source:
    files: list[str] = means("what was read")
    lines: int = means("lines or records; = messages + ready_conversations + unreadable + dropped")
    messages: int = means("messages kept for this report")
    dropped: dict[str, int] = means("lines left out, by reason: empty, duplicate id")
    unreadable: int = means("lines that could not be read")
    ready_conversations: int = means("conversations that came ready-made (OpenAI, ShareGPT)")
    remarks: list[str] = means("sentences about what was not taken as it stands")
    preparation: Preparation | None = means("from the exports' account; null when not known")


@dataclass(frozen=True)
class Overview:
    messages: int = means("messages, or turns of ready conversations")
    learned: int = means("of them with train = true; the others are context only")
    by_bots: int = means("of them by bots")
    conversations: int = means("as training groups them")
    channels: int = means("channels and threads")
    authors: int = means("people, by id")
    first: str | None = means("ISO 8601 in UTC; null when no message has a time")
    last: str | None = means("ISO 8601 in UTC")
    days: int | None = means("calendar days from the first to the last, both counted")
    active_days: int | None = means("of them with a message")
    without_time: int = means("messages whose time had to be made up")


@dataclass(frozen=True)
class Author:
    id: str = means("author_id")
    name: str = means("the name shown")
    messages: int = means("messages by this author")
    share: float = means("of all messages")
    median_characters: int = means("median length of them")
    mean_quality: float = means("mean quality score of them")


@dataclass(frozen=True)
class Authors:
    count: int = means("people")
    top1_share: float = means("share of the most active author")
    top5_share: float = means("share of the five most active")
    herfindahl: float = means("Herfindahl-Hirschman index: sum of squared shares; 1 = one author")
    effective: float = means("1 / herfindahl: as many equally active people would be as varied")
    gini: float = means("Gini coefficient of messages per author; 0 = all write the same number")
    half_by: int = means("how few authors wrote half of the messages")
    top: list[Author] = means("the most active first, at most 20")


@dataclass(frozen=True)
class Lengths:
    characters: Distribution = means("characters of a message")
    words: Distribution = means("words of a message, parted by blanks")
    tokens: Distribution | None = means("tokens of the text alone; null when not counted")
    tokenizer: str | None = means("the model whose tokens they are")


@dataclass(frozen=True)
class Month:
    month: str = means("such as 2024-05; months without messages in between are there with 0")
    messages: int = means("messages in it")


@dataclass(frozen=True)
class Activity:
    timezone: str = means("the zone that hours, weekdays and months are of")
    hours: list[int] = means("messages from 0:00 to 23:59, 24 numbers")
    weekdays: list[int] = means("messages from Monday to Sunday, 7 numbers")
    months: list[Month] = means("messages by month, oldest first")


@dataclass(frozen=True)
class Channel:
    id: str = means("channel_id")
    guild: str = means("the server's name")
    name: str = means("the channel's name")
    messages: int = means("messages in it")
    share: float = means("of all messages")
    authors: int = means("people in it")
    conversations: int = means("conversations in it")
    mean_quality: float = means("mean quality score")


@dataclass(frozen=True)
class Engagement:
    reactions: int = means("reactions in all")
    with_reactions: Part = means("messages that got a reaction")
    replies: Part = means("messages that reply to another by Discord's own reply")
    replies_found: int = means("of them whose target is in the data")
    with_replies: Part = means("messages that got such a reply")
    first_reply_seconds: Distribution | None = means(
        "from a message to the first such reply by somebody else"
    )
    answer_seconds: Distribution | None = means(
        "from the end of a turn to the next message of the conversation by somebody else"
    )
    conversation_messages: Distribution = means("messages of a conversation")
    conversation_authors: Distribution = means("people in a conversation")
    monologues: int = means("conversations with one person in them")


@dataclass(frozen=True)
class Quality:
    score: Distribution = means("quality score of a message, from 0 to 100, rounded")
    histogram: list[int] = means("messages with a score of 0-10, 10-20, ... 90-100")
    low: Part = means("messages with a score below 20")
    mean_parts: dict[str, float] = means("the mean of each part of the score, from 0 to 1")


@dataclass(frozen=True)
class Duplicates:
    exact_repeats: Part = means("messages whose text was there before, short ones included")
    long_repeats: Part = means("of those, texts of six words and more")
    near_repeats: Part = means("six words and more, (nearly) the same as an earlier text")
    copypasta: Part = means("messages with a text of 12 words or more that stands there 3 times")
    copypasta_texts: int = means("how many different such texts")
    largest: list["Repeated"] = means("the texts with the most (near) copies, at most 10")


@dataclass(frozen=True)
class Repeated:
    id: str = means("id of the oldest message with it")
    copies: int = means("messages that have it, or nearly")
    words: int = means("its length")


@dataclass(frozen=True)
class Content:
    with_link: Part = means("messages with a link")
    link_only: Part = means("messages that are nothing but links")
    commands: Part = means("messages that start like a bot command: !play, /roll, $price")
    with_code: Part = means("messages with a ``` block")
    without_words: Part = means("neither links nor words: emoji, signs, numbers")
    one_word: Part = means("messages of one word")
    up_to_three_words: Part = means("messages of one to three words")
    questions: Part = means("messages that end with a question mark")


@dataclass(frozen=True)
class Languages:
    sample: int = means("messages looked at, evenly chosen")
    messages: dict[str, int] = means("of the sample, by ISO 639-1 code, and unclear")
    shares: dict[str, float] = means("shares of the messages that are clear")


@dataclass(frozen=True)
class PrivateData:
    any: Part = means("messages that hold any of the kinds")
    kinds: dict[str, int] = means("messages by kind: email, phone_number, key_or_token, ...")


@dataclass(frozen=True)
class Finding:
    key: str = means("stable name of the finding")
    level: Literal["good", "advice", "warning"] = means("good, advice or warning")
    value: float = means("the figure that it stands on")
    sentence: str = means("what it is, and what to do")


@dataclass(frozen=True)
class DataReport:
    format: int = means("version of these keys")
    source: Source = means("what was read, kept and dropped")
    overview: Overview = means("how much there is")
    authors: Authors = means("who wrote it")
    lengths: Lengths = means("how long messages are")
    activity: Activity | None = means("when; null when no message has a time")
    channels: list[Channel] = means("where, the busiest first")
    engagement: Engagement = means("who reacts and answers")
    quality: Quality = means("the quality score")
    content: Content = means("what messages consist of")
    duplicates: Duplicates = means("texts that stand there more than once")
    languages: Languages = means("languages")
    private_data: PrivateData = means("counts of private data, never the data")
    findings: list[Finding] = means("what should change what you do, the gravest first")


def as_json(report: DataReport) -> bytes:
    """The report as an indented JSON object."""
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def documented_keys(kind: type = DataReport, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its path, such as `authors.top[].share`, and what it means."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, path = hints[field.name], prefix + field.name
        if get_origin(hint) is list:
            path += "[]"
        yield path, field.metadata["means"]
        inner = [it for it in (hint, *get_args(hint)) if dataclasses.is_dataclass(it)]
        for part in inner:
            yield from documented_keys(part, path + ".")  # type: ignore[arg-type]
