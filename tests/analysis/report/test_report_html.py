"""The page for a browser: its figures are the report's, and nothing that people wrote runs."""

import re
import shutil
import subprocess
import time
import tomllib
from dataclasses import fields, replace
from fnmatch import fnmatch
from html.parser import HTMLParser

import pytest

from discord_lora.analysis.report.columns import MessageColumns, columns_of, read_columns
from discord_lora.analysis.report.data_report import Preparation
from discord_lora.analysis.report.findings import percent
from discord_lora.analysis.report.languages import _SCRIPTS, _SMALL_WORDS, NAMES
from discord_lora.analysis.report.measure import Options, make_report, measure
from discord_lora.analysis.report.quality import Quality
from discord_lora.analysis.report.report_html import MOST_MONTHS, PART_MEANINGS, as_html
from fakes import chatter, say
from run_scripts import ROOT

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "'\"><svg/onload=document.title='owned'>",
    '" onmouseover="document.title=1" x="',
    "</style><style>*{display:none}</style>",
    "</title></bdi></table><h1>hi</h1>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:document.title='owned'",
    "&lt;b&gt;&#60;script&#62;",
    "<!-- ]]> <![CDATA[",
    "\u202eevil\u202c",
    "שלום עולם",
    "مرحبا",
    "W" * 5_000,
    "a\u0301\u0302\u0303" * 40,
    "😀" * 40,
    "\x00\x1b[31m",
)  # fmt: skip
# What the templates consist of. A tag or attribute that is not here came from somewhere else.
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "nav",
    "div", "span", "p", "a", "h1", "h2", "h3", "ul", "li", "dl", "dt", "dd", "table", "thead",
    "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary", "code", "bdi", "svg",
    "rect", "line", "text", "path", "circle", "polyline",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "id", "href", "title", "scope",
    "role", "aria-hidden", "aria-label", "viewbox", "preserveaspectratio", "width", "height", "x",
    "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "d", "dy", "fill", "points", "text-anchor",
}  # fmt: skip
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


