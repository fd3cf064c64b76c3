import errno
import json
import shutil
from pathlib import Path

import pytest

from discord_lora.adapter_folder import RUN_FILE, WEIGHTS_FILE, RunInfo
from discord_lora.analysis.morning.history import append_event, read_events
from discord_lora.console import UserError
from discord_lora.conversations.prompt_format import persona_voice, server_voice
from discord_lora.finetuning import disk_room
from discord_lora.finetuning.run_folder import HARMLESS, choose_run_folder
from discord_lora.settings import Settings

ADA = persona_voice("Ada", "id-Ada")


def choose(tmp_path, *, fresh=False, data="d", **settings):
    made = Settings(output_dir=tmp_path, logs_dir=tmp_path / "logs", persona="ada", **settings)
    return choose_run_folder(made, ADA, data, fresh=fresh)


def begin(folder):
    """A run that has saved its first checkpoint."""
    folder.create()
    folder.close()
    (folder.checkpoints / "step-00000001").mkdir()


def finish(folder):
    folder.create()
    folder.close()
    for name in (RUN_FILE, WEIGHTS_FILE):
        (folder.path / name).write_text("{}")


def test_the_same_command_finds_its_own_folder(tmp_path):
    folder = choose(tmp_path)
    assert folder.path.name == "ada-sample"
    folder.create()
    assert choose(tmp_path, save_every_steps=7).path == folder.path
    assert not choose(tmp_path).is_finished
    finish(folder)
    assert choose(tmp_path).is_finished


def test_other_settings_after_a_finished_run_get_their_own_folder(tmp_path):
    finish(choose(tmp_path))
    second = choose(tmp_path, max_steps=500)
    assert second.path.name == "ada-sample-2"
    finish(second)
    assert choose(tmp_path).path.name == "ada-sample"
    assert choose(tmp_path, max_steps=500).path.name == "ada-sample-2"


def test_other_settings_on_an_unfinished_run_are_refused_with_the_list(tmp_path):
    begin(choose(tmp_path))
    with pytest.raises(UserError) as caught:
        choose(tmp_path, learning_rate=1e-3, max_steps=5, data="other")
    sentence = str(caught.value)
    assert "LEARNING_RATE was 0.0002, is 0.001" in sentence
    assert "MAX_STEPS was 0, is 5" in sentence
    assert "the training data changed" in sentence
    assert "--fresh" in sentence


def test_a_named_run_is_never_given_another_folder(tmp_path):
    finish(choose(tmp_path, run_name="mine"))
    with pytest.raises(UserError, match="other settings"):
        choose(tmp_path, run_name="mine", epochs=2)


def test_fresh_starts_this_run_over_and_touches_no_other(tmp_path):
    finished = choose(tmp_path)
    finish(finished)
    begin(choose(tmp_path, epochs=3))
    with pytest.raises(UserError, match="ada-sample-2 holds"):
        choose(tmp_path, epochs=2)
    folder = choose(tmp_path, fresh=True, epochs=2)
    assert folder.path.name == "ada-sample-2"
    assert folder.holds_work, "choosing alone deletes nothing"
    folder.create(fresh=True)
    assert not folder.holds_work
    assert finished.is_finished
    again = choose(tmp_path, fresh=True)
    assert again.path == finished.path
    again.create(fresh=True)
    assert not finished.is_finished
    assert {path.name for path in again.path.iterdir()} == {".lock", "identity.json", "checkpoints"}


def test_killed_while_fresh_deletes_the_folder_is_still_known_for_what_it_was(
    tmp_path, monkeypatch
):
    begin(choose(tmp_path))
    listed = Path.iterdir

    def identity_first(path):
        return iter(sorted(listed(path), key=lambda it: it.name != "identity.json"))

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    folder = choose(tmp_path, fresh=True, epochs=2)
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Path, "iterdir", identity_first)
        context.setattr(shutil, "rmtree", killed)
        folder.create(fresh=True)
    folder.close()
    with pytest.raises(UserError, match=r"EPOCHS was 1\.0, is 2\.0"):
        choose(tmp_path, epochs=2)


