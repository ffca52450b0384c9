"""Put the pages of the site together in docs/_site: `python tools/site_pages.py`, then Sphinx (`make docs` does both).

The site has the shape of the repository, so that a link between two pages is the same in both. Only what is written here
is made: the front page with its tables of contents, and the reference of the public names, read from lib without import.
"""

import ast
import io
import json
import re
import shutil
import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "_site"
PARTS = {  # heading of the contents -> pages of docs, in order; `*`: all of that form
    "Tutorials": ["own_*"],
    "How to": ["cluster", "resume", "compare", "archive"],
    "Studies": ["studies", "sweeps", "commands"],
    "Reference": ["glossary", "notebooks", "speed", "scale", "gpu", "changes"],
}

MORE = {"How to": ["data/README"], "Reference": ["api/index"]}  # pages that lie elsewhere


def rooms() -> list[str]:
    "The rooms of lib, lowest first."
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sieve"]["rooms"]
    return [room for line in lines for room in line]


def pages(part: str) -> list[str]:
    "The pages of docs that belong to a part of the contents, as `docs/cluster`."
    found = [sorted((ROOT / "docs").glob(f"{form}.md")) for form in PARTS[part]]
    return [f"docs/{p.stem}" for group in found for p in group]


def comments(source: str) -> dict[int, str]:
    "Line -> its comment."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def _parameters(node: ast.FunctionDef, said: dict[int, str]) -> list[tuple[str, str, str]]:
    "(name, type and default, docment) of every parameter."
    a, rows = node.args, []
    given = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(given) - len(a.defaults)) + a.defaults
    star = [(a.vararg, None)] if a.vararg else []
    more = [(a.kwarg, None)] if a.kwarg else []
    for arg, default in [*zip(given, defaults), *star, *zip(a.kwonlyargs, a.kw_defaults), *more]:
        if arg.arg in ("self", "cls"):
            continue
        kind = ast.unparse(arg.annotation) if arg.annotation else ""
        kind += f" = {ast.unparse(default)}" if default is not None else ""
        last = (default or arg).end_lineno
        rows.append((arg.arg, kind, next((said[n] for n in (last, last + 1) if n in said), "")))
    return rows


def _safe(text: str) -> str:
    "Words that are read as they stand, but for what is marked as code."
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(p if i % 2 else re.sub(r"([<$*_~\[])", r"\\\1", p) for i, p in enumerate(parts))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`` {_cell(text)} ``" if text else ""


def _table(rows: list[tuple[str, str, str]], head: str) -> list[str]:
    if not rows:
        return []
    lines = [f"| `{name}` | {_code(kind)} | {_cell(_safe(doc))} |" for name, kind, doc in rows]
    return [f"| {head} | type, default | what |", "| --- | --- | --- |", *lines, ""]


def _fields(node: ast.ClassDef, said: dict[int, str]) -> list[tuple[str, str, str]]:
    "(name, type and default, docment) of the fields of a record."
    rows = []
    for n in node.body:
        if isinstance(n, ast.AnnAssign) and n.target.id[0] != "_":
            kind = ast.unparse(n.annotation) + (f" = {ast.unparse(n.value)}" if n.value else "")
            rows.append(
                (
                    n.target.id,
                    kind,
                    next((said[i] for i in range(n.lineno, n.end_lineno + 1) if i in said), ""),
                )
            )
    return rows


def _entry(name: str, node, said: dict[int, str]) -> list[str]:
    "A public name in the reference."
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [f"### {name}", "", _safe(said.get(node.lineno, "A table or a constant.")), ""]
    lines = [f"### {name}", "", _safe(ast.get_docstring(node) or ""), ""]
    if isinstance(node, ast.ClassDef):
        return lines + _table(_fields(node, said), "field")
    back = [f"Gives back {_code(ast.unparse(node.returns))}.", ""] if node.returns else []
    return lines + _table(_parameters(node, said), "parameter") + back


def module_page(path: Path) -> list[str]:
    "A module in the reference: what it is, and its public names with their docments."
    source = path.read_text()
    body, said = ast.parse(source).body, comments(source)
    public = next((ast.literal_eval(n.value) for n in body if _assigns(n, "__all__")), [])
    nodes = {name: n for n in body for name in _names(n)}
    book = re.search(r"File to edit: (?:\.\./)*(nbs/\S+\.ipynb)", source)
    name = f"lib.{path.parent.name}.{path.stem}"
    where = [f"[The notebook](../{book[1]}), with examples and tests."] if book else []
    lines = [f"## {name}", "", ast.get_docstring(ast.parse(source)) or "", "", *where, ""]
    return lines + [line for n in public if n in nodes for line in _entry(n, nodes[n], said)]