class Page(HTMLParser):
    """Elements in order, the style, all text, and the rows of the tables by section."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style = ""
        self.text = ""
        self.section = ""
        self.rows: dict[str, list[list[str]]] = {}
        self.tips: list[str] = []
        self.feed(html.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th", "dt", "dd"):
            self.rows.setdefault(self.section, [[]])[-1].append("")
        if tag == "title":
            self.tips.append("")
        if tag not in ("meta", "rect", "line", "path", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        if "style" in self.open:
            self.style += data
            return
        self.text += data
        if self.open[-1:] == ["title"]:
            self.tips[-1] += data
        elif {"td", "th", "dt", "dd"} & set(self.open) and self.rows.get(self.section, [[]])[-1]:
            self.rows[self.section][-1][-1] += data

    def row(self, section: str, name: str) -> list[str]:
        """The cells beside a name."""
        for cells in self.rows[section]:
            if cells and cells[0].split("\n")[0].strip() == name:
                return [cell.strip() for cell in cells[1:]]
        raise AssertionError(f"{name} is not in {section}: {self.rows[section]}")


def report_on(messages, **options):
    columns = MessageColumns(columns_of(messages))
    options = Options(**options)
    return make_report(columns, measure(columns, options), options)


def many(count=300):
    """Several people, channels, lengths, months, with links, repeats, reactions and an address."""
    texts = (
        "good morning to all of you here", "https://example.org", "who has seen the red lantern?",
        "und das ist nicht die Antwort auf die Frage", "mail me at ann@example.org", "!play song",
    )  # fmt: skip
    return [
        say(
            f"p{n % 7 * (n % 3)}",
            f"{texts[n % 6]}" if n % 4 else f"{texts[n % 6]} {n}",
            minute=97.0 * n * 10,
            id=str(n),
            channel=f"c{n % 3}",
            reactions=n % 5,
            reply_to=str(n - 1) if n % 6 == 1 else None,
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def report():
    return report_on(many(), preparation=Preparation(400, 300, {"empty": 90, "bot message": 10}, 2))


@pytest.fixture(scope="module")
def page(report):
    return Page(as_html(report))


def named(names, **changes):
    """Messages of authors, channels and a server that are called so."""
    return [
        replace(
            say(f"n{n}", text, minute=n, id=str(n), channel=f"c{n}"),
            author=name, channel=name, guild=changes.get("guild") or name,
        )
        for n, (name, text) in enumerate(zip(names, HOSTILE, strict=True))
    ]  # fmt: skip


def test_the_figures_are_those_of_the_report(report, page):
    for author in report.authors.top:
        assert page.row("people", author.name) == [
            f"{author.messages:,}", percent(author.share), f"{author.median_characters:,}",
            f"{author.mean_quality:.0f}",
        ]  # fmt: skip
    for channel in report.channels:
        assert page.row("channels", channel.name)[:3] == [
            f"{channel.messages:,}", percent(channel.share), f"{channel.authors:,}"
        ]  # fmt: skip
    content, repeats = report.content, report.duplicates
    for section, name, part in (
        ("content", "nothing but links", content.link_only),
        ("content", "bot commands", content.commands),
        ("content", "questions", content.questions),
        ("repeats", "said before, word for word", repeats.exact_repeats),
        ("answers", "got a reaction", report.engagement.with_reactions),
        ("answers", "reply to another", report.engagement.replies),
    ):
        assert part.messages
        assert page.row(section, name) == [f"{part.messages:,}", percent(part.share)]
    assert page.row("languages", "German (de)")[0] == str(report.languages.messages["de"])
    assert page.row("private", "email")[0] == str(report.private_data.kinds["email"])
    assert page.row("source", "dropped: empty") == ["90"]
    assert page.row("lengths", "characters")[1] == f"{report.lengths.characters.median:,}"


def test_the_charts_have_every_count(report, page):
    activity = report.activity
    for hour, count in enumerate(activity.hours):
        assert page.row("when", f"{hour}:00") == [f"{count:,}"]
        assert f"{hour}:00: {count:,} messages" in page.tips
    assert page.row("when", "Mon") == [f"{activity.weekdays[0]:,}"]
    for month in activity.months:
        assert page.row("when", month.month) == [f"{month.messages:,}"]
    for n, count in enumerate(report.quality.histogram):
        assert page.row("quality", f"{10 * n}–{10 * n + 10}") == [f"{count:,}"]


def test_findings_stand_first_with_their_level_in_a_word(report, page):
    text = " ".join(page.text.split())
    places = [text.index(" ".join(finding.sentence.split())) for finding in report.findings]
    assert places == sorted(places)
    assert places[-1] < text.index("wrote half, the first five")
    levels = [attrs["class"] for tag, attrs in page.elements if tag == "li"]
    assert levels == [f"finding {finding.level}" for finding in report.findings]
    for level in {finding.level for finding in report.findings}:
        assert level.capitalize() in text


@pytest.mark.parametrize("guild", ["", "<i>one</i>"])
def test_hostile_names_change_nothing_but_words(guild):
    tame = Page(as_html(report_on(named([f"name {n}" for n in range(len(HOSTILE))], guild=guild))))
    hostile = Page(as_html(report_on(named(HOSTILE, guild=guild))))
    shape = [(tag, list(attrs)) for tag, attrs in tame.elements]
    assert [(tag, list(attrs)) for tag, attrs in hostile.elements] == shape
    assert {tag for tag, _ in hostile.elements} <= TAGS
    assert {name for _, attrs in hostile.elements for name in attrs} <= ATTRIBUTES
    assert hostile.style == tame.style
    assert "<script>document.title='owned'</script>" in hostile.text
    assert not {"\x00", "\x1b", "\u202e"} & set(hostile.text)


def test_right_to_left_and_long_names_are_kept_in_their_place():
    html = as_html(report_on(named(HOSTILE)))
    names = [attrs for tag, attrs in Page(html).elements if tag == "bdi" and "title" in attrs]
    assert {"שלום עולם", "مرحبا", "W" * 300 + "…"} <= {attrs["title"] for attrs in names}
    assert {attrs["class"] for attrs in names} == {"name"}
    assert "W" * 1_100 not in html.decode()


def test_nothing_is_loaded_and_nothing_may_run(page):
    policy = [attrs for tag, attrs in page.elements if "http-equiv" in attrs]
    assert page.elements[3] == ("meta", policy[0])
    assert policy[0]["http-equiv"] == "Content-Security-Policy"
    assert policy[0]["content"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    for tag, attrs in page.elements:
        assert "style" not in attrs
        assert "src" not in attrs
        assert attrs.get("href", "#").startswith("#"), tag
    assert not re.search(r"url\(|@import|expression|https?:", page.style)
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {attrs["href"][1:] for _, attrs in page.elements if "href" in attrs} <= ids


def test_no_message_is_in_the_page():
    messages = [*many(60), say("Ann", "xylophone lies under the zeppelin", minute=9, id="z")]
    html = as_html(report_on(messages)).decode()
    assert "xylophone" not in html
    assert "lantern" not in html
    assert "ann@example.org" not in html


def test_a_single_message_makes_a_page():
    page = Page(as_html(report_on([say("Ann", "hi")])))
    assert page.row("people", "Ann")[0] == "1"
    assert "One author." in page.text
    assert "1 message" in page.tips[0]


def test_messages_without_a_time_make_a_page(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(f'{{"author": "Ann", "content": "hello {n}"}}\n' for n in range(5)))
    columns = read_columns(path)
    options = Options()
    made = make_report(columns, measure(columns, options), options)
    page = Page(as_html(made))
    assert made.activity is None
    assert "when" not in page.rows
    assert page.row("people", "Ann")[0] == "5"


def test_decades_are_shown_by_year():
    months = 2 * MOST_MONTHS
    messages = [say("Ann", f"hi {n}", minute=n * 30.4 * 1440, id=str(n)) for n in range(months)]
    made = report_on([*messages, *chatter(20)])
    page = Page(as_html(made))
    assert len(made.activity.months) > MOST_MONTHS
    last = made.activity.months[-1].month[:4]
    expected = sum(it.messages for it in made.activity.months if it.month.startswith(last))
    assert page.row("when", last) == [f"{expected:,}"]
    assert not any(cells[:1] == [f"{last}-01"] for cells in page.rows["when"])


def test_a_hundred_thousand_authors_make_a_small_page_soon():
    count = 100_000
    one = say("a", "hello there to you all")
    messages = [
        replace(one, id=str(n), author_id=str(n), author=f"<b>{n}", channel_id=str(n % 5_000))
        for n in range(count)
    ]
    made = report_on(messages)
    began = time.perf_counter()
    html = as_html(made)
    # 0.05 s where it was written; the rest is for a busy machine.
    assert time.perf_counter() - began < 2
    assert len(html) < 100_000
    text = " ".join(Page(html).text.split())
    assert "and 99,990 more with 99,990 messages" in text
    assert "and 4,984 more with 99,680 messages" in text


def test_everything_that_can_be_found_has_a_word():
    assert PART_MEANINGS.keys() == {part.name for part in fields(Quality)}
    assert NAMES.keys() == {*_SCRIPTS, *_SMALL_WORDS}


def test_an_installed_library_has_its_templates():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["discord_lora.pages"]
    folder = ROOT / "src" / "discord_lora" / "pages"
    others = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    assert others
    for path in others:
        assert any(fnmatch(path.name, pattern) for pattern in patterns), path


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to look at the page with")
def test_a_real_browser_runs_nothing_and_needs_no_sideways_scrolling(tmp_path):
    (tmp_path / "page.html").write_bytes(as_html(report_on(named(HOSTILE))))
    # The page is looked at from outside, by a page that may run scripts.
    (tmp_path / "outside.html").write_text(
        "<iframe src=page.html width=390 height=900 style='border:0' onload=\"const it=this."
        "contentDocument;document.title=[it.documentElement.scrollWidth,it.title].join('|')\">"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         (tmp_path / "outside.html").as_uri()],
        capture_output=True, text=True, encoding="utf-8", check=True, timeout=120,
    )  # fmt: skip
    width, title = re.search(r"<title>(\d+)\|([^<]*)</title>", done.stdout).groups()
    assert int(width) <= 390
    assert title == "Data report: 17 messages"
