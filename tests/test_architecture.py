"""The house: who may import whom, what is public, and that every command is documented."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sightline

SOURCE = Path(sightline.__file__).parent
ROOT = SOURCE.parent.parent
# A module may import only from those before it.
ORDER = (
    "exceptions",
    "pipelines",
    "augment",
    "recipe",
    "datasets",
    "imagefiles",
    "planted",
    "lean",
    "winograd",
    "models",
    "batches",
    "allocation",
    "schedule",
    "runs",
    "precision",
    "evaluation",
    "training",
    "mistakes",
    "heatmaps",
    "faithfulness",
    "comparison",
    "probes",
    "diagnosis",
    "marks",
    "prescription",
    "figures",
    "reporting",
    "notebook",
    "exports",
    "terminal",
    "cli",
    "__main__",
)
# Names that only a type checker sees, and imports inside a function that choose by name, may point upwards.
BY_NAME = {("runs", "models"), ("runs", "datasets"), ("datasets", "planted")} | {
    (result, "notebook") for result in ("runs", "comparison", "diagnosis", "prescription")
}


# A module that outgrew its room: the files of its folder, in their order; `__init__` is the last.
FOLDERS = {
    "augment": (
        "base",
        "geometry",
        "erasing",
        "remedies",
        "colour",
        "quality",
        "trivial",
        "mixing",
        "persample",
        "policy",
        "imagewise",
        "exchange",
        "__init__",
    ),
    "planted": ("scenes", "edits", "plants", "__init__"),
    "probes": (
        "evidence",
        "subject",
        "objects",
        "sensitivity",
        "deletion",
        "transplants",
        "marks",
        "scenes",
        "features",
        "labels",
        "field",
        "__init__",
    ),
    "prescription": ("edits", "ground", "plan", "measures", "pruning", "proof", "variety", "campaign", "__init__"),
    "reporting": ("words", "pictures", "gallery", "causes", "change", "samples", "page", "__init__"),
    "training": (
        "optimizers",
        "memory",
        "progress",
        "learner",
        "rate",
        "state",
        "loop",
        "reproduction",
        "__init__",
    ),
    "heatmaps": (
        "drawing",
        "layers",
        "network",
        "targets",
        "methods",
        "fullgrad",
        "batch",
        "attributions",
        "engine",
        "sweep",
        "__init__",
    ),
}


def files(module: str) -> list[Path]:
    """The files of a module: one, or those of its folder."""
    return [SOURCE / module / f"{name}.py" for name in FOLDERS[module]] if module in FOLDERS else [SOURCE / f"{module}.py"]


def imports(path: Path, level: int = 1) -> set[str]:
    """Sightline's own modules that a file imports with `level` dots, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found


def imported(module: str) -> set[str]:
    """The modules that a module imports."""
    return {name for path in files(module) for name in imports(path, 2 if module in FOLDERS else 1)}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} - {"__init__"} | set(FOLDERS) == set(ORDER)
    assert {path for folder in FOLDERS for path in (SOURCE / folder).glob("*.py")} == {p for f in FOLDERS for p in files(f)}


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way(module: str) -> None:
    above = ORDER[: ORDER.index(module)]
    upwards = {name for name in imported(module) if name not in above}
    assert {(module, name) for name in upwards} <= BY_NAME


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_within_a_folder_go_one_way(folder: str) -> None:
    for i, path in enumerate(files(folder)):
        assert imports(path) <= set(FOLDERS[folder][:i]), path.name


def test_below_training_nothing_trains() -> None:
    for module in ORDER[ORDER.index("training") + 1 : ORDER.index("terminal")]:
        assert ("training" in imported(module)) == (module == "prescription"), module


def test_only_the_command_line_prints() -> None:
    for path in SOURCE.rglob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        printing = [f for f in calls if isinstance(f, ast.Name) and f.id == "print"]
        printing += [
            f for f in calls if isinstance(f, ast.Attribute) and f.attr in ("print", "write") and "std" in ast.dump(f.value)
        ]
        assert path.stem == "cli" or not printing, path.name


def test_the_public_names_are_what_all_says() -> None:
    assert sightline.__all__ == sorted(sightline.__all__)
    for name in sightline.__all__:
        assert getattr(sightline, name).__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError):
        _ = sightline.nothing  # type: ignore[attr-defined]


def test_every_public_function_and_class_has_a_docstring() -> None:
    missing = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{path.stem}.{node.name}")
    assert missing == []


def test_every_command_is_in_the_readme() -> None:
    from sightline.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert re.search(rf"sightline {name}\b", readme), name


def test_every_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    listed = re.findall(r'^  "([a-z0-9-]+)[><=]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed
    assert set(listed) <= pinned
