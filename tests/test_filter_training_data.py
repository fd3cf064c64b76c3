"""The filter as people run it, and that training then learns exactly what was chosen."""

import csv
import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from discord_lora.conversations.build import build_conversations
from discord_lora.conversations.dataset import make_dataset
from discord_lora.messages.prepare import PrepareOptions, prepare
from discord_lora.messages.training_data import read_training_data, write_line
from discord_lora.settings import Settings
from discord_lora.typed_command import quoted
from fakes import chatter, contents, make_tokenizer, say
from run_scripts import ROOT, run_here, start, tiny_model_folder, write_chat

WORDS = "we walked along the river until evening and nobody said much about".split()  # noqa: SIM905
SCRIPT = "scripts/filter_training_data.py"
PYSCRIPT = ROOT.parent / "shared" / "data" / "pyscript"


@pytest.fixture(params=["invented", "pyscript"])
def chat(request, tmp_path):
    """Training data of several channels and people, with replies and context."""
    path = tmp_path / "chat.jsonl"
    if request.param == "pyscript":
        if not PYSCRIPT.is_dir():
            pytest.skip("the shared pyscript chat is not beside this repository")
        prepare(PrepareOptions((PYSCRIPT,), path, skip=frozenset({"bots"})))
        return path
    with path.open("wb") as stream:
        for number, message in enumerate(chatter(400)):
            room = "tea" if number // 20 % 2 else "chess"
            answered = f"m{number - 3}" if number % 9 == 5 else None
            write_line(stream, replace(message, channel_id=room, channel=room, reply_to=answered,
                                       train=number % 11 != 3))  # fmt: skip
    return path


def run(monkeypatch, path, *options):
    """Where the result is."""
    assert not run_here(monkeypatch, SCRIPT, path, *options)
    return path.with_name(f"{path.stem}.filtered.jsonl")


def shown_counts(text):
    """The table of where each message went: name -> messages."""
    lines = text[text.index("where each message went") :].splitlines()[1:]
    cells = [line.rsplit(maxsplit=1) for line in lines]
    end = next(n for n, it in enumerate(cells) if it[0] == "together")
    return {name.strip(): int(count.replace(",", "")) for name, count in cells[: end + 1]}


CHOICES = [
    ["--best", "60"],
    ["--min-quality", "25", "--drop-near-duplicates"],
    ["--best", "1"],
]


@pytest.mark.parametrize("options", CHOICES, ids=" ".join)
def test_training_learns_exactly_what_was_chosen(chat, monkeypatch, capsys, options):
    out = run(monkeypatch, chat, *options)
    before, after = read_training_data(chat).messages, read_training_data(out).messages
    chosen = {message.id for message in after if message.train}
    counts = shown_counts(capsys.readouterr().out)
    assert counts["chosen"] == len(chosen) > 0
    assert counts.pop("together") == sum(counts.values()) == len(before)
    # Nothing changed but the flag, and what was context stayed so.
    assert [replace(message, train=True) for message in after] == [
        replace(message, train=True) for message in before
    ]
    assert chosen <= {message.id for message in before if message.train}

    tokenizer = make_tokenizer()
    settings = Settings(validation_fraction=0.1, max_validation_messages=0, max_seq_length=512)
    dataset = make_dataset(read_training_data(out), settings, tokenizer)
    examples = [*dataset.training_examples, *dataset.validation_examples]
    learned = [message_id for example in examples for message_id in example.message_ids]
    assert Counter(learned) == Counter(chosen)
    # The tokens that the loss is on spell the chosen messages, each to its end of turn.
    texts = {message.id: message.content for message in after}
    whole = [example for example in examples if len(example) < settings.max_seq_length]
    assert whole
    for example in whole:
        spelled = tokenizer.decode(example.input_ids[example.trained].tolist())
        *parts, behind = spelled.split(tokenizer.eos_token)
        expected = [texts[message_id] for message_id in example.message_ids]
        assert [part.strip() for part in parts] == [text.strip() for text in expected]
        assert not behind


def test_what_is_left_out_is_still_read_as_context(chat, monkeypatch, capsys):
    out = run(monkeypatch, chat, "--best", "60")
    before = build_conversations(read_training_data(chat).messages, 30)
    after = build_conversations(read_training_data(out).messages, 30)
    assert [contents(it.messages) for it in after] == [contents(it.messages) for it in before]

    tokenizer = make_tokenizer()
    settings = Settings(validation_fraction=0, max_seq_length=2048, context_tokens=64)
    dataset = make_dataset(read_training_data(out), settings, tokenizer)
    conversations = {it.id: it.messages for it in after}
    read_only = 0
    for example in dataset.training_examples:
        messages = conversations[example.conversation_id]
        places = [n for n, message in enumerate(messages) if message.id in example.message_ids]
        read = tokenizer.decode(example.input_ids.tolist())
        # What the first one answers, and everything up to the last.
        for message in messages[max(0, places[0] - 1) : places[-1] + 1]:
            assert message.content.strip() in read or len(example) == settings.max_seq_length
            read_only += message.id not in example.message_ids
    assert read_only > 5


