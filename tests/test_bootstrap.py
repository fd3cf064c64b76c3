"""The one-command set-up, on a tiny repository of its own: no network, a package of two lines."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from discord_lora import bootstrap, commands
from discord_lora.bootstrap import SetupError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
    import sys
    from pathlib import Path
    ROOT = Path(__file__).resolve().parent
    sys.path.insert(0, str(ROOT / "src"))
    from discord_lora.bootstrap import ensure_environment
    ensure_environment(ROOT / "requirements.txt")
    import tiny
    print("tiny", tiny.VERSION, "arguments", sys.argv[1:])
    sys.exit(7)
"""


@pytest.fixture
def repository(tmp_path):
    return make_repository(tmp_path / "repository")


def make_repository(root):
    package = root / "src" / "discord_lora"
    package.mkdir(parents=True)
    for name in ("__init__.py", "bootstrap.py", "commands.py", "torch_build.py"):
        shutil.copy(ROOT / "src" / "discord_lora" / name, package / name)
    make_wheel(root / "wheels", "1")
    (root / "script.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    require(root, "tiny==1")
    (root / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["tiny"]\n')
    return root


def require(root, line):
    text = f"--no-index\n--find-links ./wheels\n{line}\n"
    (root / "requirements.txt").write_text(text, encoding="utf-8")


def make_wheel(folder, version):
    """The smallest wheel that pip installs."""
    folder.mkdir(exist_ok=True)
    info = f"tiny-{version}.dist-info"
    with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", f"VERSION = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def run(root, *arguments):
    """Run the script as a user with no set-up would; pip may not go out to the network."""
    return subprocess.run(
        [sys.executable, str(root / "script.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_NO_INDEX": "1"},
        check=False,
    )


# --- the whole way ----------------------------------------------------------------------------


@pytest.mark.slow
def test_one_command_from_nothing_then_again_then_changed_then_broken(repository):
    first = run(repository, "--flag", "two words")
    assert first.stdout.splitlines()[-1] == "tiny 1 arguments ['--flag', 'two words']", first
    assert first.returncode == 7
    assert "Installing requirements.txt" in first.stdout
    assert "Successfully installed tiny-1" in (repository / "logs" / "setup.log").read_text()

    began = time.monotonic()
    again = run(repository)
    assert again.stdout == "tiny 1 arguments []\n"
    assert again.returncode == 7
    assert time.monotonic() - began < 5

    make_wheel(repository / "wheels", "2")
    require(repository, "tiny==2")
    assert "tiny 2 arguments" in run(repository).stdout

    # An installation that was cut off leaves packages half there and no stamp.
    bootstrap.stamp_path(repository).unlink()
    next((repository / ".venv").rglob("tiny.py")).unlink()
    next((repository / ".venv").rglob("tiny-2.dist-info/METADATA")).unlink()
    shutil.rmtree(next((repository / ".venv").rglob("tiny-2.dist-info")))
    assert "tiny 2 arguments" in run(repository).stdout

    require(repository, "missing==3")
    failed = run(repository)
    assert failed.returncode == 2
    assert "No matching distribution found for missing==3" in failed.stdout
    assert "run the same command again" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    assert not bootstrap.stamp_path(repository).exists()


@pytest.mark.slow
def test_an_environment_that_was_copied_or_cut_off_is_made_again(repository, tmp_path):
    run(repository)
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy, symlinks=True)
    copied = run(copy)
    assert "was made in another folder: making it again" in copied.stdout
    assert copied.returncode == 7

    bootstrap.environment_python(copy).unlink()
    repaired = run(copy)
    assert "is incomplete or belongs to a Python that is gone" in repaired.stdout
    assert repaired.returncode == 7


@pytest.mark.slow
def test_a_folder_with_its_own_requirements_has_its_own_environment(repository):
    folder = repository / "extra"
    folder.mkdir()
    script = textwrap.dedent(SCRIPT).replace("parent\n", "parent.parent\n", 1)
    script = script.replace('"requirements.txt"', '"extra" / "requirements.txt"')
    (folder / "script.py").write_text(script, encoding="utf-8")
    (folder / "requirements.txt").write_text("-r ../requirements.txt\n", encoding="utf-8")
    answer = run(folder)
    assert "tiny 1 arguments" in answer.stdout, answer
    assert bootstrap.environment_python(folder).exists()
    assert not (repository / ".venv").exists()
    assert "Successfully installed tiny-1" in (repository / "logs" / "setup.log").read_text()


def test_ctrl_c_in_the_installation_leaves_no_stamp_and_no_traceback(repository):
    (repository / ".venv").mkdir()
    (repository / ".venv" / bootstrap.STAMP_NAME).write_text("{}")
    program = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(repository / "src")!r})
        from discord_lora import bootstrap, commands
        def install(*_):
            print("installing", flush=True)
            time.sleep(60)
        bootstrap.install = install
        bootstrap.mention_other_environment = lambda *_: None
        bootstrap.make_environment = lambda *_: None
        bootstrap.ensure_environment(Path({str(repository / "requirements.txt")!r}))
    """
    with start(program) as process:
        assert process.stdout.readline() == "installing\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "goes on from here" in output
    assert "Traceback" not in errors
    assert not bootstrap.stamp_path(repository).exists()


def start(program):
    if os.name == "nt":
        pytest.skip("Ctrl+C cannot be sent to one process on Windows")
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# --- which Python, which environment ----------------------------------------------------------


@pytest.mark.parametrize("version", [(2, 7), (3, 8), (3, 10), (3, 14)])
def test_a_python_without_wheels_gets_a_sentence(version):
    with pytest.raises(SetupError, match=r"needs Python 3\.11 to 3\.13 and this is Python"):
        bootstrap.check_python(version)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13), (3, 13, 2)])
def test_a_python_with_wheels_passes(version):
    bootstrap.check_python(version)


def test_the_sentence_reaches_the_user_as_exit_code_2(repository, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit) as stop:
        bootstrap.ensure_environment(repository / "requirements.txt")
    assert stop.value.code == 2
    assert capsys.readouterr().out.startswith("error: this needs Python 3.11 to 3.13")


def test_a_full_disk_is_a_sentence_too(repository, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bootstrap, "prepare", full)
    with pytest.raises(SystemExit) as stop:
        bootstrap.ensure_environment(repository / "requirements.txt")
    assert stop.value.code == 2
    assert "free some space" in capsys.readouterr().out


def test_a_debian_python_without_venv_gets_the_package_to_install(repository, monkeypatch):
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"sudo apt install python3\.\d+-venv"):
        bootstrap.make_environment(repository, "is missing", print)


def test_an_active_environment_is_left_alone_and_named(repository, monkeypatch, capsys):
    monkeypatch.setenv("CONDA_PREFIX", "somewhere-else")
    bootstrap.mention_other_environment(repository, print)
    assert "(somewhere-else); it stays untouched" in capsys.readouterr().out


def test_misleading_variables_do_not_reach_the_new_environment(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "wrong")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example")
    environment = commands.clean_environment()
    assert "PYTHONHOME" not in environment
    assert environment["PIP_INDEX_URL"] == "https://mirror.example"


def test_a_second_rerun_is_refused_instead_of_going_round_for_ever(repository, monkeypatch):
    monkeypatch.setenv(bootstrap.RERUN_MARK, "1")
    with pytest.raises(SetupError, match="delete that folder"):
        bootstrap.rerun(repository)


# --- the stamp --------------------------------------------------------------------------------


def stamped(root, requirements="requirements.txt"):
    (root / ".venv").mkdir(exist_ok=True)
    bootstrap.write_stamp(root, bootstrap.requirement_fingerprints(root, requirements))
    return root


def is_satisfied(root, requirements="requirements.txt"):
    wanted = bootstrap.requirement_fingerprints(root, requirements)
    return bootstrap.stamp_satisfies(bootstrap.read_stamp(root), wanted, root)


def test_what_was_installed_for_the_tests_serves_the_scripts_too(repository):
    (repository / "requirements-dev.txt").write_text("-r requirements.txt\nruff\n")
    stamped(repository, "requirements-dev.txt")
    assert is_satisfied(repository)
    assert is_satisfied(repository, "requirements-dev.txt")


def test_the_scripts_set_up_does_not_serve_the_tests(repository):
    (repository / "requirements-dev.txt").write_text("-r requirements.txt\nruff\n")
    stamped(repository)
    assert not is_satisfied(repository, "requirements-dev.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.txt", "tiny==9\n"),
        ("pyproject.toml", '[project]\nname = "x"\ndependencies = ["tiny", "other"]\n'),
        (f".venv/{bootstrap.STAMP_NAME}", "{"),
        (f".venv/{bootstrap.STAMP_NAME}", "[]"),
    ],
)
def test_a_change_makes_the_next_run_install_again(repository, name, text):
    assert is_satisfied(stamped(repository))
    (repository / name).write_text(text)
    assert not is_satisfied(repository)


def test_line_ends_and_tool_settings_change_nothing(repository):
    stamped(repository)
    requirements = repository / "requirements.txt"
    requirements.write_bytes(requirements.read_bytes().replace(b"\n", b"\r\n"))
    with (repository / "pyproject.toml").open("a") as stream:
        stream.write("[tool.ruff]\nline-length = 90\n")
    assert is_satisfied(repository)


@pytest.mark.parametrize(
    ("made_by", "now", "fault"),
    [
        ("3.11", "3.11", None),
        ("3.13", "3.13", None),
        ("3.11", "3.12", "is for Python 3.11"),  # the system's Python was upgraded under it
        ("3.9", "3.9", "is for Python 3.9"),
        (None, "3.12", None),  # made by hand
        (None, "3.14", "is for Python 3.14"),
    ],
)
def test_an_environment_is_kept_if_it_is_of_a_supported_python(
    repository, monkeypatch, made_by, now, fault
):
    prefix = str(repository / ".venv")
    monkeypatch.setattr(bootstrap, "ask_environment", lambda _: (made_by, prefix))
    (repository / ".venv").mkdir()
    if made_by:
        bootstrap.write_stamp(repository, {})
    monkeypatch.setattr(bootstrap, "ask_environment", lambda _: (now, prefix))
    assert bootstrap.environment_fault(repository) == fault


def test_a_moved_repository_is_noticed(repository):
    stamped(repository)
    moved = repository.rename(repository.with_name("moved"))
    assert not is_satisfied(moved)
    assert bootstrap.environment_fault(moved) == "was made in another folder"


# --- torch for Windows with an NVIDIA card ----------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "capability", "build"),
    [
        (581, (7, 5), "cu130"),  # RTX 2080 Ti
        (552, (7, 5), "cu126"),  # the same with last year's driver
        (581, (6, 1), "cu126"),  # GTX 1080: no kernels for it after CUDA 12
        (552, (12, 0), "cu130"),  # RTX 5090: no kernels for it before CUDA 13
        (0, (0, 0), "cu126"),  # nvidia-smi would not say
    ],
)
def test_the_cuda_build_fits_card_and_driver(driver, capability, build):
    assert bootstrap.cuda_build(driver, capability) == build


@pytest.mark.parametrize(
    ("answer", "card"),
    [("581.42, 7.5\n552.1, 8.6\n", (581, (7, 5))), ("No devices were found\n", (0, (0, 0)))],
)
def test_the_card_is_read_from_nvidia_smi(monkeypatch, answer, card):
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: done)
    assert bootstrap.nvidia_card() == card


def test_only_torch_comes_from_pytorchs_own_index(repository, monkeypatch):
    (repository / "requirements.txt").write_text("torch==2.13.0\nrich==15.0.0\n")
    calls = []
    monkeypatch.setattr(bootstrap, "wants_cuda_wheel", lambda: True)
    monkeypatch.setattr(bootstrap, "nvidia_card", lambda: (581, (7, 5)))
    monkeypatch.setattr(bootstrap, "pip", lambda *it: calls.append(it[1]) or (0, []))
    bootstrap.install(repository, "requirements.txt", lambda _: None)
    index = "https://download.pytorch.org/whl/cu130"
    assert calls[1:] == [
        ["install", "torch==2.13.0+cu130", "--index-url", index],
        ["install", "-r", str(repository / "requirements.txt")],
    ]


# --- long commands ----------------------------------------------------------------------------


def run_python(tmp_path, code, **options):
    said = []
    command = [sys.executable, "-c", code]
    log = tmp_path / "logs" / "setup.log"
    result = commands.run_logged(command, log, said.append, "testing", **options)
    return result, said, log.read_text(encoding="utf-8")


def test_a_long_command_gives_signs_of_life_and_its_exit_code(tmp_path):
    code = "import time; print('Collecting tiny', flush=True); time.sleep(0.6); raise SystemExit(3)"
    (exit_code, lines), said, _ = run_python(tmp_path, code, heartbeat_seconds=0.2)
    assert exit_code == 3
    assert lines == ["Collecting tiny"]
    assert said[0].startswith("  ... testing, ")
    assert said[-1].endswith(" s: Collecting tiny")


def test_no_login_and_no_token_reaches_the_log_or_the_screen(tmp_path):
    code = (
        "print('Looking in https://me:hunter2@mirror.example/simple?a=1&auth_token=hunter2&b=2');"
        "print('file.whl?X-Amz-Signature=hunter2')"
    )
    (_, lines), _, log = run_python(tmp_path, code)
    assert "hunter2" not in log + "".join(lines)
    assert lines[0] == "Looking in https://***@mirror.example/simple?a=1&auth_token=***&b=2"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full; free some space"),
        ("NewConnectionError: Temporary failure in name resolution", "check the connection"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "not the one that was published"),
        ("error: something new", "    error: something new"),
    ],
)
def test_a_failure_says_what_to_do_next(tmp_path, output, sentence):
    text = commands.explain_failure([output], tmp_path / "setup.log", "installing")
    assert text.startswith("installing failed")
    assert sentence in text
    assert "run the same command again" in text
    assert "setup.log" in text


def test_the_childs_exit_code_is_passed_on():
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    assert bootstrap.run_as_child(command, dict(os.environ)) == 7


def test_ctrl_c_is_left_to_the_child():
    program = """
        import os, sys
        from discord_lora.bootstrap import run_as_child
        child = '''
        import time
        try:
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.5)
            print("saved", flush=True)
            raise SystemExit(130)
        '''
        import textwrap
        command = [sys.executable, "-c", textwrap.dedent(child)]
        sys.exit(run_as_child(command, dict(os.environ)))
    """
    with start(program) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, "saved\n", "")
