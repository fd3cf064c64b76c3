"""The terminal page, the sentences and --explain, also over what hostile people write."""

import io
import json
import random
from dataclasses import replace

import pytest
from rich.console import Console

from discord_lora.analysis.report import explain as explain_module
from discord_lora.analysis.report.columns import MessageColumns, columns_of
from discord_lora.analysis.report.data_report import as_json
from discord_lora.analysis.report.explain import explain
from discord_lora.analysis.report.measure import Options, make_report, measure
from discord_lora.analysis.report.report_page import WIDTH, print_page
from discord_lora.console import UserError
from fakes import chatter, say

HOSTILE = (
    "<script>alert(1)</script>", "[bold red]x[/bold red]", "[/]", "\x1b[31mred\x1b]0;title\x07",
    "\u202eevil\u202c", "שלום עולם", "مرحبا", "😀" * 40, "a" * 300, "\x00", "line\nbreak", "{}%s",
)  # fmt: skip


def made(messages, **options):
    columns = MessageColumns(columns_of(messages))
    options = Options(**options)
    measures = measure(columns, options)
    return measures, make_report(columns, measures, options)


def page(report, encoding="utf-8"):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="replace", newline="\n")
    print_page(Console(file=stream, width=WIDTH, highlight=False, force_terminal=False), report)
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.fixture(scope="module")
def hostile():
    messages = [
        say("x", text, minute=n, id=str(n), channel=name)
        for n, (text, name) in enumerate(zip(HOSTILE, HOSTILE, strict=True))
    ]
    return made([replace(m, author=m.channel, author_id=m.id) for m in messages])


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_hostile_names_are_shown_as_what_they_are(hostile, encoding):
    _, report = hostile
    shown = page(report, encoding)
    assert "[bold red]x[/bold red]" in shown
    assert "<script>alert(1)</script>" in shown
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(shown)
    assert {author.name for author in report.authors.top} == set(HOSTILE)


def test_hostile_names_stay_exact_and_escaped_in_the_json(hostile):
    raw = as_json(hostile[1])
    assert b"\x1b" not in raw
    assert b"\x00" not in raw
    assert {it["name"] for it in json.loads(raw)["authors"]["top"]} == set(HOSTILE)


def test_hostile_messages_are_explained_without_being_obeyed(hostile):
    measures, _ = hostile
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, highlight=False)
    explain_module.print_explanations(console, [explain(measures, str(n)) for n in range(12)])
    shown = stream.getvalue()
    assert not {"\x1b", "\x07", "\x00", "\u202e"} & set(shown)
    assert "[bold red]x[/bold red]" in shown


@pytest.mark.parametrize("count", [1, 60])
def test_the_page_keeps_to_80_columns_of_plain_characters(count):
    _, report = made(chatter(count))
    shown = page(report, "cp1252")
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert shown.isascii()


def test_the_busiest_month_may_be_an_old_one():
    month = 31 * 24 * 60
    old = [say("Ann", f"we talk of {n} things", minute=n, id=f"old{n}") for n in range(9)]
    later = [say("Bo", f"it is month {n}", minute=n * month, id=str(n)) for n in range(1, 80)]
    _, report = made([*old, *later])
    busiest = report.activity.months[0].month
    assert f"busiest {busiest} with 9" in " ".join(page(report).split())


def test_one_author_of_many_and_private_data_are_told_in_a_sentence():
    messages = [
        say("Ann" if n % 5 < 3 else f"p{n}", f"we talk of {n} things", minute=n, id=str(n))
        for n in range(50)
    ]
    _, report = made([*messages, say("Bo", "ann@example.org", minute=60)])
    sentences = {finding.key: finding.sentence for finding in report.findings}
    assert "One author, Ann, wrote 59 %" in sentences["dominant_author"]
    assert "1 messages seem to hold private data (email 1)" in sentences["private_data"]
    assert "ann@example.org" not in page(report)


def test_filtered_data_is_to_be_used_as_it_is():
    chance = random.Random(3)
    words = [f"{one}{two}" for one in ("sun", "moon", "rain", "hill") for two in ("a", "o", "ish")]
    messages = [
        say(f"p{n % 7}", " ".join([*chance.choices(words, k=7), f"x{n}"]), minute=n, id=str(n))
        for n in range(200)
    ]
    _, report = made(messages)
    sentences = {finding.key: finding.sentence for finding in report.findings}
    assert "use all of it and do not filter further" in sentences["filtered_already"]
    noisy = [say("Bo", f"https://example.org/{n}", minute=300 + n, id=f"l{n}") for n in range(100)]
    _, report = made([*messages, *noisy])
    sentences = {finding.key: finding.sentence for finding in report.findings}
    assert "33 % are link-only" in sentences["link_only"]
    assert "filtered_already" not in sentences


def test_findings_come_gravest_first():
    _, report = made([say("Ann", "password: tea", id="1"), say("Ann", "https://x.y", id="2")])
    levels = [finding.level for finding in report.findings]
    assert levels == sorted(levels, key=["warning", "advice", "good"].index)
    assert "warning" in levels


def test_explain_shows_each_part_with_its_facts():
    measures, _ = made([*chatter(20), say("Eve", "a samovar hums", id="e", minute=30, reactions=3)])
    found = explain(measures, "e")
    text = "\n".join(explain_module.lines(found))
    assert found.parts.keys() == found.facts.keys()
    for part in ("length", "information", "originality", "own_words", "engagement"):
        assert part in text
    assert "3 reactions" in text
    assert text.endswith(f"= {found.score:.1f}")
    with pytest.raises(UserError, match="no message has the id nope"):
        explain(measures, "nope")