def test_removed_messages_are_gone_and_replies_to_them_do_no_harm(chat, monkeypatch, capsys):
    before = read_training_data(chat).messages
    out = run(monkeypatch, chat, "--best", "60", "--remove")
    after = read_training_data(out).messages
    left = {message.id for message in after}
    assert len([m for m in after if m.train]) == 60
    assert [m for m in before if m.id in left] == after
    assert {m.id for m in before if not m.train} <= left
    assert sum(message.reply_to is not None and message.reply_to not in left for message in after)
    settings = Settings(validation_fraction=0.1, max_validation_messages=0, max_seq_length=512)
    dataset = make_dataset(read_training_data(out), settings, make_tokenizer())
    examples = [*dataset.training_examples, *dataset.validation_examples]
    assert sum(example.targets for example in examples) == 60


def test_the_training_script_counts_what_was_chosen(tmp_path, monkeypatch, capsys):
    path = write_chat(tmp_path / "chat.jsonl", 80)
    out = run(monkeypatch, path, "--authors", "Ada,Bob", "--best", "30")
    model = tiny_model_folder(tmp_path)
    assert not run_here(
        monkeypatch, "training/train_lora.py", "--training-data-path", out, "--base-model", model,
        "--output-dir", tmp_path / "adapters", "--logs-dir", tmp_path / "logs", "--epochs", "1",
        "--validation-fraction", "0", "--max-seq-length", "256", "--context-tokens", "16",
    )  # fmt: skip
    assert "30 messages of" in capsys.readouterr().out


@pytest.fixture
def small(tmp_path):
    return write_chat(tmp_path / "chat.jsonl", 60)


def test_ticks_in_the_csv_are_what_is_chosen(small, monkeypatch, capsys):
    assert not run_here(monkeypatch, SCRIPT, small, "--hand-pick", "20")
    shown = capsys.readouterr().out
    assert "the best 20 of 60 messages are written to" in shown
    assert "in Excel with Data > From Text/CSV" in shown
    ticks = small.with_name("chat.hand_pick.csv")
    with ticks.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 20
    with ticks.open("w", encoding="utf-16", newline="") as stream:
        writer = csv.DictWriter(stream, ["key", "keep"], extrasaction="ignore", delimiter="\t")
        writer.writeheader()
        writer.writerows(row | {"keep": "x" if n % 3 == 0 else ""} for n, row in enumerate(rows))
    out = run(monkeypatch, small, "--picked", ticks)
    chosen = {message.id for message in read_training_data(out).messages if message.train}
    assert chosen == {row["key"].removeprefix("m") for row in rows[::3]}
    assert len(chosen) == 7


def test_ticks_outlive_an_opt_out(tmp_path, monkeypatch, capsys):
    path = tmp_path / "chat.jsonl"
    with path.open("wb") as stream:
        for message in chatter(30):
            write_line(stream, replace(message, author_id=str("ABC".index(message.author[0]) + 1)))
    ticks = tmp_path / "ticks.csv"
    ticks.write_text("keep,key\nx,mm0\nx,mm1\nx,mm2\n")
    out = tmp_path / "opt_out.json"
    out.write_text("1\n")
    monkeypatch.setenv("OPT_OUT_FILE", str(out))
    found = read_training_data(run(monkeypatch, path, "--picked", ticks)).messages
    assert [message.id for message in found if message.train] == ["m1", "m2"]
    said = " ".join(capsys.readouterr().out.split())
    assert "gone because their authors opted out: 1" in said


def test_what_to_type_next_can_be_typed(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my chats"
    folder.mkdir()
    path = write_chat(folder / "chat.jsonl", 60)
    assert not run_here(monkeypatch, SCRIPT, path, "--hand-pick", "20")
    assert not run_here(monkeypatch, SCRIPT, path, "--best", "20")
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith(("  ", "next: ", "then: "))]
    for script, file in (
        (SCRIPT, folder / "chat.hand_pick.csv"),
        ("analyze", folder / "chat.filtered.jsonl"),
        ("train_lora", folder / "chat.filtered.jsonl"),
    ):
        (line,) = [it for it in commands if script in it]
        assert quoted(["x", str(file)]).removeprefix("x ") in line


def test_private_data_is_marked_or_removed(small, monkeypatch, capsys):
    with small.open("ab") as stream:
        write_line(stream, say("Ann", "write to ann@example.org", id="private", minute=70))
    out = run(monkeypatch, small, "--drop-private")
    assert shown_counts(capsys.readouterr().out)["left out: private data"] == 1
    after = read_training_data(out).messages
    assert [message.id for message in after if not message.train] == ["private"]
    run(monkeypatch, small, "--drop-private", "--remove")
    assert b"ann@example.org" not in out.read_bytes()
    assert len(read_training_data(out).messages) == 60


