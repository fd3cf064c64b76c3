import threading
from pathlib import Path

import pytest

from discord_lora.console import UserError
from discord_lora.finetuning import text_log
from discord_lora.finetuning.text_log import OLD_LOGS, TextLog


@pytest.fixture(autouse=True)
def small_logs(monkeypatch):
    monkeypatch.setattr(text_log, "BYTES_A_LOG", 2000)


def numbers(path):
    return [int(line.rsplit(" ", 1)[1]) for line in path.read_text().splitlines()]


def fill(log, first, last):
    for number in range(first, last):
        log.write(f"line {number}")


def test_a_full_log_becomes_an_old_one_and_four_are_kept(tmp_path):
    log = TextLog(tmp_path / "training.log")
    fill(log, 0, 500)
    log.close()
    files = sorted(tmp_path.iterdir(), key=lambda path: path.name, reverse=True)
    assert [path.name for path in files] == [
        *(f"training.log.{n}" for n in range(OLD_LOGS, 0, -1)),
        "training.log",
    ]
    kept = [number for path in files for number in numbers(path)]
    assert kept == list(range(kept[0], 500))
    assert all(path.stat().st_size <= 2000 for path in files)


def test_a_program_that_has_the_log_open_costs_nothing(tmp_path, monkeypatch, capfd):
    """On Windows a file that another program reads cannot be renamed."""
    path = tmp_path / "training.log"
    log = TextLog(path)
    fill(log, 0, 200)
    before = {old.name: old.read_text() for old in tmp_path.glob("training.log.*")}
    rename = Path.rename

    def held(self, target):
        if self == path:
            raise PermissionError(32, "in use by another process")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", held)
    fill(log, 200, 400)
    assert {old.name: old.read_text() for old in tmp_path.glob("training.log.*")} == before
    monkeypatch.undo()
    fill(log, 400, 401)
    assert numbers(tmp_path / "training.log.1")[-1] == 399, "renamed once it is let go"
    log.close()
    assert capfd.readouterr() == ("", "")


def test_an_old_log_that_is_held_costs_nothing_either(tmp_path, monkeypatch):
    log = TextLog(tmp_path / "training.log")
    fill(log, 0, 60)
    replace = Path.replace

    def held(self, target):
        if self.name == "training.log.1":
            raise PermissionError(32, "in use by another process")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held)
    fill(log, 60, 200)
    monkeypatch.undo()
    fill(log, 200, 300)
    log.close()
    order = [*(f"training.log.{n}" for n in range(OLD_LOGS, -1, -1)), "training.log"]
    kept = [n for name in order if (tmp_path / name).exists() for n in numbers(tmp_path / name)]
    assert kept == list(range(300)), "nothing is lost or out of order"


def test_two_runs_may_share_it(tmp_path):
    logs = [TextLog(tmp_path / "training.log") for _ in range(2)]
    for number in range(30):
        logs[number % 2].write(f"line {number}")
    for log in logs:
        log.close()
    files = [tmp_path / "training.log.1", tmp_path / "training.log"]
    assert [n for path in files if path.exists() for n in numbers(path)] == list(range(30))


def test_threads_do_not_mix_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(text_log, "BYTES_A_LOG", 10**6)
    log = TextLog(tmp_path / "training.log")
    threads = [threading.Thread(target=fill, args=(log, 0, 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(numbers(tmp_path / "training.log")) == sorted([*range(50)] * 4)


def test_a_full_disk_and_broken_characters_cost_no_run(tmp_path, monkeypatch, capfd):
    log = TextLog(tmp_path / "training.log")
    log.write("half of a character: \ud83d")

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_log._LetGoAfterEachLine, "_open", full)
    log.write("lost")
    monkeypatch.undo()
    log.write("there is room again")
    log.close()
    lines = (tmp_path / "training.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        "half of a character: \\ud83d",
        "there is room again",
    ]
    assert capfd.readouterr() == ("", "")


def test_a_place_that_cannot_be_written_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="LOGS_DIR: cannot write"):
        TextLog(tmp_path / "file" / "training.log")
