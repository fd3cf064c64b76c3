import json
import os

import pytest

from discord_lora.adapter_folder import RUN_FILE, WEIGHTS_FILE, RunInfo, find_adapter, read_run_info
from discord_lora.console import UserError
from discord_lora.conversations.prompt_format import persona_voice


def make_adapter(folder, **changes):
    folder.mkdir(parents=True)
    info = RunInfo("sample", "nf4", persona_voice("Ada", "1"), {"persona": "ada"}, "f", {})
    info.write(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"")
    if changes:
        raw = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        (folder / RUN_FILE).write_text(json.dumps({**raw, **changes}), encoding="utf-8")
    return folder


def test_what_is_written_is_what_is_read(tmp_path):
    info = read_run_info(make_adapter(tmp_path / "a"))
    assert (info.base_model, info.voice.name, info.steps) == ("sample", "Ada", 0)


def test_another_prompt_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="prompt format 99"):
        read_run_info(make_adapter(tmp_path / "a", prompt_format_version=99))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"voice": 1}', "\x00", '{"voice": {"kind": 1}}'])
def test_a_damaged_run_file_ends_in_one_sentence(tmp_path, text):
    folder = make_adapter(tmp_path / "a")
    (folder / RUN_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        read_run_info(folder)


def test_the_newest_finished_adapter_is_found(tmp_path):
    for age, name in enumerate(("new", "old")):
        weights = make_adapter(tmp_path / name) / WEIGHTS_FILE
        os.utime(weights, (1e9 - age, 1e9 - age))
    (tmp_path / "unfinished").mkdir()
    assert find_adapter(tmp_path).name == "new"
    assert find_adapter(tmp_path, "old") == tmp_path / "old"
    assert find_adapter(tmp_path, str(tmp_path / "old")) == tmp_path / "old"
    assert find_adapter(tmp_path, persona="ada").name == "new"


def test_no_adapter_at_all_says_how_to_get_one(tmp_path):
    with pytest.raises(UserError, match=r"train_lora\.py"):
        find_adapter(tmp_path)
    with pytest.raises(UserError, match=r"train_lora\.py"):
        read_run_info(find_adapter(tmp_path, "missing"))