def test_in_place_keeps_each_earlier_state(small, monkeypatch, capsys):
    original = small.read_bytes()
    for count in ("30", "10"):
        before = small.read_bytes()
        assert not run_here(monkeypatch, SCRIPT, small, "--best", count, "--in-place")
        learned = [message for message in read_training_data(small).messages if message.train]
        assert len(learned) == int(count)
    names = sorted(path.name for path in small.parent.iterdir())
    assert names == ["chat.jsonl", "chat.jsonl.backup", "chat.jsonl.backup2"]
    assert small.with_name(names[1]).read_bytes() == original
    assert small.with_name(names[2]).read_bytes() == before


def test_a_dry_run_and_a_mistake_write_nothing(small, monkeypatch, capsys):
    before = small.read_bytes()
    assert not run_here(monkeypatch, SCRIPT, small, "--best", "5", "--dry-run")
    shown = capsys.readouterr().out
    assert "nothing is written" in shown
    assert shown_counts(shown) == {
        "chosen": 5, "context only already": 0, "left out: not among the best 5": 55,
        "together": 60,
    }  # fmt: skip
    assert run_here(monkeypatch, SCRIPT, small, "--min-quality", "101") == 2
    assert "Nothing is left to learn from" in capsys.readouterr().err
    assert [path.name for path in small.parent.iterdir()] == ["chat.jsonl"]
    assert small.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "Say what to keep"),
        (("--best", "0", "--hand-pick", "-1"), "--hand-pick: must be 1 or more"),
        (("--best", "5", "--in-place", "--out", "x"), "exclude each other"),
        (("--hand-pick", "5", "--remove"), "--hand-pick only writes the CSV"),
        (("--picked", "x.csv", "--out", "x.csv"), "names the CSV of --picked"),
        (("--picked", "gone.csv"), "gone.csv cannot be read"),
        (("--best", "5", "--out", "chat.jsonl"), "is the training data itself"),
        (("--best", "5", "--out", "folder"), "cannot be written"),
        (("--authors", "Addda,Zed", "--since", "x"), "Zed; the most active are"),
        (("--since", "2024-01-01", "--timezone", "Mars"), "is no time zone"),
        (("--bset", "5"), "did you mean --best?"),
    ],
)
def test_mistakes_are_told_in_a_sentence(small, monkeypatch, capsys, options, problem):
    monkeypatch.chdir(small.parent)
    Path("folder").mkdir()
    assert run_here(monkeypatch, SCRIPT, small, *options) == 2
    assert problem in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in small.parent.iterdir()) == ["chat.jsonl", "folder"]


def test_ready_conversations_are_refused_with_the_reason(tmp_path, monkeypatch, capsys):
    path = tmp_path / "ready.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": turns}))
    assert run_here(monkeypatch, SCRIPT, path, "--best", "1") == 2
    assert "holds ready conversations" in " ".join(capsys.readouterr().err.split())


def test_data_that_look_filtered_are_warned_about(tmp_path, monkeypatch, capsys):
    path = tmp_path / "chat.jsonl"
    with path.open("wb") as stream:
        for number, message in enumerate(chatter(80)):
            words = np.random.default_rng(number).permutation(WORDS)
            write_line(stream, replace(message, content=" ".join([*words, f"word{number}"])))
    run(monkeypatch, path, "--best", "5")
    assert "warning: Your data looks filtered already" in capsys.readouterr().out
    run(monkeypatch, write_chat(tmp_path / "short.jsonl"), "--best", "5")
    assert "filtered already" not in capsys.readouterr().out


def test_what_cannot_be_read_is_counted_and_left_out(small, monkeypatch, capsys):
    with small.open("ab") as stream:
        stream.write(b"broken\n")
        stream.write(small.read_bytes().splitlines()[0] + b"\n")
    out = run(monkeypatch, small, "--best", "5")
    shown = capsys.readouterr().out
    assert "duplicate id 1" in shown
    assert "line 61" in shown
    assert len(out.read_bytes().splitlines()) == 60


def test_help_answers_at_once_and_loads_nothing_heavy():
    process = start(SCRIPT, "--help", PYTHONPROFILEIMPORTTIME="1")
    out, err = process.communicate(timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in err.decode().splitlines()}
    assert process.returncode == 0
    assert not loaded & {"torch", "transformers", "polars", "numpy"}
    assert b"--hand-pick" in out


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl+C to the whole console")
def test_ctrl_c_leaves_no_torn_file(tmp_path):
    path = write_chat(tmp_path / "chat.jsonl", 40_000)
    before = path.read_bytes()
    process = start(SCRIPT, path, "--best", "5", "--in-place")
    aside = tmp_path / "chat.jsonl.part"
    deadline = time.monotonic() + 60
    while not aside.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert path.read_bytes() == before
    assert [it.name for it in tmp_path.iterdir()] == ["chat.jsonl"]
