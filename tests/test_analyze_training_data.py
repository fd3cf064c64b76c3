"""The script as people run it: what it prints, writes, imports, and how soon it answers."""

import json
import subprocess
import sys
import time

import pytest

from fakes import chatter, make_tokenizer, say
from run_scripts import ROOT, run_here, start, write_chat

SCRIPT = "scripts/analyze_training_data.py"
EXPORT = {
    "guild": {"id": "1", "name": "Tea House"},
    "channel": {"id": "5", "type": "GuildTextChat", "category": "", "name": "talk", "topic": None},
    "messages": [
        {
            "id": str(1100000000000000000 + (n << 30)),
            "type": "Default",
            "timestamp": f"2024-05-01T12:{n:02}:00+00:00",
            "timestampEdited": None,
            "content": "" if n == 7 else f"hello number {n}",
            "author": {"id": str(n % 2 + 1), "name": "ab"[n % 2], "nickname": "AB"[n % 2],
                       "isBot": n == 3},
            "attachments": [], "embeds": [], "reactions": [], "mentions": [],
        }
        for n in range(20)
    ],
    "messageCount": 20,
}  # fmt: skip


@pytest.fixture
def chat(tmp_path):
    return write_chat(tmp_path / "chat.jsonl", 60)


def seconds_of(*arguments):
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - began


def test_help_answers_at_once():
    nothing, help_ = zip(
        *((seconds_of("-c", "pass"), seconds_of(SCRIPT, "--help")) for _ in range(5)), strict=True
    )
    # 0.25 s where it was written, where a Python that does nothing took 0.02 s. A machine so
    # busy or slow that this takes 0.07 s is given more time.
    assert min(help_) < max(0.7, 10 * min(nothing))


def test_help_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "polars", "numpy", "tokenizers"}
    assert "--json" in done.stdout


def test_the_report_needs_no_torch_even_with_tokens(tmp_path, chat):
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    model = str(tmp_path / "tiny")
    options = ["--training-data-path", str(chat), "--base-model", model, "--no-plan"]
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[SCRIPT, *options]!r}\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "tokens of tiny" in done.stdout


def test_tokens_are_those_that_training_counts(tmp_path, chat, monkeypatch, capsys):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tiny")
    out = tmp_path / "report.json"
    assert not run_here(
        monkeypatch, SCRIPT, "--training-data-path", chat, "--base-model", tmp_path / "tiny",
        "--json", out,
    )  # fmt: skip
    texts = [message.content for message in chatter(60)]
    expected = [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    found = json.loads(out.read_bytes())["lengths"]["tokens"]
    assert (found["total"], found["longest"]) == (sum(expected), max(expected))


def test_exports_are_prepared_first_and_what_cleaning_dropped_is_told(
    tmp_path, monkeypatch, capsys
):
    export = tmp_path / "talk.json"
    export.write_text(json.dumps(EXPORT))
    out = tmp_path / "report.json"
    assert not run_here(monkeypatch, SCRIPT, export, "--no-tokens", "--json", out)
    shown = capsys.readouterr().out
    assert "exports: 20 read = 18 kept + 2 dropped" in shown
    source = json.loads(out.read_bytes())["source"]
    assert source["preparation"]["dropped"] == {"bot message": 1, "empty": 1}
    assert source["lines"] == source["messages"] == 18
    assert source["files"] == [str(export)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "talk.json"]


def test_the_account_of_the_preparation_is_shown(tmp_path, chat, monkeypatch, capsys):
    account = tmp_path / "account.json"
    account.write_text(json.dumps({"read": 9, "kept": 7, "dropped": {"empty": 2}, "rejects": 0}))
    options = ("--training-data-path", chat, "--no-tokens", "--account")
    assert not run_here(monkeypatch, SCRIPT, *options, account)
    assert "exports: 9 read = 7 kept + 2 dropped (empty 2)" in capsys.readouterr().out
    account.write_text("[]")
    assert run_here(monkeypatch, SCRIPT, *options, account) == 2
    assert "is no account" in capsys.readouterr().err


def test_the_account_beside_the_data_is_shown_as_long_as_it_is_theirs(
    tmp_path, monkeypatch, capsys
):
    export, data = tmp_path / "talk.json", tmp_path / "talk.jsonl"
    export.write_text(json.dumps(EXPORT))
    assert not run_here(monkeypatch, "scripts/prepare_training_data.py", export, "--out", data)
    options = ("--training-data-path", data, "--no-tokens")
    dropped = "exports: 20 read = 18 kept + 2 dropped"
    assert not run_here(monkeypatch, SCRIPT, *options)
    assert dropped in capsys.readouterr().out
    with data.open("ab") as stream:
        stream.write(data.read_bytes().splitlines()[0] + b"\n")
    assert not run_here(monkeypatch, SCRIPT, *options)
    assert dropped not in capsys.readouterr().out
    (tmp_path / "talk.account.json").write_text("[]")
    assert not run_here(monkeypatch, SCRIPT, *options)


def test_lines_left_out_are_counted_by_reason(tmp_path, chat, monkeypatch, capsys):
    with chat.open("ab") as stream:
        stream.write(b'{"content": ""}\nbroken\n')
        stream.write(chat.read_bytes().splitlines()[0] + b"\n")
    assert not run_here(monkeypatch, SCRIPT, "--training-data-path", chat, "--no-tokens")
    shown = capsys.readouterr().out
    assert "file: 63 read = 60 kept + 3 dropped (empty 1, duplicate id 1, unreadable 1)" in shown
    assert "line 62" in shown


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--timezone", "Mars"), "no time zone"),
        (("--explain", "nope"), "no message has the id nope"),
        (
            ("--json", "."),
            "cannot be written: it is a folder. Choose another place with --json FILE",
        ),
        (("--html", "."), "Choose another place with --html FILE"),
        (("--html", "chat.jsonl"), "chat.jsonl is used for something else"),
        (("--html", "x.html", "--json", "./x.html"), "x.html is used for something else"),
        (("--training-data-path", "gone.jsonl"), "There is no gone.jsonl"),
        (("gone-exports",), "There is no gone-exports"),
        (("--base-model", "./gone"), "there is no folder ./gone"),
    ],
)
def test_mistakes_are_told_in_a_sentence(chat, monkeypatch, capsys, tmp_path, options, problem):
    monkeypatch.chdir(tmp_path)
    tokens = () if "--base-model" in options else ("--no-tokens",)
    assert run_here(monkeypatch, SCRIPT, "--training-data-path", chat, *tokens, *options) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


