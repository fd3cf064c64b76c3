"""The rules between the parts. Each rule is a function, and each is tried on a planted breach."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "src" / "discord_lora"
SCRIPTS = [
    *sorted((ROOT / "scripts").glob("*.py")),
    *sorted((ROOT / "training").glob("*.py")),
    *sorted((ROOT / "src").glob("*.py")),
]
BENCHMARKS = [
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "benchmarks" / "comparison").glob("*.py")),
]
# Importable in well under a second, so that the analyzer answers --help at once.
LIGHT = ("messages", "analysis", "settings", "console", "bootstrap", "sample")
HEAVY = {"torch", "transformers", "bitsandbytes", "peft", "accelerate", "datasets"}
# The two of the set-up hand a cleaned environment to the processes they start; one word to torch,
# which listens to nothing else, has to be said before anything imports it.
MAY_READ_ENVIRONMENT = {
    LIBRARY / name for name in ("__init__.py", "settings.py", "bootstrap.py", "commands.py")
}
# They run before anything is installed, on whatever Python somebody has.
BEFORE_INSTALLATION = [
    LIBRARY / "__init__.py",
    LIBRARY / "bootstrap.py",
    LIBRARY / "commands.py",
    LIBRARY / "torch_build.py",
    ROOT / "scripts" / "check.py",
    ROOT / "scripts" / "quickstart.py",
    ROOT / "benchmarks" / "compare_training.py",
]
ALSO_BEFORE = {"discord_lora.bootstrap", "discord_lora.commands", "discord_lora.torch_build"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
LONGEST_SCRIPT = 150
LONGEST_FUNCTION = 60


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_modules(node: ast.AST) -> Iterator[str]:
    """Full names of the modules imported anywhere below `node`, lazily or not."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module


