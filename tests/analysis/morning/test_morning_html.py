"""The page for a browser: nothing that members or models wrote runs, and it stays small."""

import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest

from discord_lora.analysis.morning.history import append_event
from discord_lora.analysis.morning.morning_html import REPORT_FILE, as_html, write_report
from discord_lora.analysis.morning.morning_report import make_report
from discord_lora.console import UserError

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "'\"><svg/onload=document.title='owned'>",
    '" onmouseover="document.title=1" x="',
    "</style><style>*{display:none}</style>",
    "</title></bdi></table></main><h1>hi</h1>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:document.title='owned'",
    "&lt;b&gt;&#60;script&#62;",
    "<!-- ]]> <![CDATA[",
    "\u202eevil\u202c\u2067",
    "שלום עולם",
    "W" * 5_000,
    "a\u0301\u0302\u0303" * 40,
    "\x00\x1b[31m\x07",
)  # fmt: skip
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


class Page(HTMLParser):
    """Elements with their attributes in order, style, and text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.style, self.in_style = "", "", False
        self.feed(html.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.in_style = tag == "style" or (self.in_style and tag != "style")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.in_style = self.in_style and tag != "style"

    def handle_data(self, data):
        if self.in_style:
            self.style += data
        else:
            self.text += data

    @property
    def shape(self):
        return [(tag, list(attrs)) for tag, attrs in self.elements]


def night(word, count=1):
    """A whole night in which every text is `word`, of `count` checkpoints."""
    events = [
        {"kind": "plan", "run": word, "base_model": word, "voice": word, "hardware": word,
         "command": word, "label": word, "steps": 40, "seconds": 9.0, "peak_bytes": 9e9},
        {"kind": "start", "step": 0},
    ]  # fmt: skip
    for n in range(1, count + 1):
        step = n * 50
        answers = [{"prompt": word, "real": word, "answer": f"{word}{n}"}]
        events += [
            *({"kind": "step", "step": step - 50 + k, "loss": 3 - step / 10_000,
               "learning_rate": 1e-3, "celsius": 70, "watts": 200, "throttled": "heat",
               "messages_per_second": 4 + k / 50, "memory_bytes": 8e9} for k in range(50)),
            {"kind": "held_out", "step": step, "nats_per_token": 3 - n / 100, "messages": 9},
            {"kind": "answers", "step": step, "answers": answers},
            {"kind": "saved", "step": step, "seconds": 0.5},
        ]  # fmt: skip
    events += [
        {"kind": "incident", "step": 1, "what": word, "sentence": word},
        {"kind": "end", "outcome": "failed", "sentence": word, "next_command": word},
    ]
    return [{"time": 1.79e9 + n, **event} for n, event in enumerate(events)]


def page_of(word, count=3):
    return Page(as_html(make_report("run", night(word, count), 1.79e9 + 999)))


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_texts_change_nothing_but_words(word):
    tame, hostile = page_of("tame"), page_of(word)
    assert hostile.shape == tame.shape
    assert hostile.style == tame.style
    assert not set("\x00\x1b\x07\u202e\u202c\u2067") & set(hostile.text)
    if "script" in word:
        assert word in hostile.text


def test_nothing_is_loaded_and_nothing_may_run():
    page = page_of("tame")
    policy = [attrs["content"] for tag, attrs in page.elements if "http-equiv" in attrs]
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline';")
    for tag, attrs in page.elements:
        assert tag != "script"
        assert not {"style", "src"} & attrs.keys()
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|expression|https?:", page.style)
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {attrs["href"][1:] for _, attrs in page.elements if "href" in attrs} <= ids


def test_everything_is_on_the_page():
    text = " ".join(page_of("tame").text.split())
    for words in (
        "Failed at", "tame", "Loss over the steps", "lowest", "Temperature of the card",
        "Learning rate", "really said", "step 150", "150 of 150", "Power of the card",
    ):  # fmt: skip
        assert words in text, words
    assert "Messages of your members are in it" in text


def test_a_night_of_eighty_checkpoints_is_written_at_once_and_small(tmp_path):
    for event in night("word " * 20, 80):
        append_event(tmp_path, **event)
    write_report(tmp_path)
    began = time.perf_counter()
    path = write_report(tmp_path)
    # 0.1 s where it was written; the rest is for a busy machine.
    assert time.perf_counter() - began < 2
    assert path.stat().st_size < 150_000


def test_a_run_without_a_history_has_no_page(tmp_path):
    assert write_report(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_said(tmp_path):
    append_event(tmp_path, "start", step=0)
    (tmp_path / REPORT_FILE).mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path)


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium to look at the page with")
def test_a_real_browser_runs_nothing_and_needs_no_sideways_scrolling(tmp_path):
    events = [event for word in HOSTILE for event in night(word, 2)]
    (tmp_path / "page.html").write_bytes(as_html(make_report("run", events, 1.79e9 + 9_999)))
    # The page is looked at from outside, by a page that may run scripts.
    (tmp_path / "outside.html").write_text(
        "<iframe src=page.html width=390 height=900 style='border:0' onload=\"const it=this."
        "contentDocument;document.title=[it.documentElement.scrollWidth,it.title].join('|')\">"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         (tmp_path / "outside.html").as_uri()],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    width, _, name = title[1].partition("|")
    assert int(width) <= 390
    assert "owned" not in name
