"""The house rules that no single notebook can check."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sieve"][
    "rooms"
]  # lowest first; rooms of one line do not see each other
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
LIBRARY = sorted(p for room in LEVEL for p in (ROOT / "nbs" / room).glob("*.ipynb"))
STUDIES = sorted(p for folder in ("experiments", "analyses") for p in (ROOT / "nbs" / folder).glob("*.ipynb"))
TOUR = ROOT / "nbs" / "00_tour.ipynb"  # outside the rooms: exports nothing, and may import all of them
NOTEBOOKS = [TOUR, *LIBRARY, *STUDIES]
KEPT = sorted((ROOT / "docs" / "studies").glob("*/*.ipynb"))  # executed analyses of finished sweeps
BIN = Path(sys.executable).parent


def cells(path, kind="code"):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


def code(path):
    return [c.source for c in cells(path) if not c.source.lstrip().startswith(("%", "!"))]


def exports(path):
    "The module a notebook exports, or None."
    found = [m.group(1) for s in code(path) for m in [re.search(r"#\|\s*default_exp (\S+)", s)] if m]
    return found[0] if found else None


def lib_imports(path):
    "Names of the lib modules that a notebook's code imports."
    out = set()
    for source in code(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
                out |= (
                    {f"{node.module}.{a.name}"[4:] for a in node.names}
                    if node.module[4:] in LEVEL
                    else {node.module[4:]}
                )
            if isinstance(node, ast.Import):
                out |= {a.name[4:] for a in node.names if a.name.startswith("lib.")}
    return out


def tracked(*patterns):
    return subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_there_are_notebooks_of_every_kind():
    assert len(LIBRARY) >= 10 and len(STUDIES) >= 9
    assert all(exports(p) for p in LIBRARY), [p.name for p in LIBRARY if not exports(p)]
    assert not any(exports(p) for p in [TOUR, *STUDIES])
    everywhere = {p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert everywhere == set(NOTEBOOKS)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_one_parameters_cell_annotated_and_explained(path):
    tagged = [c for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    tree = ast.parse(tagged[0].source)
    assert tree.body and all(isinstance(n, ast.AnnAssign) for n in tree.body)
    lines = tagged[0].source.splitlines()
    assert all("  # " in lines[n.lineno - 1] for n in tree.body), (
        "every parameter carries a comment: meaning, unit"
    )


def test_imports_run_one_way():
    home = {exports(p): p for p in LIBRARY}
    for path in LIBRARY:
        own = exports(path)
        for module in lib_imports(path) - {own}:
            assert module in home, f"{path.name} imports lib.{module}, which no notebook exports"
            mine, theirs = own.split(".")[0], module.split(".")[0]
            if mine == theirs:
                assert number(home[module]) <= number(path), f"{path.name} imports {home[module].name}: back"
            elif module in exported_imports(path):
                assert LEVEL[theirs] < LEVEL[mine], f"lib.{own} imports lib.{module}, a room that is no lower"


def number(path):
    return int(re.match(r"\d+", path.name)[0])


def exported_imports(path):
    "The lib modules that a notebook's module imports (not those that its tests alone need)."
    source = (ROOT / "lib" / f"{exports(path).replace('.', '/')}.py").read_text()
    package = ["lib", *exports(path).split(".")[:-1]]
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom) and n.level]
    return {".".join([*package[1 : len(package) - n.level + 1], *filter(None, [n.module])]) for n in nodes}


def test_names_of_experiments_and_analyses_are_unique():
    assert len({p.stem for p in STUDIES}) == len(STUDIES)
    assert not [p.name for p in STUDIES if not re.fullmatch(r"[a-z]\w*", p.stem)]


def modules():
    return [p for p in sorted((ROOT / "lib").rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]


def test_every_module_has_its_notebook():
    assert {".".join(p.relative_to(ROOT / "lib").with_suffix("").parts) for p in modules()} == {
        exports(p) for p in LIBRARY
    }
    for p in LIBRARY:
        assert exports(p) == f"{p.parent.name}.{re.sub(r'^[0-9]+_', '', p.stem)}", (
            f"{p.name} exports {exports(p)}"
        )


def test_lib_is_not_ignored():
    files = [str(p.relative_to(ROOT)) for p in modules()]
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *files], cwd=ROOT, capture_output=True)
    assert ignored.stdout == b""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The repository's notebooks and module in a folder of their own, so that export and clean change nothing here."
    to = tmp_path_factory.mktemp("house")
    for name in ["settings.ini", "pyproject.toml"]:
        shutil.copy(ROOT / name, to)
    for name in ["nbs", "lib"]:
        shutil.copytree(
            ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    return to


def same(a, b, pattern):
    return [str(p) for p in sorted(a.rglob(pattern)) if p.read_bytes() != (b / p.relative_to(a)).read_bytes()]


def test_lib_is_what_the_notebooks_export(copy):
    subprocess.run([BIN / "nbdev_export"], cwd=copy, check=True)
    assert same(ROOT / "lib", copy / "lib", "*.py") == [], "run nbdev_export"


def test_notebooks_are_clean(copy):
    subprocess.run([BIN / "nbdev_clean"], cwd=copy, check=True)
    assert same(ROOT / "nbs", copy / "nbs", "*.ipynb") == [], "run nbdev_clean"


def test_outputs_in_notebooks_are_small():
    assert {p.name: p.stat().st_size for p in NOTEBOOKS if p.stat().st_size > 400_000} == {}


def pins(text):
    return dict(re.findall(r"(?m)^\s*(?:- )?([A-Za-z0-9_.-]+)==([^\s#]+)\s*$", text))


def test_conda_pins_are_the_locks():
    lock = {k.lower(): v for k, v in pins((ROOT / "requirements.lock").read_text()).items()}
    listed = [
        d["pip"]
        for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(d, dict)
    ][0]
    conda = dict(line.split("==") for line in listed)
    assert len(conda) > 25
    assert {k: v for k, v in conda.items() if lock.get(k.lower()) != v} == {}


def test_imported_packages_are_pinned():
    known = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}
    lock = {k.lower().replace("-", "_") for k in pins((ROOT / "requirements.lock").read_text())}
    lock |= set(
        re.findall(r"--no-deps (\w+)==", (ROOT / "Makefile").read_text())
    )  # what is installed beside the lock
    used = set()
    for path in NOTEBOOKS:
        for source in code(path):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    used |= {a.name.split(".")[0] for a in node.names}
                if isinstance(node, ast.ImportFrom) and not node.level:
                    used.add(node.module.split(".")[0])
    third = {u for u in used if u not in sys.stdlib_module_names and u != "lib"}
    assert {u for u in third if known.get(u, u).lower().replace("-", "_") not in lock} == set()


def test_no_machine_paths_and_no_unsafe_readers():
    top = str(ROOT.parent) + "/"
    # the guard itself: these are the calls that could run code from a stranger's file, and no notebook or module may hold one
    bad = re.compile(r"allow_pickle=True|pickle\.load|yaml\.load\(|shell=True|weights_only=False")
    for name in tracked("nbs", "lib", "*.md", "Makefile", "Snakefile", "*.toml", "*.yml", "*.yaml", ".ci"):
        text = (ROOT / name).read_text(errors="ignore")
        assert top not in text, f"{name} holds a path of this machine"
        if name.endswith((".ipynb", ".py")):
            assert not bad.search(text), f"{name}: {bad.search(text)}"


@pytest.mark.parametrize("page", ["README.md", "docs/sweeps.md", "docs/commands.md"])
def test_generated_tables_are_up_to_date(page):
    sys.path.insert(0, str(ROOT / "tools"))
    import readme

    assert readme.filled(page) == (ROOT / page).read_text(), "run make readme"


COMMANDS = [
    *(f"L{i}" for i in [1, 2, 3, 4, 5, 6]),
    "L7a",
    "L7b",
    "L7c",
    "L7d",
    "L7e",
    "L8a",
    "L8b",
    "L8c",
    *(f"L{i}" for i in range(9, 34)),
    *(f"R{i}" for i in range(1, 45)),
    *(f"H{i}" for i in range(1, 32)),
    *(f"G{i}" for i in range(1, 24)),
    *(f"D{i}" for i in range(1, 35)),
]


def test_every_published_command_has_a_stage_a_place_or_a_reason():
    sys.path.insert(0, str(ROOT / "tools"))
    import readme

    covered = readme.covered()
    assert list(dict.fromkeys(COMMANDS)) == COMMANDS and set(covered) == set(COMMANDS)
    assert all(what and places for what, places in covered.values())
    readme_rows = re.findall(r"(?m)^\| ([A-Z]\d+[a-z]?) \|", (ROOT / "docs" / "commands.md").read_text())
    assert sorted(readme_rows) == sorted(COMMANDS)


def test_nothing_of_a_stranger_is_executed():
    "Every automatic class of transformers refuses code of a model's own, instead of asking for leave."
    calls = re.compile(r"\bAuto\w+\.from_pretrained\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
    found = [(p.name, m[1]) for p in modules() for m in calls.finditer(p.read_text())]
    assert len(found) >= 2 and [f for f in found if "trust_remote_code=False" not in f[1]] == []


def outputs(path):
    return [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *KEPT], ids=lambda p: p.stem)
def test_saved_outputs_are_clean(path):
    found = outputs(path)
    assert not [o for o in found if o["output_type"] == "error"], "a traceback is saved"
    assert not [o for o in found if o.get("name") == "stderr"], "a warning is saved"
    text = json.dumps(
        [{k: v for k, v in o.get("data", o).items() if not k.startswith("image/")} for o in found]
    )
    places = re.findall(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|var|opt|mnt)/[\w./-]*", text)
    assert not [p for p in places if not p.startswith("/tmp/folder")], "a path of a machine is saved"
    assert not re.search(r"\w*Warning: ", text), "a warning is saved"


@pytest.mark.parametrize(
    "path", [TOUR, *sorted((ROOT / "nbs" / "analyses").glob("*.ipynb"))], ids=lambda p: p.stem
)
def test_an_analysis_is_saved_with_its_figures(path):
    assert any("image/png" in o.get("data", {}) for o in outputs(path)), "run it on its defaults and save it"
    if path != TOUR:  # no result is kept in the repository
        assert "Invented example data, no result" in json.dumps(outputs(path))


@pytest.mark.parametrize("path", [*LIBRARY, *STUDIES], ids=lambda p: p.stem)
def test_a_notebook_is_saved_with_what_it_shows(path):
    kinds = {kind for o in outputs(path) for kind in ([o["output_type"]] if "text" in o else o["data"])}
    assert kinds & {"stream", "text/plain", "text/html", "image/png"}, "run `make outputs`"
    if path in STUDIES:
        assert kinds & {"image/png", "text/html"}, "a table or a figure is saved"


@pytest.mark.parametrize("path", KEPT, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_kept_study_shows_results(path):
    found = json.dumps(outputs(path))
    assert "image/png" in found and "Invented example data" not in found


def test_the_repository_is_small():
    files = [ROOT / name for name in tracked() if (ROOT / name).is_file()]
    assert sum(file.stat().st_size for file in files) < 20_000_000  # with its history at most 30 MB
    assert {p.name for p in files if p.stat().st_size > 1_000_000} == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_what_notebooks_were_saved_from_is_known():
    sys.path.insert(0, str(ROOT / "tools"))
    import outputs as saver

    assert set(saver.known()) <= {saver.name_of(p) for p in NOTEBOOKS}
    book = ROOT / "nbs" / "analyses" / "overlap.ipynb"
    reached = saver.modules(set().union(*(saver.imported(s) for s in saver.sources(book))))
    assert {"lib.study.pages", "lib.core.runs", "lib.core.base"} <= reached  # at whatever distance
    assert saver.code_hash(book) == saver.code_hash(book) != saver.code_hash(TOUR)


def test_equal_results_are_saved_as_equal_bytes():
    sys.path.insert(0, str(ROOT / "tools"))
    import outputs as saver

    figures = [o["data"]["image/png"] for o in outputs(TOUR) if "image/png" in o.get("data", {})]
    assert len(figures) >= 4 and all(saver.picture(f) == saver.picture(saver.picture(f)) for f in figures)
    styled = '<style>#T_0a1b2_row0</style><table id="T_0a1b2"> <Axes at 0x7f12>' + f" {ROOT}/nbs/x"
    assert saver.text(styled) == '<style>#T_0_row0</style><table id="T_0"> <Axes> nbs/x'
    pieces = [
        {"output_type": "stream", "name": n, "text": t}
        for n, t in (("stdout", "a"), ("stderr", "w"), ("stdout", "b"))
    ]
    assert saver.saved(pieces) == [{"output_type": "stream", "name": "stdout", "text": "ab"}]
    assert (
        saver.saved(
            [
                pieces[1],
                pieces[0] | {"text": "\n"},
                {"output_type": "display_data", "data": {"text/plain": "<Figure size 1x1 with 0 Axes>"}},
            ]
        )
        == []
    )
    assert [saver.skipped(s) for s in ("#| slow\n1", "#| eval: false\n1", "#| hide\n1")] == [
        True,
        True,
        False,
    ]