def top(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


# --- the rules: each returns the breaches it finds --------------------------------------------


def heavy_at_import(source: Path, package: str, rooms: Iterable[str]) -> set[str]:
    """Heavy libraries that are loaded once every module of the rooms has been imported."""
    program = f"""
        import importlib, pkgutil, sys
        sys.path.insert(0, {str(source)!r})
        for room in {list(rooms)!r}:
            name = {package!r} + "." + room
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                continue
            for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
                importlib.import_module(found.name)
        print(*sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())


def discord_users(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if "discord" in {top(it) for it in imported_modules(tree(path))}]


def environment_users(paths: Iterable[Path]) -> list[Path]:
    names = {"environ", "environb", "getenv", "putenv"}
    return [
        path
        for path in paths
        if any(
            (isinstance(node, ast.Attribute) and node.attr in names)
            or (isinstance(node, ast.ImportFrom) and names & {alias.name for alias in node.names})
            for node in ast.walk(tree(path))
        )
    ]


def code_executors(path: Path) -> list[str]:
    """What could run code that came with data: pickle, eval, exec, unguarded torch.load."""
    module = tree(path)
    found = [name for name in imported_modules(module) if top(name) in UNSAFE_MODULES]
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {it.arg: it.value for it in call.keywords}
        unguarded = not is_true(given.get("weights_only"))
        if name in {"eval", "exec", "compile", "__import__"}:
            found.append(name)
        elif name.endswith("torch.load") and unguarded:
            found.append("torch.load without weights_only=True")
        elif "trust_remote_code" in given and not is_false(given["trust_remote_code"]):
            found.append("trust_remote_code")
    return found


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def script_faults(path: Path, scripts: Iterable[str]) -> list[str]:
    """What keeps an entry script from being short, alone and safe to import (Windows spawns)."""
    module = tree(path)
    faults = []
    if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_SCRIPT:
        faults.append(f"over {LONGEST_SCRIPT} lines")
    others = set(scripts) - {path.stem}
    if others & {part for name in imported_modules(module) for part in name.split(".")}:
        faults.append("imports another script")
    guards = [node for node in module.body if is_main_guard(node)]
    if len(guards) != 1:
        faults.append("no `if __name__ == '__main__':`")
    outside = [node for node in module.body if node not in guards and not is_definition(node)]
    if any(mentions_main(node) for node in outside):
        faults.append("runs main() on import")
    return faults


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def mentions_main(node: ast.stmt) -> bool:
    return any(isinstance(it, ast.Name) and it.id == "main" for it in ast.walk(node))


def needs_installation(path: Path) -> list[str]:
    """Imports at module level that a bare Python does not have."""
    top_level = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in top_level for name in imported_modules(node)}
    return sorted(
        name
        for name in names
        if top(name) not in sys.stdlib_module_names and name not in ALSO_BEFORE
    )


def long_functions(path: Path) -> list[str]:
    return [
        node.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION
    ]


# --- the project keeps them -------------------------------------------------------------------


def test_light_rooms_import_nothing_heavy():
    assert heavy_at_import(ROOT / "src", "discord_lora", LIGHT) == set()


def test_discord_is_known_only_to_its_room():
    outside = [path for path in sources(LIBRARY) if "discord_bot" not in path.parts]
    assert discord_users([*outside, *SCRIPTS]) == []


def test_the_environment_is_read_in_one_place():
    others = [path for path in sources(LIBRARY) if path not in MAY_READ_ENVIRONMENT]
    assert environment_users([*others, *SCRIPTS]) == []


@pytest.mark.parametrize("path", sources(LIBRARY), ids=lambda it: it.stem)
def test_nothing_that_is_loaded_can_run_code(path):
    assert code_executors(path) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda it: it.stem)
def test_entry_scripts_are_short_and_alone(path):
    assert script_faults(path, [it.stem for it in SCRIPTS]) == []


@pytest.mark.parametrize("path", BEFORE_INSTALLATION, ids=lambda it: it.stem)
def test_set_up_needs_only_a_bare_and_even_an_old_python(path):
    assert needs_installation(path) == []
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_no_function_is_longer_than_a_screen():
    found = {path.name: long_functions(path) for path in [*sources(LIBRARY), *SCRIPTS, *BENCHMARKS]}
    assert {name: functions for name, functions in found.items() if functions} == {}


# --- and the rules see a breach ---------------------------------------------------------------


def plant(folder: Path, text: str, name: str = "planted.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_a_heavy_import_is_seen(tmp_path):
    plant(tmp_path, "", "peft.py")
    plant(tmp_path, "", "package/__init__.py")
    plant(tmp_path, "", "package/messages/__init__.py")
    plant(tmp_path, "import peft", "package/messages/deep.py")
    assert heavy_at_import(tmp_path, "package", ["messages", "missing"]) == {"peft"}


@pytest.mark.parametrize("line", ["import discord", "from discord.ext import commands"])
def test_a_discord_import_is_seen(tmp_path, line):
    path = plant(tmp_path, f"def later():\n    {line}\n")
    assert discord_users([path]) == [path]
    assert discord_users([plant(tmp_path, "import discord_lora.settings")]) == []


@pytest.mark.parametrize(
    "text", ["import os\nos.environ['A']", "from os import getenv", "import os\nos.getenv('A')"]
)
def test_reading_the_environment_is_seen(tmp_path, text):
    path = plant(tmp_path, text)
    assert environment_users([path]) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "exec('pass')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "load('x', trust_remote_code=True)",
    ],
)
def test_running_code_from_data_is_seen(tmp_path, text):
    assert len(code_executors(plant(tmp_path, text))) == 1


def test_safe_loading_is_allowed(tmp_path):
    text = "import torch\ntorch.load('x', weights_only=True)\nmodel.eval()"
    assert code_executors(plant(tmp_path, text)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def main(): ...\nmain()\nif __name__ == '__main__':\n    main()", "runs main()"),
        ("import sys\ndef main(): ...\nsys.exit(main())", "no `if __name__"),
        ("from scripts.other import x\nif __name__ == '__main__':\n    x()", "imports another"),
        ("if __name__ == '__main__':\n    pass\n" + "\n" * 150, "over 150 lines"),
    ],
)
def test_a_faulty_script_is_seen(tmp_path, text, fault):
    assert fault in " ".join(script_faults(plant(tmp_path, text), ["planted", "other"]))


def test_an_import_that_a_bare_python_lacks_is_seen(tmp_path):
    text = (
        "import os\nimport rich\nfrom discord_lora.bootstrap import x\ndef f():\n    import torch"
    )
    assert needs_installation(plant(tmp_path, text)) == ["rich"]


def test_a_long_function_is_seen(tmp_path):
    body = "    pass\n" * LONGEST_FUNCTION
    assert long_functions(plant(tmp_path, f"def far():\n{body}")) == ["far"]


@pytest.mark.parametrize(
    ("importer", "imported", "kept"),
    [
        ("conversations", "messages", True),
        ("messages", "conversations", False),
        ("conversations", "inference", False),
        ("inference", "finetuning", False),
        ("finetuning", "inference", False),
        ("finetuning", "discord_bot", False),
        ("console", "messages", False),
        ("analysis/filtering", "analysis.report", True),
        ("analysis/report", "analysis.plan", False),
        ("analysis/plan", "analysis.filtering", False),
        ("analysis/report", "analysis.morning", False),
        ("analysis/morning", "analysis.plan", True),
        ("analysis/plan", "analysis.morning", False),
    ],
)
def test_import_rules_see_a_breach(tmp_path, importer, imported, kept):
    stages = ("messages", "conversations", "analysis", "finetuning", "inference", "discord_bot")
    analysis = tuple(f"analysis/{room}" for room in ("report", "plan", "filtering", "morning"))
    for room in (*stages, *analysis, "console"):
        plant(tmp_path, "", f"discord_lora/{room}/__init__.py")
    plant(tmp_path, "", "discord_lora/__init__.py")
    plant(tmp_path, f"import discord_lora.{imported}", f"discord_lora/{importer}/__init__.py")
    run = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command"
    options = ["--no-cache", "--no-logo", "--config", str(ROOT / "pyproject.toml")]
    answer = subprocess.run(
        [sys.executable, "-c", f"{run}; lint_imports_command()", *options],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (answer.returncode == 0) == kept, answer.stdout
