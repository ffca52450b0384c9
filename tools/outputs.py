"""Save the notebooks with their outputs: `python tools/outputs.py [notebook ...]` (or `make outputs`).

Executed are exactly those whose code has changed since they were saved: their own cells, or a module of lib that they
import, at whatever distance. `nbs/outputs.json` holds what each was saved from. Where a result is equal, its bytes are.
`--check` only names them; `--all` executes the named ones whatever has changed; `--note` takes them as saved, as they are.
"""

import argparse
import ast
import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "nbs" / "outputs.json"
FOLDER = re.compile(r"/(?:tmp|var/folders)/[\w./-]*?tmp\w{8}\b")
HIDDEN = ("application/vnd.jupyter.widget-view+json", "application/vnd.google.colaboratory.intrinsic+json")


def books() -> list[Path]:
    "Every notebook, the tour first, then folder by folder."
    return sorted((ROOT / "nbs").glob("*.ipynb")) + sorted((ROOT / "nbs").glob("[a-z]*/*.ipynb"))


def name_of(path: Path) -> str:
    "How the record calls a notebook."
    return path.resolve().relative_to(ROOT / "nbs").as_posix()


def sources(path: Path) -> list[str]:
    "The code cells of a notebook."
    cells = json.loads(path.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def _tree(source: str) -> ast.AST:
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    return ast.parse("\n".join(lines))


def _file(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imported(source: str, package: str = "") -> set[str]:
    "Names of the modules of lib that a source imports; `package` is that of a relative import."
    found = set()
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{a.name}" for a in node.names)}
    return {name for name in found if name.split(".")[0] == "lib" and _file(name)}


def modules(found: set[str]) -> set[str]:
    "These modules of lib, and all that they import."
    known, todo = set(), set(found)
    while todo:
        name = todo.pop()
        known.add(name)
        todo |= imported(_file(name).read_text(), name.rpartition(".")[0]) - known
    return known


def code_hash(path: Path) -> str:
    "What a notebook is saved from: its cells, and the text of every module of lib that they reach."
    own = sources(path)
    reached = modules(set().union(*(imported(s) for s in own))) if own else set()
    parts = [own, *([name, _plain(_file(name).read_text())] for name in sorted(reached))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _plain(text: str) -> str:
    "A module without its comments and its layout, so that a comment makes nothing stale."
    return ast.dump(ast.parse(text))


def picture(data: str) -> str:
    "A PNG with at most 256 colours, without metadata; equal pixels give equal bytes."
    from PIL import Image

    image, file = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"), io.BytesIO()
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    flat.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def text(value: str) -> str:
    "Without addresses, places of this machine, and the random names of styled tables."
    value = re.sub(r" at 0x[0-9a-fA-F]+", "", value).replace(f"{ROOT}/", "").replace(str(ROOT), ".")
    value = FOLDER.sub("/tmp/folder", value)
    value = re.sub(
        r"(?m)^(\[\d+/\d+\] .*  )\d+ s(, \d+ s left)?$", r"\g<1>1 s", value
    )  # of runs: how long they took
    for i, name in enumerate(dict.fromkeys(re.findall(r"\bT_[0-9a-f]{5}\b", value))):
        value = value.replace(name, f"T_{i}")
    return value


def _output(output: dict) -> dict | None:
    "An output as it is saved; None for one that is not (warnings, widgets)."
    if output["output_type"] == "stream":
        return None if output["name"] == "stderr" else output | {"text": text(output["text"])}
    data = {k: v for k, v in output["data"].items() if k not in HIDDEN}
    empty = len(data) < len(output["data"]) or str(data.get("text/plain")).startswith("<Figure ")
    if empty and set(data) <= {"text/plain"}:
        return None
    data = {
        k: picture(v) if k == "image/png" else text(v) if isinstance(v, str) else v for k, v in data.items()
    }
    return output | {"data": data} | ({"execution_count": None} if "execution_count" in output else {})


def saved(outputs: list[dict]) -> list[dict]:
    "A cell's outputs as they are saved: neighbouring pieces of a stream are one."
    found = []
    for output in filter(None, map(_output, outputs)):
        if found and output["output_type"] == found[-1]["output_type"] == "stream":
            found[-1]["text"] += output["text"]
        else:
            found.append(output)
    return [o for o in found if o["output_type"] != "stream" or o["text"].strip()]


def skipped(source: str) -> bool:
    "Whether a cell is left out where notebooks are tested: slow, or not to be executed."
    flags = re.findall(r"(?m)^#\|\s*(.+?)\s*$", source)
    return any(flag == "slow" or re.fullmatch(r"eval:\s*false", flag) for flag in flags)


def execute(path: Path) -> list[list[dict]]:
    "Run a notebook from top to bottom in a process of its own; the outputs of each cell, as they are saved."
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    book = nbformat.read(path, 4)
    whole = book.cells
    book.cells = [c for c in whole if c.cell_type == "code" and not skipped(c.source)]
    place = {"metadata": {"path": str(path.parent)}}
    with tempfile.TemporaryDirectory(prefix="k-") as sockets:
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        NotebookClient(book, timeout=1800, kernel_name="python3", resources=place, config=config).execute()
    done = {c.id: saved([json.loads(json.dumps(o)) for o in c.outputs]) for c in book.cells}
    return [done.get(c.id, []) for c in whole]


def _lines(value):
    return value.splitlines(keepends=True) if isinstance(value, str) else value


def stored(output: dict) -> dict:
    "As notebooks hold it: texts in lines, pictures in one piece."
    if output["output_type"] == "stream":
        return output | {"text": _lines(output["text"])}
    data = {k: v if k.startswith("image/png") else _lines(v) for k, v in output["data"].items()}
    return output | {"data": data}


def save(path: Path, found: list[list[dict]]) -> bool:
    "Put outputs into a notebook; whether a byte of it has changed."
    before = path.read_text()
    book = json.loads(before)
    for cell, outputs in zip(book["cells"], found, strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = list(map(stored, outputs)), None
    after = json.dumps(book, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    if after != before:
        path.write_text(after)
    return after != before


def known() -> dict[str, str]:
    "Notebook -> what it was saved from."
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def note(path: Path) -> None:
    "Write down what a notebook is saved from; one that is gone is forgotten."
    there = {name_of(p) for p in books()}
    record = {n: h for n, h in (known() | {name_of(path): code_hash(path)}).items() if n in there}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def stale(chosen: list[Path]) -> list[Path]:
    "Those whose code is not what they were saved from."
    record = known()
    return [p for p in chosen if record.get(name_of(p)) != code_hash(p)]


def _environment(folder: str) -> None:
    "Of the kernels: no results of earlier runs, no data of this machine, no network, one thread."
    own = dict(SIEVE_OUTPUTS=f"{folder}/outputs", SIEVE_DATA=str(ROOT / "data"), OMP_NUM_THREADS="1")
    own |= dict(
        TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore"
    )
    os.environ.update(own, MPLBACKEND="module://matplotlib_inline.backend_inline", COLUMNS="100")


def main(argv: list[str] | None = None) -> int:
    "Execute and save what has changed; 1 if a notebook failed."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    for flag in ("check", "all", "note"):
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args(argv)
    chosen = [p.resolve() for p in args.notebooks] or books()
    todo = chosen if args.all or args.note else stale(chosen)
    failed = []
    for path in todo:
        if args.check or args.note:
            print(name_of(path))
            if args.note:
                note(path)
            continue
        with tempfile.TemporaryDirectory() as folder:
            _environment(folder)
            try:
                changed = save(path, execute(path))
            except Exception as error:  # the others go on
                failed.append(name_of(path))
                print(f"{name_of(path)}: FAILED: {str(error)[-2000:]}", flush=True)
                continue
        note(path)
        print(f"{name_of(path)}: {'changed' if changed else 'as it was'}", flush=True)
    if todo and not args.check and not args.note:
        subprocess.run([Path(sys.executable).parent / "nbdev_clean"], cwd=ROOT, check=True)
    print(
        f"{len(todo)} of {len(chosen)} notebooks {'to execute' if args.check else 'done'}, {len(failed)} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
