"""The report's figures equal a computation of their own in plain Python over the same file."""

import json
import os
import statistics
import sys
from collections import Counter, defaultdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from discord_lora.analysis.report.columns import MessageColumns, columns_of, read_columns
from discord_lora.analysis.report.data_report import as_json, documented_keys
from discord_lora.analysis.report.measure import Options, make_report, measure
from discord_lora.analysis.report.report_files import prepare_aside
from discord_lora.console import make_console
from discord_lora.conversations.build import build_conversations
from discord_lora.messages.training_data import read_training_data
from fakes import chatter, say
from run_scripts import write_chat

PYSCRIPT = Path(__file__).resolve().parents[4] / "shared" / "data" / "pyscript"
ZONE = "America/New_York"


def report_of(path, **options):
    columns = read_columns(path)
    options = Options(timezone=ZONE, **options)
    return make_report(columns, measure(columns, options), options)


def report_on(*messages, **options):
    columns = MessageColumns(columns_of(messages))
    options = Options(**options)
    return make_report(columns, measure(columns, options), options)


@pytest.fixture(scope="module", params=["pyscript", "invented"])
def data(request, tmp_path_factory):
    """A file, the report on it, and its lines as plain Python sees them."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "invented":
        path = write_chat(folder / "chat.jsonl", 400)
    else:
        if not PYSCRIPT.is_dir():
            pytest.skip("the shared pyscript chat is not beside this repository")
        path, _ = prepare_aside((PYSCRIPT,), folder, make_console(quiet=True))
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return path, report_of(path), rows


def rank(values, percent):
    """Nearest rank, by counting."""
    ordered = sorted(values)
    return next(v for n, v in enumerate(ordered, 1) if 100 * n >= percent * len(ordered))


def assert_distribution(found, values):
    assert (found.count, found.total, found.longest) == (len(values), sum(values), max(values))
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.median == statistics.median_low(values)
    for percent, value in ((90, found.p90), (95, found.p95), (99, found.p99)):
        assert value == rank(values, percent)


def test_lengths(data):
    _, report, rows = data
    assert_distribution(report.lengths.characters, [len(row["content"]) for row in rows])
    assert_distribution(report.lengths.words, [len(row["content"].split()) for row in rows])
    assert report.lengths.tokens is None


def test_people(data):
    _, report, rows = data
    counts = Counter(row["author_id"] for row in rows)
    total, authors = len(rows), report.authors
    by_size = sorted(counts.values(), reverse=True)
    assert authors.count == report.overview.authors == len(counts)
    assert authors.top1_share == pytest.approx(by_size[0] / total)
    assert authors.top5_share == pytest.approx(sum(by_size[:5]) / total)
    assert authors.herfindahl == pytest.approx(sum((n / total) ** 2 for n in by_size))
    pairs = sum(abs(a - b) for a in by_size for b in by_size)
    assert authors.gini == pytest.approx(pairs / (2 * len(by_size) * total))
    assert sum(by_size[: authors.half_by]) >= total / 2 > sum(by_size[: authors.half_by - 1])
    for author in authors.top:
        own = [len(row["content"]) for row in rows if row["author_id"] == author.id]
        assert (author.messages, author.median_characters) == (len(own), statistics.median_low(own))


def test_time_and_channels(data):
    _, report, rows = data
    times = [datetime.fromisoformat(row["timestamp"]) for row in rows]
    local = [moment.astimezone(ZoneInfo(ZONE)) for moment in times]
    hours, days = Counter(m.hour for m in local), Counter(m.weekday() for m in local)
    months = Counter(f"{m:%Y-%m}" for m in local)
    assert report.activity.hours == [hours[hour] for hour in range(24)]
    assert report.activity.weekdays == [days[day] for day in range(7)]
    assert {it.month: it.messages for it in report.activity.months if it.messages} == months
    overview = report.overview
    for text, moment in ((overview.first, min(local)), (overview.last, max(local))):
        said = datetime.fromisoformat(text)
        assert (said, said.utcoffset()) == (moment, moment.utcoffset())
    assert overview.days == (max(local).date() - min(local).date()).days + 1
    assert overview.active_days == len({moment.date() for moment in local})
    channels = Counter(row["channel_id"] for row in rows)
    assert {it.id: it.messages for it in report.channels} == channels
    for channel in report.channels[:5]:
        people = {row["author_id"] for row in rows if row["channel_id"] == channel.id}
        assert channel.authors == len(people)


def test_answers(data):
    path, report, rows = data
    talk, by_id = report.engagement, {row["id"]: row for row in rows}
    answered = [row for row in rows if row["reply_to"] in by_id]
    assert talk.replies.messages == sum(row["reply_to"] is not None for row in rows)
    assert talk.replies_found == len(answered)
    assert talk.with_replies.messages == len({row["reply_to"] for row in answered})
    assert talk.reactions == sum(row["reactions"] for row in rows)
    assert talk.with_reactions.messages == sum(row["reactions"] > 0 for row in rows)
    first = {}
    for row in answered:
        target = by_id[row["reply_to"]]
        after = datetime.fromisoformat(row["timestamp"]) - datetime.fromisoformat(
            target["timestamp"]
        )
        if row["author_id"] != target["author_id"] and after.total_seconds() >= 0:
            first[target["id"]] = min(first.get(target["id"], after), after)
    if first:
        waits = [int(wait.total_seconds()) for wait in first.values()]
        assert_distribution(talk.first_reply_seconds, waits)
    conversations = build_conversations(read_training_data(path).messages, 30)
    own = [it.messages[it.quoted :] for it in conversations]
    assert_distribution(talk.conversation_messages, [len(it) for it in own])
    people = [len({message.author_id for message in it}) for it in own]
    assert_distribution(talk.conversation_authors, people)
    assert talk.monologues == people.count(1)
    waits = [
        int((later.timestamp - earlier.timestamp).total_seconds())
        for messages in own
        for earlier, later in pairwise(messages)
        if later.author_id != earlier.author_id
    ]
    assert_distribution(talk.answer_seconds, waits)


def test_repeats(data):
    _, report, rows = data
    texts = Counter(row["content"].lower().strip() for row in rows)
    repeats = sum(texts.values()) - len(texts)
    assert report.duplicates.exact_repeats.messages == repeats
    assert report.duplicates.near_repeats.messages >= report.duplicates.long_repeats.messages


def test_everything_adds_up(data):
    _, report, rows = data
    source, count = report.source, len(rows)
    assert source.lines == source.messages + source.unreadable + sum(source.dropped.values())
    assert sum(report.quality.histogram) == report.quality.score.count == count
    assert sum(channel.messages for channel in report.channels) == count
    assert (
        sum(channel.conversations for channel in report.channels) == report.overview.conversations
    )
    assert sum(channel.share for channel in report.channels) == pytest.approx(1)
    assert sum(report.languages.messages.values()) == report.languages.sample
    assert report.overview.learned == sum(row["train"] for row in rows)


def test_tokens_are_counted_by_the_function_that_is_given():
    messages = chatter(30)
    report = report_on(
        *messages, tokenizer="x", count_tokens=lambda texts: texts.str.len_bytes().to_numpy() * 2
    )
    assert_distribution(report.lengths.tokens, [2 * len(m.content.encode()) for m in messages])
    assert report.lengths.tokenizer == "x"


def test_the_json_has_exactly_the_documented_keys():
    def paths(value, prefix=""):
        for key, inner in value.items():
            path = prefix + key + ("[]" if isinstance(inner, list) else "")
            yield path
            items = inner if isinstance(inner, list) else [inner]
            for item in items:
                if isinstance(item, dict) and path not in free:
                    yield from paths(item, path + ".")

    free = {"source.dropped", "source.preparation.dropped", "quality.mean_parts",
            "languages.messages", "languages.shares", "private_data.kinds",
            "learned.languages.messages",
            "learned.languages.shares", "learned.private_data.kinds"}  # fmt: skip
    report = report_on(
        *chatter(60), say("Eve", "one two three four five six seven", id="a", minute=99),
        say("Eve", "one two three four five six seven", id="b", minute=100),
        say("Ada", "and?", id="c", reply_to="b", minute=101),
        count_tokens=lambda texts: texts.str.len_bytes().to_numpy(), tokenizer="x",
    )  # fmt: skip
    documented = {path for path, _ in documented_keys()}
    found = set(paths(json.loads(as_json(report))))
    optional = {path for path in documented if path.startswith("source.preparation.")}
    assert found == documented - optional


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_file_name_that_is_no_text_can_be_written(tmp_path):
    path = tmp_path / os.fsdecode(b"chat\xff.jsonl")
    write_chat(path, 20)
    with path.open("a") as stream:
        stream.write("[broken\n")
    found = json.loads(as_json(report_of(path, files=(path,))))["source"]
    assert found["files"] == [str(tmp_path / "chat?.jsonl")]
    assert "chat?.jsonl, line 21" in found["remarks"][0]


def test_one_message_gives_a_whole_report():
    report = report_on(say("Ada", "hi"))
    assert report.authors.herfindahl == report.authors.top1_share == 1
    assert report.authors.gini == 0
    assert report.engagement.answer_seconds is None
    assert {finding.key for finding in report.findings} >= {"one_author", "very_little_data"}


def test_messages_without_times_have_no_activity(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join('{"content": "hey", "user": "Ann"}' for _ in range(5)))
    report = report_of(path)
    assert report.activity is None
    assert (report.overview.first, report.overview.days) == (None, None)
    assert report.overview.without_time == 5
    assert report.engagement.answer_seconds is None
    assert "no_times" in {finding.key for finding in report.findings}


def test_ready_conversations_are_reported_turn_by_turn(tmp_path):
    path = tmp_path / "ready.jsonl"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]
    path.write_text("\n".join([json.dumps({"messages": talk})] * 3))
    report = report_of(path)
    assert (report.overview.messages, report.overview.conversations) == (6, 3)
    assert report.overview.learned == 3
    assert report.source.lines == report.source.ready_conversations == 3


def test_a_hundred_thousand_authors():
    import polars as pl

    base = columns_of([say("Ada", "hello there my friend")])
    numbers = [str(n) for n in range(100_000)]
    frame = pl.concat([base] * 100_000).with_columns(
        pl.Series("id", numbers),
        pl.Series("author_id", numbers).cast(pl.Categorical),
        pl.Series("author", numbers).cast(pl.Categorical),
    )
    columns = MessageColumns(frame)
    report = make_report(columns, measure(columns, Options()), Options())
    assert report.authors.count == 100_000
    assert report.authors.effective == pytest.approx(100_000)
    assert report.authors.gini == pytest.approx(0, abs=1e-9)
    assert len(report.authors.top) == 20


def test_absurd_reaction_counts_neither_wrap_nor_break_the_score():
    messages = [
        say("Ada", f"number {n}", minute=n, id=str(n), reactions=9 * 10**17) for n in range(30)
    ]
    report = report_on(*messages)
    assert report.engagement.reactions == 2**53
    assert 0 <= report.quality.score.median <= 100


def test_engagement_is_relative_to_the_channel():
    def talk(channel, reactions):
        return [
            say("Ada", f"number {n} of them", channel=channel, minute=n, reactions=reactions)
            for n in range(9)
        ]

    loud, quiet = talk("loud", 9), talk("quiet", 0)
    star = say("Ada", "number 10 of some here", channel="quiet", minute=10, id="s", reactions=9)
    columns = MessageColumns(columns_of([*loud, *quiet, star]))
    engagement = measure(columns, Options()).quality.engagement
    assert engagement[18] > engagement[0] > engagement[9] == 0.5


def test_all_sums_by_hand_of_a_small_talk():
    messages = [
        say("Ada", "What do you think?", id="1", minute=0, reactions=2),
        say("Bob", "https://example.org/x", id="2", minute=1, reply_to="1"),
        say("Ada", "!play song", id="3", minute=2),
        say("Cy", "😂", id="4", minute=3),
        say("Cy", "mail me: cy@example.org", id="5", minute=90, is_bot=True, train=False),
        say("Bob", "bob@example.org", id="6", minute=91, is_bot=True),
    ]
    report = report_on(*messages)
    content = report.content
    assert (content.with_link.messages, content.link_only.messages) == (1, 1)
    assert (content.commands.messages, content.without_words.messages) == (1, 1)
    assert content.questions.messages == 1
    assert report.private_data.kinds["email"] == report.private_data.any.messages == 2
    assert (report.overview.by_bots, report.overview.learned) == (2, 5)
    assert report.learned.private_data.kinds["email"] == report.learned.by_bots == 1
    assert (report.learned.noise.messages, report.learned.noise.share) == (2, 2 / 5)
    assert report.overview.conversations == 2
    assert report.engagement.first_reply_seconds.median == 60
    counts = defaultdict(int)
    for finding in report.findings:
        counts[finding.key] += 1
    assert {"link_only", "commands", "bots", "private_data"} <= counts.keys()
    assert set(counts.values()) == {1}
