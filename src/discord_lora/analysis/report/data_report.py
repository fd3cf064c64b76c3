"""The data report as plain typed data: what the terminal page, the JSON file and HTML all show.

`as_json` writes it under the names of the fields; they are stable, and REPORT_FORMAT is raised
when one changes its meaning or goes. What each one means stands beside its type;
`documented_keys` lists them (analyze_training_data.py --json-keys).
Shares are from 0 to 1. Whatever is not known (no times, no tokens counted) is null.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args, get_origin, get_type_hints

import orjson

REPORT_FORMAT = 1


@dataclass(frozen=True)
class Distribution:
    """Percentiles by nearest rank: the smallest value that is not below p % of the values."""

    count: Annotated[int, "values"]
    total: Annotated[int, "their sum"]
    mean: Annotated[float, "their mean"]
    median: Annotated[int, "50th percentile"]
    p90: Annotated[int, "90th percentile"]
    p95: Annotated[int, "95th percentile"]
    p99: Annotated[int, "99th percentile"]
    longest: Annotated[int, "largest value"]


@dataclass(frozen=True)
class Part:
    messages: Annotated[int, "messages that are so"]
    share: Annotated[float, "of all messages; under learned of those"]


@dataclass(frozen=True)
class Preparation:
    """What prepare_training_data.py said about making the file."""

    read: Annotated[int, "messages in the exports, copies included"]
    kept: Annotated[int, "messages written; read = kept + all of dropped"]
    dropped: Annotated[dict[str, int], "messages by the reason why they were dropped"]
    unreadable: Annotated[int, "pieces of the exports that could not be read"]


@dataclass(frozen=True)
class Source:
    files: Annotated[list[str], "what was read"]
    lines: Annotated[int, "lines = messages + ready_conversations + unreadable + dropped"]
    messages: Annotated[int, "messages kept for this report"]
    dropped: Annotated[dict[str, int], "lines left out, by reason: empty, duplicate id"]
    unreadable: Annotated[int, "lines that could not be read"]
    ready_conversations: Annotated[int, "conversations that came ready-made (OpenAI, ShareGPT)"]
    remarks: Annotated[list[str], "sentences about what was not taken as it stands"]
    preparation: Annotated[Preparation | None, "from the exports' account; null when not known"]


@dataclass(frozen=True)
class Overview:
    messages: Annotated[int, "messages, or turns of ready conversations"]
    learned: Annotated[int, "of them with train = true; the others are context only"]
    by_bots: Annotated[int, "of them by bots"]
    conversations: Annotated[int, "as training groups them"]
    channels: Annotated[int, "channels and threads"]
    authors: Annotated[int, "people, by id"]
    first: Annotated[str | None, "ISO 8601 in --timezone; null when no message has a time"]
    last: Annotated[str | None, "ISO 8601 in --timezone"]
    days: Annotated[int | None, "calendar days there from the first to the last, both counted"]
    active_days: Annotated[int | None, "of them with a message"]
    without_time: Annotated[int, "messages whose time had to be made up"]


@dataclass(frozen=True)
class Author:
    id: Annotated[str, "author_id"]
    name: Annotated[str, "the name shown"]
    messages: Annotated[int, "messages by this author"]
    share: Annotated[float, "of all messages; under learned of those"]
    median_characters: Annotated[int, "median length of them"]
    mean_quality: Annotated[float, "mean quality score of them"]


@dataclass(frozen=True)
class Authors:
    count: Annotated[int, "people"]
    top1_share: Annotated[float, "share of the most active author"]
    top5_share: Annotated[float, "share of the five most active"]
    herfindahl: Annotated[float, "Herfindahl index, the sum of squared shares; 1 = one author"]
    effective: Annotated[float, "1 / herfindahl: so many equally active people are as varied"]
    gini: Annotated[float, "Gini coefficient of messages per author; 0 = all write as many"]
    half_by: Annotated[int, "how few authors wrote half of the messages"]
    top: Annotated[list[Author], "the most active first, at most 20"]


@dataclass(frozen=True)
class Lengths:
    characters: Annotated[Distribution, "characters of a message"]
    words: Annotated[Distribution, "words of a message, parted by blanks"]
    tokens: Annotated[Distribution | None, "tokens of the text alone; null when not counted"]
    tokenizer: Annotated[str | None, "the model whose tokens they are"]


@dataclass(frozen=True)
class Month:
    month: Annotated[str, "such as 2024-05; months without messages in between are there with 0"]
    messages: Annotated[int, "messages in it"]


@dataclass(frozen=True)
class Activity:
    timezone: Annotated[str, "the zone that hours, weekdays and months are of"]
    hours: Annotated[list[int], "messages from 0:00 to 23:59, 24 numbers"]
    weekdays: Annotated[list[int], "messages from Monday to Sunday, 7 numbers"]
    months: Annotated[list[Month], "messages by month, oldest first"]


@dataclass(frozen=True)
class Channel:
    id: Annotated[str, "channel_id"]
    guild: Annotated[str, "the server's name"]
    name: Annotated[str, "the channel's name"]
    messages: Annotated[int, "messages in it"]
    share: Annotated[float, "of all messages"]
    authors: Annotated[int, "people in it"]
    conversations: Annotated[int, "conversations in it"]
    mean_quality: Annotated[float, "mean quality score"]


@dataclass(frozen=True)
class Engagement:
    reactions: Annotated[int, "reactions in all"]
    with_reactions: Annotated[Part, "messages that got a reaction"]
    replies: Annotated[Part, "messages that reply to another by Discord's own reply"]
    replies_found: Annotated[int, "of them whose target is in the data"]
    with_replies: Annotated[Part, "messages that got such a reply"]
    first_reply_seconds: Annotated[Distribution | None, "to the first such reply by somebody else"]
    answer_seconds: Annotated[
        Distribution | None,
        "from a turn's end to the next person's message",
    ]
    conversation_messages: Annotated[Distribution, "messages of a conversation"]
    conversation_authors: Annotated[Distribution, "people in a conversation"]
    monologues: Annotated[int, "conversations with one person in them"]


@dataclass(frozen=True)
class Quality:
    score: Annotated[Distribution, "quality score of a message, from 0 to 100, rounded"]
    histogram: Annotated[list[int], "messages with a score of 0-10, 10-20, ... 90-100"]
    low: Annotated[Part, "messages with a score below 20"]
    mean_parts: Annotated[dict[str, float], "the mean of each part of the score, from 0 to 1"]


@dataclass(frozen=True)
class Duplicates:
    exact_repeats: Annotated[Part, "messages whose text was there before, short ones included"]
    long_repeats: Annotated[Part, "of those, texts of six words and more"]
    near_repeats: Annotated[Part, "six words and more, (nearly) the same as an earlier text"]
    copypasta: Annotated[Part, "messages with a text of 12 words or more that stands there 3 times"]
    copypasta_texts: Annotated[int, "how many different such texts"]
    largest: Annotated[list["Repeated"], "the texts with the most (near) copies, at most 10"]


@dataclass(frozen=True)
class Repeated:
    id: Annotated[str, "id of the oldest message with it"]
    copies: Annotated[int, "messages that have it, or nearly"]
    words: Annotated[int, "its length"]


@dataclass(frozen=True)
class Content:
    with_link: Annotated[Part, "messages with a link"]
    link_only: Annotated[Part, "messages that are nothing but links"]
    commands: Annotated[Part, "messages that start like a bot command: !play, /roll, $price"]
    with_code: Annotated[Part, "messages with a ``` block"]
    without_words: Annotated[Part, "neither links nor words: emoji, signs, numbers"]
    one_word: Annotated[Part, "messages of one word"]
    up_to_three_words: Annotated[Part, "messages of one to three words"]
    questions: Annotated[Part, "messages that end with a question mark"]


@dataclass(frozen=True)
class Languages:
    sample: Annotated[int, "messages looked at, evenly chosen"]
    messages: Annotated[dict[str, int], "of the sample, by ISO 639-1 code, and unclear"]
    shares: Annotated[dict[str, float], "shares of the messages that are clear"]


@dataclass(frozen=True)
class PrivateData:
    any: Annotated[Part, "messages that hold any of the kinds"]
    kinds: Annotated[dict[str, int], "messages by kind: email, phone_number, key_or_token, ..."]


@dataclass(frozen=True)
class Learned:
    """What is learned from, looked at alone: context is read and never imitated."""

    by_bots: Annotated[int, "messages by bots"]
    noise: Annotated[Part, "links alone, bot commands, (near) repeats of six words and more"]
    authors: Annotated[Authors, "who wrote them"]
    content: Annotated[Content, "what they consist of"]
    duplicates: Annotated[Duplicates, "texts that stand among them more than once"]
    languages: Annotated[Languages, "their languages"]
    tokens: Annotated[Distribution | None, "tokens of each; null when not counted"]
    private_data: Annotated[PrivateData, "counts of private data in them"]


@dataclass(frozen=True)
class Finding:
    key: Annotated[str, "stable name of the finding"]
    level: Annotated[Literal["good", "advice", "warning"], "good, advice or warning"]
    value: Annotated[float, "the figure that it stands on"]
    sentence: Annotated[str, "what it is, and what to do"]


@dataclass(frozen=True)
class DataReport:
    format: Annotated[int, "version of these keys"]
    source: Annotated[Source, "what was read, kept and dropped"]
    overview: Annotated[Overview, "how much there is"]
    authors: Annotated[Authors, "who wrote it"]
    lengths: Annotated[Lengths, "how long messages are"]
    activity: Annotated[Activity | None, "when; null when no message has a time"]
    channels: Annotated[list[Channel], "where, the busiest first"]
    engagement: Annotated[Engagement, "who reacts and answers"]
    quality: Annotated[Quality, "the quality score"]
    content: Annotated[Content, "what messages consist of"]
    duplicates: Annotated[Duplicates, "texts that stand there more than once"]
    languages: Annotated[Languages, "languages"]
    private_data: Annotated[PrivateData, "counts of private data, never the data"]
    learned: Annotated[
        Learned | None,
        "the messages to learn from alone, on which the findings stand; null when there are none",
    ]
    findings: Annotated[list[Finding], "what should change what you do, the gravest first"]


def as_json(report: DataReport) -> bytes:
    """The report as an indented JSON object."""
    return orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def documented_keys(kind: type = DataReport, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its path, such as `authors.top[].share`, and what it means."""
    for name, annotated in get_type_hints(kind, include_extras=True).items():
        hint, meaning = get_args(annotated)
        path = prefix + name + ("[]" if get_origin(hint) is list else "")
        yield path, meaning
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from documented_keys(cast(type, part), path + ".")
