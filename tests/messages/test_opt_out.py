from datetime import UTC, datetime

import orjson
import pytest

from discord_lora.console import UserError
from discord_lora.messages.opt_out import OPTED_OUT, OptOutLedger, read_opt_outs
from discord_lora.messages.training_data import read_training_data
from messages.example_exports import export_text, message, run, user

NOW = datetime(2026, 3, 2, 18, 0, tzinfo=UTC)
SINCE = "2026-03-02T18:00:00+00:00"


def test_opting_out_and_in_is_written_at_once(tmp_path):
    path = tmp_path / "data" / "out.json"
    ledger = OptOutLedger(path)
    assert ledger.opt_out("42", NOW) and ledger.opt_out("7", NOW)
    assert not ledger.opt_out("42")
    assert "42" in ledger and "1" not in ledger and len(ledger) == 2
    assert orjson.loads(path.read_bytes()) == {"42": SINCE, "7": SINCE} == read_opt_outs(path)
    assert ledger.opt_in("42") and not ledger.opt_in("42")
    assert read_opt_outs(path) == {"7": SINCE}
    assert [it.name for it in path.parent.iterdir()] == ["out.json"]


def test_what_somebody_wrote_into_the_file_meanwhile_stays(tmp_path):
    path = tmp_path / "out.json"
    ledger = OptOutLedger(path)
    path.write_text("1 # by hand\n")
    ledger.opt_out("2", NOW)
    assert read_opt_outs(path).keys() == {"1", "2"}
    assert "1" in ledger


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (b"", set()),
        (b'{"42": null, "7": "2026-01-01"}', {"42", "7"}),
        (b'["42", 80351110224678912]', {"42", "80351110224678912"}),
        (b"\xef\xbb\xbf42\r\n\r\n# nobody\r\n7 2026-01-01\r\n", {"42", "7"}),
    ],
)
def test_files_written_by_hand_are_read(tmp_path, text, ids):
    path = tmp_path / "out.json"
    path.write_bytes(text)
    assert read_opt_outs(path).keys() == ids
    assert read_opt_outs(tmp_path / "missing.json") == {}


@pytest.mark.parametrize(
    "text", [b'{"42": "20', b"Ann\n", b'{"Ann": ""}', b"[[1]]", b"\xff\xfe4\x00"]
)
def test_a_ledger_that_cannot_be_understood_is_never_taken_for_empty(tmp_path, text):
    path = tmp_path / "out.json"
    path.write_bytes(text)
    for read in (read_opt_outs, OptOutLedger):
        with pytest.raises(UserError, match="OPT_OUT_FILE"):
            read(path)


def test_an_unwritable_ledger_says_so(tmp_path):
    ledger = OptOutLedger(tmp_path / "file" / "out.json")
    (tmp_path / "file").write_text("where a folder is due")
    with pytest.raises(UserError, match="OPT_OUT_FILE"):
        ledger.opt_out("42")
    assert "42" not in ledger
    with pytest.raises(ValueError):
        ledger.opt_out("Ann")


def test_prepare_leaves_them_out_and_counts_them(tmp_path):
    talk = [message(n, author=user(n % 3)) for n in range(9)] + [message(9, type="8")]
    (tmp_path / "export.json").write_text(export_text(talk), encoding="utf-8")
    gone = user(1)["id"]
    report, lines = run(tmp_path, opted_out=frozenset({gone}))
    assert report.dropped == {OPTED_OUT: 3, "system message": 1}
    assert len(lines) == 6
    assert gone not in {line["author_id"] for line in lines}


def test_the_trainers_reader_drops_them(tmp_path):
    (tmp_path / "export.json").write_text(export_text([message(n) for n in range(9)]))
    run(tmp_path)
    path = tmp_path.parent / f"{tmp_path.name}-out" / "training_data.jsonl"
    data = read_training_data(path, {user(0)["id"], "1"})
    assert data.dropped == {OPTED_OUT: 3} and len(data.messages) == 6
    assert data.lines == len(data.messages) + data.dropped.total()
    assert any(OPTED_OUT in line for line in data.remarks())
