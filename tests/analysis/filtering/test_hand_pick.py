"""The CSV comes back as it was ticked, whatever a spreadsheet does to it."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from discord_lora.analysis.filtering.hand_pick import COLUMNS, read_ticks, write_csv
from discord_lora.analysis.report.columns import MessageColumns, columns_of
from discord_lora.analysis.report.measure import Options, measure
from discord_lora.console import UserError
from fakes import chatter, say

HOSTILE = "=cmd|' /C calc'!A0"
SNOWFLAKES = [str(1419408018537316453 + number * 7) for number in range(6)]


def measured(messages):
    return measure(MessageColumns(columns_of(messages)), Options())


def written(folder, messages, chosen=None, timezone="UTC"):
    path = folder / "ticks.csv"
    path.unlink(missing_ok=True)
    mask = np.ones(len(messages), np.bool_) if chosen is None else np.array(chosen)
    write_csv(measured(messages), mask, timezone, path)
    return path


def cells(path):
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def save(path, rows, columns=COLUMNS, encoding="utf-8-sig", **dialect):
    """As a spreadsheet does."""
    with path.open("w", encoding=encoding, errors="replace", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", **dialect)
        writer.writeheader()
        writer.writerows(rows)


def test_each_message_stands_behind_what_was_said_before_it(tmp_path):
    talk = [
        say("Ada", "one", id="1"),
        say("Bob", "two", id="2", minute=1),
        say("Cy", "three", id="3", minute=2),
        say("Ada", "four", id="4", minute=3),
        say("Bob", "five, to one", id="5", minute=4, reply_to="1"),
        say("Cy", "another day", id="6", minute=2000),
        say("Cy", "elsewhere", id="7", minute=3, channel="tea"),
    ]
    rows = cells(written(tmp_path, talk[::-1], [True, True, True, False, False, False, False]))
    assert [(it["key"], it["author"], it["message"]) for it in rows] == [
        ("m7", "Cy", "elsewhere"), ("m5", "Bob", "five, to one"), ("m6", "Cy", "another day"),
    ]  # fmt: skip
    assert rows[0]["before"] == rows[2]["before"] == ""
    assert rows[1]["before"].split("\n") == ["Ada: one", "Bob: two", "Cy: three", "Ada: four"]
    assert rows[1]["time"] == "2026-03-02 18:04"
    assert rows[1]["keep"] == ""
    assert tuple(rows[0]) == COLUMNS


def test_times_are_local_and_empty_where_there_is_none(tmp_path):
    frame = columns_of(chatter(2)).with_columns(has_time=pl.Series([True, False]))
    measures = measure(MessageColumns(frame), Options())
    write_csv(measures, np.ones(2, np.bool_), "Asia/Tokyo", tmp_path / "x.csv")
    assert [it["time"] for it in cells(tmp_path / "x.csv")] == ["2026-03-03 03:00", ""]


ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
IDS = st.lists(
    st.one_of(st.sampled_from([*SNOWFLAKES, HOSTILE, "a;b", 'q"', "m1", "h2"]), ANYTHING).filter(
        lambda it: it == it.strip() and it != ""
    ),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip
DIALECTS = [
    {"encoding": "utf-8-sig", "delimiter": ","},
    {"encoding": "utf-8", "delimiter": ";", "quoting": csv.QUOTE_ALL},
    {"encoding": "utf-16", "delimiter": "\t"},
    {"encoding": "cp1252", "delimiter": ";", "lineterminator": "\n"},
]


@given(st.data(), IDS, st.sampled_from(DIALECTS), st.permutations(COLUMNS))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_ticked_comes_back_exactly(tmp_path_factory, data, ids, dialect, columns):
    texts = data.draw(st.lists(ANYTHING, min_size=len(ids), max_size=len(ids)))
    talk = [
        say("Ada", text, id=it, minute=n)
        for n, (it, text) in enumerate(zip(ids, texts, strict=True))
    ]
    path = written(tmp_path_factory.getbasetemp(), talk)
    rows = cells(path)
    assert len(rows) == len(ids)
    ticks = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    ticks[0] = True
    for row, tick in zip(rows, ticks, strict=True):
        yes = data.draw(st.sampled_from(["x", "X ", "1", "Yes", "ja", "WAHR", "true"]))
        row["keep"] = yes if tick else data.draw(st.sampled_from(["", "0", "no", "FALSCH"]))
    save(path, rows, columns, **dialect)
    measures = measured(talk)
    order = measures.frame.sort("timestamp", "id")["id"].to_list()
    expected = {it for it, tick in zip(order, ticks, strict=True) if tick}
    assert read_ticks(path, measures.frame["id"]) == expected


def test_an_id_survives_a_spreadsheet_that_rounds_numbers(tmp_path):
    path = written(tmp_path, [say("Ada", id=it) for it in SNOWFLAKES])
    rows = cells(path)
    for row in rows:
        row["keep"] = "x"
        for name, value in row.items():
            if re.fullmatch(r"[\d.]+", value):
                row[name] = f"{float(value):.4E}"
    # `keep` itself holds no number here; keys do not look like one.
    save(path, rows, delimiter=";")
    assert read_ticks(path, pl.Series(SNOWFLAKES)) == set(SNOWFLAKES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252"])
def test_what_excel_saves_where_semicolons_part_the_cells_is_read(tmp_path, encoding):
    talk = [
        say("Zoë", 'so she said "no; never", and went\nhome', id=SNOWFLAKES[0]),
        say("Łukasz", "a;b", id=SNOWFLAKES[1], minute=1),
        say("Bob", "—", id=SNOWFLAKES[2], minute=2),
    ]
    path = written(tmp_path, talk)
    rows = cells(path)
    rows[0]["keep"], rows[2]["keep"] = "x", "X"
    save(path, rows, encoding=encoding, delimiter=";")
    assert path.read_bytes().split(b"keep")[1].startswith(b";key;quality;")
    assert read_ticks(path, pl.Series(SNOWFLAKES)) == {SNOWFLAKES[0], SNOWFLAKES[2]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252"])
def test_what_a_double_click_left_in_one_column_is_recognised(tmp_path, encoding):
    path = written(tmp_path, chatter(3))
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    # Excel unquotes what it takes for the first cell, and saves all as that cell; ticked beside it.
    columns = [line.split('"', 2)[1] + line.split('"', 2)[2] for line in lines]
    cell = [it.replace('"', '""') for it in columns]
    saved = [f'"{it}";{"x" if n else ""}' for n, it in enumerate(cell)]
    assert saved[0].startswith('"keep,""key"",""quality"",')
    path.write_text("\r\n".join(saved), encoding=encoding, newline="")
    with pytest.raises(UserError, match=r"each row in one cell.*Data > From Text/CSV"):
        read_ticks(path, pl.Series(["m0", "m1", "m2"]))


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE, "  =1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a;=1+1", 'a","=1', "a\n=1",
        "a\t=1", "a, =1", "＝1+1",
    ],
)  # fmt: skip
def test_no_cell_runs_as_a_formula_in_any_country(tmp_path, text):
    talk = [say(text, text, id=text, channel=text)]
    path = written(tmp_path, [*talk, say("Bob", id="2", minute=1, channel=text)])
    content = path.read_bytes().decode("utf-8-sig")
    # However a spreadsheet cuts it into cells, none begins with a sign.
    for cell in re.split(r'[,;\t\n"]', content):
        assert cell.strip()[:1] not in {*"=+-@＝＋－＠"}


def test_terminal_and_direction_characters_are_gone(tmp_path):
    path = written(tmp_path, [say("\u202eAda", "a\x1b[31m\u2066b\x00c", id="1")])
    assert not set(path.read_text(encoding="utf-8-sig")) & {"\x1b", "\u202e", "\u2066", "\x00"}


def test_ticks_are_never_written_over(tmp_path):
    path = written(tmp_path, chatter(3))
    with pytest.raises(UserError, match="perhaps with your ticks"):
        write_csv(measured(chatter(3)), np.ones(3, np.bool_), "UTC", path)


def ticked(path, *answers, **changes):
    rows = cells(path)
    for row, answer in zip(rows, answers, strict=False):
        row.update({"keep": answer, **changes})
    save(path, rows)
    return path


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda it: it.unlink(), "cannot be read"),
        (lambda it: it.write_bytes(b"PK\x03\x04..."), "spreadsheet's own format"),
        (lambda it: it.write_bytes(b""), "no columns `keep` and `key`"),
        (lambda it: it.write_text("a,b\n1,2\n"), "no columns `keep` and `key`"),
        (ticked, "no message is ticked"),
        (lambda it: ticked(it, "perhaps"), "line 2: perhaps in keep"),
        (lambda it: ticked(it, "x", key=""), "line 2: ticked, but its key is gone"),
        (lambda it: ticked(it, "x", key="1.4194E+18"), "its key is gone"),
        (lambda it: ticked(it, *"?????"), "2 more lines like these"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_file_is_told(tmp_path, spoil, problem):
    path = written(tmp_path, chatter(5))
    spoil(path)
    with pytest.raises(UserError) as raised:
        read_ticks(path, pl.Series([f"m{n}" for n in range(5)]))
    assert problem in " ".join(raised.value.problems)


def test_long_texts_are_cut_to_what_a_cell_holds(tmp_path):
    talk = [say("Ada", "a" * 50_000, id="1"), replace(say("Bob", minute=1), id="2")]
    rows = cells(written(tmp_path, talk))
    assert max(len(cell) for row in rows for cell in row.values()) < 32_767
    assert len(rows[1]["before"]) < 400