def _assigns(node, name: str) -> bool:
    return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name


def _names(node) -> list[str]:
    "What a statement of a module defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return []
    stored = (n for t in targets for n in ast.walk(t) if isinstance(getattr(n, "ctx", None), ast.Store))
    return [n.id for n in stored if isinstance(n, ast.Name)]


def _tree(heading: str, entries: list[str]) -> list[str]:
    return ["```{toctree}", f":caption: {heading}", ":maxdepth: 1", ":hidden:", "", *entries, "```", ""]


def _books(folder: str) -> list[str]:
    return [f"nbs/{folder}/{p.stem}" for p in sorted((ROOT / "nbs" / folder).glob("*.ipynb"))]


def _kept() -> list[str]:  # executed analyses, of `tools/keep_study.py`
    found = sorted((ROOT / "docs" / "studies").glob("*/*.ipynb"))
    return [p.relative_to(ROOT).with_suffix("").as_posix() for p in found]


def front() -> str:
    "The front page: the README without its picture of the file tree, and the contents."
    text = (ROOT / "README.md").read_text()
    lines = [text, "", *_tree("Begin", ["nbs/00_tour"])]
    for part in PARTS:
        kept = _kept() if part == "Studies" else []
        lines += _tree(part, pages(part) + kept + MORE.get(part, []))
    lines += _tree("Analyses", _books("analyses")) + _tree("Experiments", _books("experiments"))
    lines += _tree("The house", [f"nbs/{room}/index" for room in rooms()])
    return "\n".join(lines)


def _write(name: str, text: str) -> None:
    (SITE / name).parent.mkdir(parents=True, exist_ok=True)
    (SITE / name).write_text(text)


def _notebook(path: Path) -> str:
    "A notebook for the site: without the lines that only the exporter reads, and with a title."
    book = json.loads(path.read_text())
    kept = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = re.sub(
                r"(?m)^(?:#\| ?(?:export\w*|hide|slow|default_exp|eval).*|# fmt: off)\n?", "", source
            ).strip("\n")
            if not source:
                continue
        kept.append(cell | {"source": source})
    return json.dumps(book | {"cells": kept})


def main() -> int:
    "Write the whole source of the site."
    shutil.rmtree(SITE, ignore_errors=True)
    _write("conf.py", (ROOT / "docs" / "conf.py").read_text())
    _write("_static/site.css", (ROOT / "docs" / "site.css").read_text())
    _write("index.md", front())
    _write("data/README.md", (ROOT / "data" / "README.md").read_text())
    for path in sorted((ROOT / "docs").glob("*")):
        if path.suffix in (".md", ".png", ".svg"):
            _write(f"docs/{path.name}", "") if path.suffix == ".md" else None
            (SITE / "docs").mkdir(exist_ok=True)
            shutil.copy(path, SITE / "docs" / path.name)
    nbs, kept = ROOT / "nbs", (ROOT / "docs" / "studies").glob("*/*.ipynb")
    for path in [*nbs.glob("*.ipynb"), *nbs.glob("[a-z]*/*.ipynb"), *kept]:
        _write(str(path.relative_to(ROOT)), _notebook(path))
    for room in rooms():
        inside = [f"# {room}", "", *_tree(room, [p.removeprefix(f"nbs/{room}/") for p in _books(room)])]
        listed = [f"- [{p.rpartition('/')[2]}]({p.rpartition('/')[2]}.ipynb)" for p in _books(room)]
        _write(f"nbs/{room}/index.md", "\n".join([*inside, *listed]))
        files = [p for p in sorted((ROOT / "lib" / room).glob("*.py")) if p.stem != "__init__"]
        _write(
            f"api/{room}.md", "\n".join([f"# lib.{room}", "", *(x for p in files for x in module_page(p))])
        )
    listed = [f"- [lib.{room}]({room}.md)" for room in rooms()]
    _write(
        "api/index.md",
        "\n".join(["# Reference of the public names", "", *listed, "", *_tree("Reference", rooms())]),
    )
    print(f"{len(list(SITE.rglob('*.md')))} pages and {len(list(SITE.rglob('*.ipynb')))} notebooks in {SITE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
