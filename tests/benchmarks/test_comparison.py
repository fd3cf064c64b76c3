"""The comparison's arithmetic: same messages for all, honest ratios, a table for any console."""

import io
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from comparison import modes, report
from comparison.data import Selection, choose, count_messages, full_rows, labels_of, messages_hash
from comparison.job import Job, Result, read_job, result_as_dict, write_json
from comparison.profiling import group_of
from comparison.rounds import CONTENDERS, Round, order_of, pick
from comparison.trl_shape import choose_shape, messages_per_row
from discord_lora.console import UserError
from discord_lora.conversations.build import build_conversations
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice, server_voice
from discord_lora.settings import load_settings
from fakes import chatter, make_tokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "compare_training.py"


def make_conversations(count=8, length=9):
    return [
        conversation
        for number in range(count)
        for conversation in build_conversations(
            [
                replace(message, id=f"{number}.{message.id}", channel_id=f"channel {number}")
                for message in chatter(length)
            ],
            30,
        )
    ]


def make_selection(voice=None, messages=40, **settings):
    voice = voice or server_voice("Bot")
    chosen = choose(make_conversations(), voice.is_target, messages, seed=1)
    settings = {"max_seq_length": 128, "context_tokens": 32, **settings}
    return Selection(
        PromptFormat(make_tokenizer(), voice), load_settings(settings, None), chosen, chosen[:2]
    )


def make_job(**fields):
    known = {"task": "ours", "settings": {}, "location": "m", "messages": 40, "device": "cpu"}
    return Job(**{**known, "held_out_messages": 8, **fields})


def make_round(rates, flops=1e12, parameters=10**8, **fields):
    results = {
        name: result_as_dict(
            Result(
                contender=name,
                messages=100,
                tokens=3000,
                steps=7,
                seconds=100 / rate,
                peak_bytes=2 * 10**9,
                held_out_nats=3.5,
                same_messages="abc",
                busy_cores=1.9,
                shape="1 x 512 tokens",
                **fields,
            )
        )
        for name, rate in rates.items()
    }
    machine = {"device": "A CPU (R) \u2122", "precision": "float32"}
    return Round(flops, parameters, machine, results)


# --- the same messages ------------------------------------------------------------------------


def test_exactly_as_many_messages_as_asked_are_chosen_in_whole_conversations():
    conversations = make_conversations()
    voice = server_voice("Bot")
    chosen = choose(conversations, voice.is_target, 40, seed=1)
    assert sum(len(c.messages) for c in chosen) == 40
    assert all(c in conversations for c in chosen[:-1])
    assert chosen == choose(conversations, voice.is_target, 40, seed=1)
    assert chosen != choose(conversations, voice.is_target, 40, seed=2)


def test_only_targets_count_when_one_member_is_learned():
    voice = persona_voice("Ada", "id-Ada")
    chosen = choose(make_conversations(), voice.is_target, 10, seed=1)
    assert sum(voice.is_target(m) for c in chosen for m in c.messages) == 10


def test_too_few_messages_are_said():
    with pytest.raises(UserError, match="72 to choose from and 100 are wanted"):
        choose(make_conversations(), server_voice("Bot").is_target, 100, seed=1)


@pytest.mark.parametrize("voice", [server_voice("Bot"), persona_voice("Ada", "id-Ada")])
def test_every_contender_trains_the_same_tokens_of_the_same_messages(voice):
    selection = make_selection(voice, messages=20)
    ways = [
        selection.examples(),
        selection.single_messages(),
        selection.whole_conversations(128),
        selection.whole_conversations(64),
    ]
    assert len({messages_hash(examples) for examples in ways}) == 1
    assert {count_messages(examples) for examples in ways} == {20}
    if voice.kind == "server":  # where turns are merged, fewer of them end
        trained = {sum(int(example.trained.sum()) for example in examples) for examples in ways}
        assert len(trained) == 1


