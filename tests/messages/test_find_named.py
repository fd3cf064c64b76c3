import pytest

from discord_lora.console import UserError
from discord_lora.messages.find_named import Named, find_named

ROOMS = [
    Named("1", ("general", "Tea House / general"), 9),
    Named("2", ("general", "Chess Club / general"), 5),
    Named("3", ("openings", "Chess Club / openings"), 7),
    Named("4", ("", ""), 1),
]
WORDS = {"nobody": "no channel", "several": "channels"}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("3", "3"), (" 3 ", "3"), ("openings", "3"), ("#Openings", "3"), ("@openings", "3"),
        ("tea house / GENERAL", "1"),
    ],
)  # fmt: skip
def test_it_is_found_by_id_and_by_each_kind_of_name(wanted, found):
    assert find_named(ROOMS, wanted, "--channels", **WORDS).id == found


def test_a_name_that_begins_with_the_sign_is_found_as_well():
    assert find_named([Named("1", ("#1 fan",), 1)], "#1 fan", "PERSONA").id == "1"


def test_an_ambiguous_name_asks_for_an_id():
    with pytest.raises(UserError) as raised:
        find_named(ROOMS, "general", "--channels", **WORDS)
    assert raised.value.problems == (
        "--channels: 2 channels are called general; use an id: 1 (Tea House / general), "
        "2 (Chess Club / general).",
    )


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("opening", "the nearest are openings (7 messages)"),
        ("zzz", "the most active are general (9 messages), openings (7 messages), general"),
        ("", "the most active are"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_or_the_most_active(wanted, hint):
    with pytest.raises(UserError, match="no channel in the data is called") as raised:
        find_named(ROOMS, wanted, "--channels", **WORDS)
    assert hint in raised.value.problems[0]


def test_without_anybody_there_is_nobody():
    with pytest.raises(UserError, match="nobody"):
        find_named([], "ada", "PERSONA")
