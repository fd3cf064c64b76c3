import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from discord_lora.console import UserError
from discord_lora.env_file import write_env
from discord_lora.settings import load_settings


def env(tmp_path, text, encoding="utf-8"):
    path = tmp_path / ".env"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_writing_values_keeps_comments_and_a_copy(tmp_path, encoding, newline):
    lines = (
        "# Größe zählt", "EPOCHS=3  # three", "", "export MAX_STEPS=", "BOT_NAME='Bö # t'",
        "# EPOCHS=9", "learning_rate = 1e-4",
    )  # fmt: skip
    path = env(tmp_path, newline.join(lines), encoding)
    before = path.read_bytes()
    backup = write_env(
        path, {"EPOCHS": "0.5", "MAX_STEPS": "7", "LEARNING_RATE": "2e-4", "SEED": "1"}
    )
    assert backup.read_bytes() == before
    assert path.read_bytes().decode().removeprefix("\ufeff").split(newline) == [
        "# Größe zählt", "EPOCHS=0.5  # three", "", "export MAX_STEPS=7", "BOT_NAME='Bö # t'",
        "# EPOCHS=9", "learning_rate =2e-4", "SEED=1", "",
    ]  # fmt: skip
    again = write_env(path, {"EPOCHS": "2"})
    assert again != backup
    assert backup.read_bytes() == before
    read = load_settings({"epochs": "0.5"}, env_file=path)
    assert (read.epochs, read.max_steps, read.bot_name) == (0.5, 7, "Bö # t")


def test_writing_values_makes_a_file_where_there_is_none(tmp_path):
    path = tmp_path / ".env"
    assert write_env(path, {"EPOCHS": "2"}) is None
    assert path.read_text() == "EPOCHS=2\n"
    with pytest.raises(UserError, match="cannot write"):
        write_env(tmp_path / "nowhere" / ".env", {"EPOCHS": "2"})


def test_a_symbolic_link_stays_one(tmp_path):
    path = env(tmp_path, "EPOCHS=9\n")
    link = tmp_path / "my.env"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("symbolic links are not allowed here")
    write_env(link, {"EPOCHS": "2"})
    assert link.is_symlink()
    assert path.read_text() == "EPOCHS=2\n"


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    """It may hold a token."""
    (tmp_path / "my.env").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_env(tmp_path / "my.env", {"EPOCHS": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["my.env"]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])))
@example("Ada # Lovelace")
@example("'quoted'")
@example('"quoted" # so')
@example("ada#1234")
@example("#1")
@example(r"back\slash, it's # one")
@example("two\nlines # one")
def test_a_line_is_read_as_it_was_meant(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("env") / ".env"
    write_env(path, {"BOT_NAME": value, "SEED": "7"})
    read = load_settings(env_file=path)
    assert (read.bot_name, read.seed) == (value.strip() or "Bot", 7)


@pytest.mark.parametrize(
    "folder", [r"C:\Users\new\chat #1 #2", "Ben's chat #1", "x #1", r"C:\Ben's chat"]
)
def test_a_path_is_read_as_it_was_meant(tmp_path, folder):
    path = tmp_path / ".env"
    write_env(path, {"BASE_MODEL": folder, "BOT_NAME": folder, "SEED": "7"})
    read = load_settings(env_file=path)
    assert (read.bot_name, read.seed) == (folder, 7)
    assert read.base_model == folder


@pytest.mark.parametrize(
    "old",
    [
        'BOT_NAME="a#b"',
        "BOT_NAME='it # is'  # who",
        "BOT_NAME=ada#1234\t# who",
        'BOT_NAME= "one \\"two\\" # three"',
        "BOT_NAME='one\n# two'",
        "BOT_NAME= # nobody",
        "BOT_NAME=",
    ],
)
def test_whatever_value_there_was_is_replaced(tmp_path, old):
    path = env(tmp_path, f"SEED=1\n{old}\nEPOCHS=2\n")
    load_settings(env_file=path)
    write_env(path, {"BOT_NAME": "Ada"})
    before, line, after = path.read_text().splitlines()
    assert (before, after) == ("SEED=1", "EPOCHS=2")
    comment = old[old.index("# who") :] if "# who" in old else ""
    assert line.startswith("BOT_NAME=Ada") and line.endswith(comment)
    assert load_settings(env_file=path).bot_name == "Ada"