def test_what_another_run_left_and_cannot_be_deleted_is_not_taken_over(tmp_path, monkeypatch):
    first = choose(tmp_path)
    first.create()
    first.close()
    (first.checkpoints / "step-00000000").mkdir()

    def held(_path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError("planted: in use")

    monkeypatch.setattr(shutil, "rmtree", held)
    with pytest.raises(UserError, match=r"cannot write into .*planted: in use"):
        choose(tmp_path, epochs=2).create()
    assert json.loads((first.path / "identity.json").read_text())["epochs"] == 1.0


def test_an_identity_that_a_scanner_holds_for_a_moment_is_written(tmp_path, monkeypatch):
    replace, refused = Path.replace, []

    def replace_later(path, target):
        if not refused:
            refused.append(path)
            raise PermissionError("planted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_later)
    monkeypatch.setattr("discord_lora.finetuning.disk_room.time.sleep", lambda _seconds: None)
    folder = choose(tmp_path)
    assert folder.identity_hash == ""
    folder.create()
    assert len(folder.identity_hash) == 64


def test_fresh_deletes_nothing_of_a_run_that_is_going_on(tmp_path):
    running = choose(tmp_path)
    begin(running)
    running.create()
    with pytest.raises(UserError, match="in use by another training"):
        choose(tmp_path, fresh=True).create(fresh=True)
    with pytest.raises(UserError, match="in use by another training"):
        choose(tmp_path).create()
    assert running.holds_work
    running.close()
    choose(tmp_path, fresh=True).create(fresh=True)
    assert not running.holds_work


def test_what_another_run_did_meanwhile_is_seen_once_the_folder_is_ours(tmp_path):
    waiting = choose(tmp_path, epochs=2)
    begin(choose(tmp_path))
    with pytest.raises(UserError, match=r"EPOCHS was 1\.0, is 2\.0"):
        waiting.create()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def refuse(_lock, *_arguments, **_options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    said = []
    folder = choose(tmp_path)
    folder.create(said.append)
    assert (folder.path / "identity.json").is_file()
    assert "cannot be locked (No locks available)" in said[0]
    folder.close()


def test_the_history_of_another_run_is_set_aside(tmp_path):
    first = choose(tmp_path)
    begin(first)
    append_event(first.logs, "start", step=0)  # no folder yet: nothing
    first.logs.mkdir(parents=True)
    append_event(first.logs, "incident", step=3, what="out_of_memory", sentence="smaller")
    choose(tmp_path).create()
    assert len(read_events(first.logs)) == 1, "the same run goes on"
    choose(tmp_path, fresh=True).create(fresh=True)
    assert read_events(first.logs) == []
    assert (first.logs / "before-history.jsonl").is_file()


def test_what_only_replies_read_may_change_and_no_secret_is_compared():
    secret = {
        name for name, it in Settings.model_fields.items() if "SecretStr" in str(it.annotation)
    }
    replies = {"inference_url", "inference_model", "max_waiting_replies", "temperature"}
    assert secret | replies <= HARMLESS


def test_harmless_settings_of_an_earlier_version_are_no_difference(tmp_path):
    folder = choose(tmp_path)
    begin(folder)
    file = folder.path / "identity.json"
    old = json.loads(file.read_text()) | {"inference_url": "http://user:word@host"}
    file.write_text(json.dumps(old))
    choose(tmp_path).create()


def test_names_say_who_and_which_model(tmp_path):
    settings = Settings(output_dir=tmp_path, base_model="mistralai/Mistral-7B-Instruct-v0.3")
    folder = choose_run_folder(settings, server_voice("Bot"), "d", fresh=False)
    assert folder.path.name == "server-Mistral-7B-Instruct-v0.3"


def test_secrets_are_never_written(tmp_path):
    folder = choose(tmp_path, hf_token="hf_secret")
    folder.create()
    assert all("hf_secret" not in p.read_text() for p in folder.path.rglob("*") if p.is_file())


def test_every_harmless_setting_exists():
    assert set(Settings.model_fields) >= HARMLESS


def test_a_place_that_cannot_be_written_is_said_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR: cannot write"):
        choose(tmp_path / "file").create()


def test_what_failed_before_its_first_checkpoint_is_nobodys_run(tmp_path):
    folder = choose(tmp_path, optimizer="adamw_8bit")
    folder.create()
    for name in ("step-00000000", "step-00000000.damaged", "step-00000003.partial"):
        (folder.checkpoints / name).mkdir()
    assert choose(tmp_path).path.name == "ada-sample"


@pytest.mark.parametrize("text", ["", "[1]", "nonsense"])
def test_a_damaged_identity_ends_in_one_sentence(tmp_path, text):
    folder = choose(tmp_path)
    begin(folder)
    (folder.path / "identity.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        choose(tmp_path)


def test_a_finished_adapter_without_its_identity_is_known_by_what_it_was_trained_with(tmp_path):
    folder = choose(tmp_path)
    finish(folder)
    RunInfo("sample", "nf4", ADA, folder.identity, "d", {}).write(folder.path)
    (folder.path / "identity.json").unlink()
    assert choose(tmp_path).path == folder.path
    assert choose(tmp_path, max_steps=500).path.name == "ada-sample-2"


def test_an_identity_that_cannot_be_read_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    folder = choose(tmp_path)
    begin(folder)
    whole, read, failed = folder.identity_hash, Path.read_bytes, []

    def read_badly(path):
        if path.name == "identity.json" and len(failed) < 2:
            failed.append(path)
            raise PermissionError("planted")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_badly)
    monkeypatch.setattr(disk_room.time, "sleep", lambda _seconds: None)
    assert folder.identity_hash == whole
    failed.clear()
    assert choose(tmp_path).path == folder.path


@pytest.mark.parametrize("text", ["", "[1]", "nonsense", '{"epochs": 9}'])
def test_a_checkpoint_speaks_for_a_damaged_identity(tmp_path, text):
    folder = choose(tmp_path)
    begin(folder)
    progress = {"identity": folder.identity_hash}
    (folder.checkpoints / "step-00000001" / "progress.json").write_text(json.dumps(progress))
    file = folder.path / "identity.json"
    whole = file.read_bytes()
    file.write_text(text)
    with pytest.raises(UserError, match=r"is damaged|other settings"):
        choose(tmp_path, max_steps=5)
    again = choose(tmp_path)
    assert again.path == folder.path
    again.create()
    again.close()
    assert file.read_bytes() == whole
