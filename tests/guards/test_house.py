"""The rules of CONTRIBUTING.md that ruff cannot check."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = [
    ROOT / name for name in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split()
]
TRACKED = [path for path in TRACKED if path.is_file()]
PYTHON = [path for path in TRACKED if path.suffix == ".py"]
SOURCES = [path for path in PYTHON if "tests" not in path.relative_to(ROOT).parts]
TREES = {path: ast.parse(path.read_text()) for path in PYTHON}
LAYERS = {
    "glossary": -1, "languages": -1, "types": 0, "distributed": 0, "sentence_spans": 0, "report_sections": 0, "polarity": 0,
    "precision": 0, "files": 0, "hub": 0,
    "settings": 1, "losses": 1, "cli": 1,
    "datasets": 2, "models": 2, "metrics": 2, "phantom": 2, "visualize": 2,
    "datamodules": 3, "checkpoints": 3, "preparation": 3, "evaluation": 3,
    "training": 4, "doctor": 4,
    "finetune": 5, "inference": 5, "config": 5, "benchmarks": 5,
    "studies": 6,
}  # fmt: skip


def name_of(path):
    return str(path.relative_to(ROOT))


def imported_parts(tree):
    """Parts of mg3d that a file imports: the second word of `mg3d.part...`."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" if node.module == "mg3d" else node.module for alias in node.names]
        yield from {name.split(".")[1] for name in names if name.startswith("mg3d.")}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "mg3d")], ids=name_of)
def test_imports_go_down_only(path):
    part = path.relative_to(ROOT / "mg3d").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in LAYERS, f"{part} has no layer; add it to LAYERS and to docs/architecture.md"
    for other in imported_parts(TREES[path]):
        if other in LAYERS and other != part:
            assert LAYERS[other] < LAYERS[part], f"{part} (layer {LAYERS[part]}) must not import {other} (layer {LAYERS[other]})"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in functions(TREES[path]):
        length = node.end_lineno - node.lineno + 1
        assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nesting_stays_shallow(path):
    blocks = (ast.If, ast.For, ast.While, ast.With, ast.Try)

    def depth(node, inside=0):
        chained = isinstance(node, ast.If) and getattr(node, "is_elif", False)
        here = inside + (isinstance(node, blocks) and not chained)
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If):
                child.is_elif = True
        return max([here] + [depth(child, here) for child in ast.iter_child_nodes(node)])

    for node in functions(TREES[path]):
        assert depth(node) <= 3, f"{node.name} nests {depth(node)} levels"


def test_the_crop_is_defined_once():
    files = [name_of(path) for path in SOURCES if "0.65625" in path.read_text()]
    assert files == ["mg3d/settings/schema.py"]


def test_no_machine_paths_registry_hosts_or_star_imports():
    words = ["/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/", "pythonho" + "sted", "py" + "pi.org", "npm" + "js", "../sha" + "red"]
    found = []
    for path in TRACKED:
        if path.suffix in {".py", ".sh", ".md", ".toml", ".txt", ".yml", ".html"} or path.parent.name == ".ci":
            text = path.read_text()
            found += [f"{name_of(path)}: {word}" for word in words if word in text]
            found += [f"{name_of(path)}: star import"] if re.search(r"^from .* import \*", text, re.M) else []
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_weights_are_loaded_safely_and_strictly(path):
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        named = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert named.get("strict") != "False" or called == "zip", f"line {node.lineno}: strict=False"
        assert called != "torch.load" or named.get("weights_only") == "True", f"line {node.lineno}: torch.load"
        assert called not in {"pickle.load", "pickle.loads"}, f"line {node.lineno}: unpickles"


IMPORT_NAMES = {
    "pytorch-lightning": "pytorch_lightning", "scikit-learn": "sklearn", "pillow": "PIL", "python-gdcm": "gdcm",
    "simpleitk": "SimpleITK", "pyyaml": "yaml",
}  # fmt: skip
"""Package -> import name, where they differ."""


def import_name(line):
    package = re.split(r"[<>=!~\[;, ]", line)[0].lower()
    return IMPORT_NAMES.get(package, package)


def required():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert [line for line in lines if line][-1] == "-e ."
    return {import_name(line) for line in lines if line and not line.startswith("-")}


def extras():
    """Extra -> import names of its packages; mg3d[other] is expanded."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for lines in declared.values():
        for line in [line for line in lines if line.startswith("mg3d[")]:
            lines += declared[line.removeprefix("mg3d[").removesuffix("]")]
            lines.remove(line)
    return {extra: {import_name(line) for line in lines} for extra, lines in declared.items()}


def third_party(paths):
    found = set()
    for path in paths:
        used = set()
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                used.add(node.module.split(".")[0])
        # A test imports helpers from tests/, and a program modules of its own folder.
        ours = {file.stem for folder in (ROOT / "tests", path.parent) for file in folder.iterdir()}
        found |= used - ours
    return found - set(sys.stdlib_module_names) - {"mg3d"}


def imported_lazily(paths):
    """Top-level names of modules imported by `import_module` with a literal name."""
    calls = [node for path in paths for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    named = [call.args[0] for call in calls if ast.unparse(call.func).endswith("import_module")]
    return {name.value.split(".")[0] for name in named if isinstance(name, ast.Constant)}


def test_every_required_package_is_used_and_every_used_one_required():
    indirect = {"torchvision", "setuptools", "tensorboard", "gdcm"}  # imported by timm, Sacred, Lightning's logger, pydicom
    assert third_party(SOURCES) == required() - indirect


def test_exactly_the_packages_of_extras_are_imported_lazily():
    optional = {name for extra, names in extras().items() if extra != "dev" for name in names}
    assert imported_lazily(SOURCES) == optional
    assert not optional & required()


def test_packages_imported_by_tests_are_in_the_extra_dev():
    tests = third_party(set(PYTHON) - set(SOURCES)) - required()
    assert tests <= extras()["dev"]
    assert extras()["dev"] - tests == {"ruff", "pytest-xdist"}


def test_files_and_links_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    for script in re.findall(r"(?:bash|python) ([\w/.-]+\.(?:sh|py))", text):
        assert (ROOT / script).is_file(), f"README names {script}"
    for target in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / target).exists(), f"README links {target}"


def test_settings_and_presets_in_the_readme_exist():
    from mg3d.settings.parse import defaults
    from mg3d.settings.presets import PRESETS

    for line in re.findall(r"(?:main\.py|run_scripts/pretrain\w*\.sh)(.*)", (ROOT / "README.md").read_text()):
        for word in line.split("`")[0].split("#")[0].split():
            if re.fullmatch(r"[a-z_0-9]+=\S+", word):
                assert word.split("=")[0] in defaults(), word
            elif re.fullmatch(r"[a-z_0-9]+", word):
                assert word in set(PRESETS) | {"with", "print_config", "evaluate", "diagnose", "pretrain"}, word