def test_the_classic_recipe_sees_one_message_at_a_time():
    selection = make_selection()
    singles = selection.single_messages()
    assert [example.targets for example in singles] == [1] * 40
    text = selection.prompt_format.tokenizer.decode(singles[0].input_ids.tolist())
    assert sum(text.count(f"{name}:") for name in ("Ada", "Bob", "Cy")) == 1


def test_labels_hold_the_token_where_the_loss_is():
    example = make_selection().examples()[0]
    labels = np.array(labels_of(example))
    assert (labels[example.trained] == example.input_ids[example.trained]).all()
    assert (labels[~example.trained] == -100).all()


def test_full_rows_hold_whole_examples_up_to_the_budget():
    examples = make_selection(messages=60).whole_conversations(64)
    rows = full_rows(examples, 256, least_full=0.8)
    assert rows
    assert all(0.8 * 256 <= sum(map(len, row)) <= 256 for row in rows)
    used = [id(example) for row in rows for example in row]
    assert len(used) == len(set(used))
    assert full_rows(examples, 8) == []


# --- TRL's rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [128, 1024])
def test_rows_are_as_long_as_a_step_wants(longest):
    selection = make_selection(messages=60, max_seq_length=longest)
    shape = choose_shape(make_job(task="trl-checkpointing"), selection)
    a_row = messages_per_row(selection, shape.row_tokens)
    assert a_row * shape.passes_per_step == pytest.approx(16, rel=0.3)
    assert (shape.passes_per_step > 1) == (longest == 128)
    assert str(shape).endswith(", checkpointing")


def test_short_fast_rows_gather_passes_to_a_step():
    selection = make_selection(messages=60)
    shape = choose_shape(make_job(task="trl-best", row_tokens=64), selection)
    assert shape.passes_per_step > 1
    assert not shape.checkpointing
    assert choose_shape(make_job(task="trl-checkpointing"), selection).checkpointing
    assert not choose_shape(make_job(task="trl-plain"), selection).checkpointing


# --- rounds and ratios ------------------------------------------------------------------------


def test_the_order_turns_each_round():
    assert order_of("ABC", 0) == ["A", "B", "C"]
    assert order_of("ABC", 1) == ["C", "B", "A"]
    assert order_of("ABC", 2) == ["A", "B", "C"]


def test_contenders_are_picked_by_name_or_family():
    assert pick("") == list(CONTENDERS)
    assert pick("ours, trl") == ["trl-checkpointing", "trl-plain", "trl-best", "ours"]
    assert pick("trl-best") == ["trl-best"]
    with pytest.raises(UserError, match="nobody is called our"):
        pick("our")


def test_ratios_are_taken_within_each_round():
    # The second round ran on a machine half as fast: the ratio must not notice.
    rounds = [make_round({"ours": 8, "classic": 2}), make_round({"ours": 4, "classic": 1})]
    assert report.ratios(rounds, report.messages_rate, "ours", "classic") == [4, 4]
    assert report.median_of(rounds, report.messages_rate, "ours") == 6
    assert report.spread([1.0, 3.0, 2.0]) == "2.000 (1.000-3.000)"
    assert report.spread([1.0, 1.0001]) == "1.000"


def test_the_fraction_counts_four_flops_a_parameter_and_token():
    one = make_round({"ours": 10}, flops=1.2e12, parameters=10**9)
    assert report.tokens_rate(one, "ours") == 300
    assert report.gemm_fraction(one, "ours") == pytest.approx(300 * 4 * 1e9 / 1.2e12)


def test_different_messages_are_refused():
    one = make_round({"ours": 1, "classic": 1})
    report.check_same_messages(one)
    one.results["ours"]["same_messages"] = "def"
    with pytest.raises(UserError, match="different messages"):
        report.check_same_messages(one)


@pytest.mark.parametrize("only", [CONTENDERS, ("ours",), ("classic", "trl-best")])
def test_the_report_prints_on_an_old_windows_console(only):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict")
    rates = {name: 1.0 + number for number, name in enumerate(only)}
    console = Console(file=stream, width=80)
    faster = {name: 12.5 * rate for name, rate in rates.items()} | {only[-1]: 9.0}
    report.print_report(console, [make_round(rates), make_round(rates), make_round(faster)])
    stream.flush()
    text = stream.buffer.getvalue().decode("cp1252")
    assert "medians of 3 rounds" in text
    assert all(name in text for name in only)
    assert "…" not in text  # nothing was cut off at 80 columns
    assert ("ours / the other" in text) == (len(only) > 1 and "ours" in only)