def test_without_a_tokenizer_in_reach_everything_else_is_told(tmp_path, chat, monkeypatch, capsys):
    for model, problem in ((tmp_path, "has no tokenizer.json"), ("no/model", "cannot be fetched")):
        options = ("--training-data-path", chat, "--base-model", model)
        assert not run_here(monkeypatch, SCRIPT, *options)
        shown = capsys.readouterr().out
        assert "tokens are not counted" in shown
        assert problem in " ".join(shown.split())
        assert "60 messages in" in shown


def test_a_page_and_a_file_for_programs_are_written_and_named(tmp_path, chat, monkeypatch, capsys):
    page, figures = tmp_path / "report.html", tmp_path / "report.json"
    options = ("--training-data-path", chat, "--no-tokens", "--html", page, "--json", figures)
    assert not run_here(monkeypatch, SCRIPT, *options)
    shown = capsys.readouterr().out
    assert f"written: {page}" in shown
    assert f"written: {figures}" in shown
    assert json.loads(figures.read_bytes())["overview"]["messages"] == 60
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "Data report: 60 messages" in page.read_text(encoding="utf-8")


def test_explain_and_the_keys(chat, monkeypatch, capsys):
    options = ("--training-data-path", chat, "--no-tokens", "--explain", "m7")
    assert not run_here(monkeypatch, SCRIPT, *options)
    assert "message m7 by Bob in general: score" in capsys.readouterr().out
    assert not run_here(monkeypatch, SCRIPT, "--json-keys")
    assert "authors.top[].share" in capsys.readouterr().out


def test_a_cp1252_window_shows_everything(tmp_path):
    chat = write_chat(tmp_path / "chat.jsonl", people=("Zoë ✨", "Łukasz", "[b]"))
    process = start(SCRIPT, "--training-data-path", chat, "--no-tokens", PYTHONIOENCODING="cp1252")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "Zoë ?" in out.decode("cp1252")
    assert "[b]" in out.decode("cp1252")


def test_show_sample_marks_what_is_trained(tmp_path, chat, monkeypatch, capsys):
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    assert not run_here(
        monkeypatch, SCRIPT, "--training-data-path", chat, "--base-model", tmp_path / "tiny",
        "--show-sample", 1,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "optimizer steps an epoch" in shown
    assert ">>" in shown


def test_names_that_look_like_markup_reach_the_page_unharmed(tmp_path, monkeypatch, capsys):
    chat = write_chat(tmp_path / "chat.jsonl", people=("[red]Ann[/red]", "<b>Bo</b>"))
    assert not run_here(monkeypatch, SCRIPT, "--training-data-path", chat, "--no-tokens")
    shown = capsys.readouterr().out
    assert "[red]Ann[/red]" in shown
    assert "<b>Bo</b>" in shown
    assert say("Ann").author not in shown.split()
