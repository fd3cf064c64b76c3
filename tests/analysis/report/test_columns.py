"""The fast reader gives what the careful one gives: messages, counts, reasons."""

import json
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discord_lora.analysis.report import columns as columns_module
from discord_lora.analysis.report.columns import FIELDS, columns_of, read_columns
from discord_lora.analysis.report.plain_lines import are_plain
from discord_lora.console import UserError
from discord_lora.messages.record import Message
from discord_lora.messages.training_data import read_training_data
from odd_lines import LINES, ODD, PLAIN, START, line_of


def assert_read_the_same(path, opted_out=()):
    try:
        careful = read_training_data(path, opted_out)
    except UserError as error:
        with pytest.raises(UserError) as raised:
            read_columns(path, opted_out=opted_out)
        assert raised.value.problems == error.problems
        return
    fast = read_columns(path, opted_out=opted_out)
    rows = (
        fast.frame.drop("has_time") if fast.ready is None else fast.frame.clear().drop("has_time")
    )
    assert rows.equals(columns_of(careful.messages).drop("has_time"))
    for name in ("lines", "rejects", "dropped", "warnings", "conversations"):
        assert getattr(fast.account, name) == getattr(careful, name), name


@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.sampled_from([60, 700, 1 << 20]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_mix_of_lines_is_read_as_by_the_careful_reader(
    tmp_path_factory, lines, newline, ends, block
):
    path = tmp_path_factory.getbasetemp() / "mixed.jsonl"
    path.write_bytes(newline.join(lines) + (newline if ends else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "_BLOCK_BYTES", block)
        assert_read_the_same(path)


@given(LINES, st.sets(st.sampled_from(["", "1", "2", "a", "ä", "user_1", "800000000000000001"])))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_who_opted_out_is_left_out_as_by_the_careful_reader(tmp_path_factory, lines, opted_out):
    path = tmp_path_factory.getbasetemp() / "opted_out.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert_read_the_same(path)
    try:
        authors = {message.author_id for message in read_training_data(path).messages}
    except UserError:
        authors = set()
    assert_read_the_same(path, opted_out | set(sorted(authors)[::2]))


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_every_odd_line_alone(tmp_path, line):
    path = tmp_path / "one.jsonl"
    path.write_bytes(line)
    assert_read_the_same(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_other_encodings_and_a_json_array(tmp_path, encoding):
    path = tmp_path / "array.json"
    text = json.dumps([PLAIN, PLAIN | {"id": "78", "content": "żółw"}], ensure_ascii=False)
    path.write_bytes(text.encode(encoding))
    assert_read_the_same(path)
    path.write_bytes("\n".join(map(json.dumps, [PLAIN, PLAIN | {"id": "3"}])).encode(encoding))
    assert_read_the_same(path)


def test_our_own_lines_are_plain_and_others_are_not():
    def plain(**changed):
        return are_plain(pl.Series([json.dumps(PLAIN | changed)]))[0]

    assert plain()
    assert plain(content='a "quote", a \\ and a \u0007', author="[b] <script>")
    assert not plain(timestamp="2024-05-01T12:00:00+02:00")
    assert not plain(reactions=1.5)
    assert not plain(id=5)
    assert not plain(extra=1)
    assert not plain(author=" Ann")


def test_a_time_that_had_to_be_made_up_is_marked(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(line_of(Message(**PLAIN | {"timestamp": START})) + b'\n{"content": "later"}\n')
    frame = read_columns(path).frame
    assert frame["has_time"].to_list() == [True, False]
    assert frame["timestamp"].to_list() == [START, START + timedelta(seconds=1)]


def test_ready_conversations_become_a_row_a_turn(tmp_path):
    path = tmp_path / "ready.jsonl"
    path.write_bytes(ODD[9] + b"\n" + ODD[9])
    columns = read_columns(path)
    assert columns.frame["content"].to_list() == ["a", "b", "a", "b"]
    assert columns.ready is not None
    assert columns.ready.n_unique() == 2
    assert not columns.frame["has_time"].any()


def test_the_columns_are_the_fields_of_a_message():
    assert [*FIELDS][:-1] == list(Message.__dataclass_fields__)


def test_progress_ends_at_the_size_of_the_file(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b"\n".join([json.dumps(PLAIN).encode()] * 3))
    seen = []
    read_columns(path, seen.append)
    assert seen[-1] == path.stat().st_size
