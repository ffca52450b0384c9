"""Measure the house: `python tools/sizes.py [room ...]` says what is over the budget; a test reads the same functions."""

import ast
import io
import json
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUDGET = {"room": 1100, "cells": 60, "function": 40, "cell": 20, "parameters": 6}


def code_lines(source: str) -> set[int]:
    "Numbers of the lines that hold code: no blank lines, comments or docstrings."
    skip = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in skip for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        texts = (
            [n for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
            if isinstance(body, list)
            else []
        )
        for text in texts:
            if isinstance(text.value.value, str):
                lines -= set(range(text.lineno, text.end_lineno + 1))
    return lines


def room_lines(room: str) -> int:
    "Code lines of a room's modules."
    return sum(len(code_lines(p.read_text())) for p in sorted((ROOT / "lib" / room).glob("*.py")))


def functions(path: Path) -> list[tuple[str, int, int]]:
    "(name, code lines, parameters) of every function of a file, methods without self."
    source = path.read_text()
    lines, found = code_lines(source), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            names = [x.arg for x in a.posonlyargs + a.args + a.kwonlyargs if x.arg not in ("self", "cls")]
            own = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            found.append((f"{path.parent.name}.{path.stem}.{node.name}", own, len(names)))
    return found


def export_cells(path: Path) -> list[tuple[str, int, list[str]]]:
    "(cell id, code lines without imports, public names defined) of every export cell of a notebook."
    found = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not re.match(r"#\|\s*export", source):
            continue
        body = ast.parse(source).body
        names = [n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"]
        imports = {x for n in body if isinstance(n, (ast.Import, ast.ImportFrom)) for x in _span(n)}
        found.append((cell["id"], len(code_lines(source) - imports), names))
    return found


def _span(node: ast.AST) -> range:
    "Numbers of a statement's lines."
    return range(node.lineno, node.end_lineno + 1)


def public_names() -> dict[str, list[str]]:
    "Public name -> modules whose __all__ has it."
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "lib").glob("*/*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                for name in ast.literal_eval(node.value):
                    found.setdefault(name, []).append(f"{path.parent.name}.{path.stem}")
    return found


def rooms() -> list[str]:
    "The folders of lib."
    return sorted(p.name for p in (ROOT / "lib").iterdir() if p.is_dir() and not p.name.startswith("_"))


def over(room: str) -> list[str]:
    "What of a room is over the budget, a line each."
    said = [f"{room}: {room_lines(room)} code lines"] if room_lines(room) > BUDGET["room"] else []
    for path in sorted((ROOT / "lib" / room).glob("*.py")):
        for name, lines, parameters in functions(path):
            if lines > BUDGET["function"]:
                said.append(f"{name}: {lines} lines")
            if parameters > BUDGET["parameters"]:
                said.append(f"{name}: {parameters} parameters")
    for path in sorted((ROOT / "nbs" / room).glob("*.ipynb")):
        cells = len(json.loads(path.read_text())["cells"])
        if cells > BUDGET["cells"]:
            said.append(f"{room}/{path.stem}: {cells} cells")
        for cell, lines, names in export_cells(path):
            if lines > BUDGET["cell"]:
                said.append(f"{room}/{path.stem}#{cell}: export cell of {lines} lines {names}")
            if len(names) > 1:
                said.append(f"{room}/{path.stem}#{cell}: {len(names)} public definitions {names}")
    return said


if __name__ == "__main__":
    chosen = sys.argv[1:] or rooms()
    print(*(line for room in chosen for line in over(room)), sep="\n")
    names = public_names()
    twice = {n: where for n, where in names.items() if len(where) > 1}
    print({room: room_lines(room) for room in rooms()}, sum(map(room_lines, rooms())), "code lines")
    print(len(names), "public names; exported more than once:", twice)