def test_a_record_is_one_line_with_everything(tmp_path):
    rounds = [make_round({"ours": 8, "classic": 2}), make_round({"ours": 6, "classic": 2})]
    path = tmp_path / "RESULTS.jsonl"
    for _ in range(2):
        report.append_record(path, report.as_record(rounds, {"messages": 100}))
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[1])
    assert len(lines) == 2
    assert record["medians"]["ours"]["messages_per_second"] == 7
    assert record["ours_to_others"]["classic"]["messages_per_second"] == [4, 3]
    assert record["machine"]["precision"] == "float32"
    assert record["asked"] == {"messages": 100}
    assert len(record["rounds"]) == 2


# --- what is asked for ------------------------------------------------------------------------


def test_a_job_survives_its_file(tmp_path):
    job = make_job(settings=modes.as_plain_data(load_settings({"seed": 7}, None)))
    write_json(tmp_path / "job.json", asdict(job))
    again = read_job(tmp_path / "job.json")
    assert again == job
    assert load_settings(again.settings, None).seed == 7
    assert "hf_token" not in again.settings


def test_any_setting_can_be_given():
    given = modes.given_settings(["max-tokens-per-microbatch=512", "LORA_R=8"])
    assert given == {"max_tokens_per_microbatch": "512", "lora_r": "8"}
    with pytest.raises(UserError, match="NAME=VALUE"):
        modes.given_settings(["lora_r"])


def test_prepared_data_are_taken_as_they_are_and_exports_are_prepared(tmp_path):
    ready = tmp_path / "ready.jsonl"
    assert modes.training_data(ready, tmp_path, print) == ready
    export = tmp_path / "export.json"
    message = {"id": "1", "content": "hello", "author": {"id": "2", "name": "ada"}}
    message |= {"timestamp": "2026-03-02T18:00:00+00:00", "type": "Default"}
    guild, channel = {"id": "3", "name": "g"}, {"id": "4", "name": "c"}
    document = {"guild": guild, "channel": channel, "messages": [message], "messageCount": 1}
    export.write_text(json.dumps(document), encoding="utf-8")
    out = modes.training_data(export, tmp_path, lambda _sentence: None)
    assert "hello" in out.read_text(encoding="utf-8")


def test_help_needs_no_environment():
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in answer.stdout
    assert "--rows 1024" in answer.stdout


# --- the profile ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shapes", "group"),
    [
        ("aten::mm", [[900, 576], [576, 1536]], "base GEMMs"),
        ("aten::mm", [[900, 576], [576, 16]], "LoRA"),
        ("aten::addmm_", [[900, 16], [900, 576], [576, 16]], "LoRA"),
        ("aten::mm", [[300, 576], [576, 49152]], "head and loss"),
        ("aten::mul", [[300, 49152], []], "head and loss"),
        ("aten::_log_softmax", [[300, 10]], "head and loss"),
        ("aten::embedding", [[49152, 576], [1, 900]], "elementwise and copies"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [[1, 9, 30, 64]], "attention"),
        ("aten::bmm", [[9, 30, 64], [9, 64, 30]], "attention"),
        ("bitsandbytes::dequantize_4bit", [[100, 1]], "dequantization"),
        ("Optimizer.step#AdamW.step", [], "optimizer"),
        ("aten::_foreach_add_", [], "optimizer"),
        ("aten::silu", [[1, 900, 1536]], "elementwise and copies"),
        ("autograd::engine::evaluate_function: MmBackward0", [], "Python and other"),
    ],
)
def test_an_operator_is_told_by_its_name_and_sizes(name, shapes, group):
    assert group_of(name, shapes, rank=16, vocabulary=49152) == group
