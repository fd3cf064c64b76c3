"""The prepare script as people run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from messages.example_exports import export_text, message

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "prepare_training_data.py"
EMOJI_CHANNEL = {"id": "5", "name": "tea-🍵 [bold]"}


def prepare(
    folder: Path, *arguments: str, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        encoding=encoding,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "exports").mkdir()
    talk = [
        message(1, content="a secret wörd"),
        message(2, type="Reply", reference={"messageId": message(1)["id"]}),
        message(3, type="8", content=""),
    ]
    for number in range(25):
        text = export_text(talk if not number else [message(9 + number)],
                           channel=EMOJI_CHANNEL | {"id": str(number + 1)})  # fmt: skip
        (tmp_path / "exports" / f"{number}.json").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_it_writes_the_file_and_tells_what_it_did(folder: Path, encoding: str) -> None:
    done = prepare(folder, "exports", encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "27 messages read = 26 kept + 1 dropped" in done.stdout
    assert "replies recognised: 1 " in done.stdout
    assert "5 smaller channels" in done.stdout
    assert "[bold]" in done.stdout
    assert "python scripts/analyze_training_data.py" in done.stdout
    assert len((folder / "data" / "training_data.jsonl").read_bytes().splitlines()) == 26


def test_no_message_text_is_printed(folder: Path) -> None:
    (folder / "exports" / "broken.json").write_text(
        export_text([message(50)])[:-300].replace("message number 50", "a secret wörd"),
        encoding="utf-8",
    )
    done = prepare(folder, "exports")
    assert "secret" not in done.stdout + done.stderr
    assert "secret" not in (folder / "data" / "training_data.rejects.jsonl").read_text()


def test_the_json_account_holds_every_channel(folder: Path) -> None:
    assert prepare(folder, "exports", "--json", "account.json").returncode == 0
    account = json.loads((folder / "account.json").read_text(encoding="utf-8"))
    beside = folder / "data" / "training_data.account.json"
    assert beside.read_bytes() == (folder / "account.json").read_bytes()
    assert len(account["channels"]) == 25
    for part in [account, *account["channels"]]:
        assert part["read"] == part["kept"] + sum(part["dropped"].values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing"],
        ["empty"],
        ["exports", "--out", "exports"],
        ["exports", "--out", "file/x.jsonl"],
        ["exports", "--json", "file/x.json"],
        ["exports", "--skip", "nonsense"],
        [],
    ],
)
def test_a_users_mistake_is_exit_code_2_without_a_traceback(
    folder: Path, arguments: list[str]
) -> None:
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    done = prepare(folder, *arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_cleaning_step_and_examples() -> None:
    done = prepare(SCRIPT.parent, "--help", encoding="cp1252")
    assert done.returncode == 0
    for step in ("system", "bots", "commands", "forwards", "mentions", "emoji", "links", "repeats"):
        assert f"\n  {step} " in done.stdout
    assert "examples:" in done.stdout


@pytest.mark.parametrize(
    "options", [["--out", "0.json"], ["--out", "o.jsonl", "--json", "o.jsonl"]]
)
def test_no_file_is_overwritten_that_is_still_needed(folder: Path, options: list[str]) -> None:
    export = folder / "exports" / "0.json"
    before = export.read_bytes()
    (folder / "0.json").write_bytes(before)
    done = prepare(folder, "0.json", *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (folder / "0.json").read_bytes() == before
    assert not (folder / "o.jsonl").exists()


def test_what_it_wrote_is_not_read_again(folder: Path) -> None:
    for _ in range(2):
        done = prepare(folder, "exports", "--out", "exports/all.jsonl")
        assert "27 messages read = 26 kept" in done.stdout
        assert "not recognised" not in done.stdout


def test_without_command_prefixes_nothing_is_a_command(folder: Path) -> None:
    done = prepare(folder, "exports", "--command-prefixes", "")
    assert "26 kept" in done.stdout


def test_members_who_opted_out_are_left_out_and_counted(folder: Path) -> None:
    (folder / ".env").write_text("OPT_OUT_FILE=gone.json\n")
    (folder / "gone.json").write_text(json.dumps({message(1)["author"]["id"]: "2026-03-02"}))
    done = prepare(folder, "exports", "--json", "account.json")
    assert (done.returncode, done.stderr) == (0, "")
    account = json.loads((folder / "account.json").read_bytes())
    assert account["dropped"]["opted out"] > 0
    assert account["read"] == account["kept"] + sum(account["dropped"].values())
    text = (folder / "data" / "training_data.jsonl").read_text(encoding="utf-8")
    assert message(1)["author"]["id"] not in text

    (folder / "gone.json").write_text("{ broken")
    refused = prepare(folder, "exports")
    assert refused.returncode == 2
    assert "OPT_OUT_FILE" in refused.stderr
