"""A file of a finished study is damaged in a seeded way: the damage is seen wherever a checksum can see it, and no command ends in a traceback."""

import contextlib
import io
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from toys import Project

from lib.commands.cli import main


def flip(content: bytes, rng: random.Random) -> bytes:
    "One bit turned."
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def edit(content: bytes, rng: random.Random) -> bytes:
    "A digit replaced by another, so that what was JSON or a number still is."
    digits = [i for i, c in enumerate(content) if chr(c).isdigit()]
    if not digits:
        return flip(content, rng)
    at = rng.choice(digits)
    return content[:at] + str((int(chr(content[at])) + rng.randint(1, 8)) % 10).encode() + content[at + 1 :]


DAMAGES = {
    "flip": flip,
    "edit": edit,
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "empty": lambda content, rng: b"",
    "longer": lambda content, rng: content + rng.randbytes(rng.randint(1, 50)),
    "noise": lambda content, rng: rng.randbytes(len(content)),
    "list": lambda content, rng: b"[1]",
    "null": lambda content, rng: b"null",
    "latin": lambda content, rng: b'{"n": "\xe9"}',
    "deep": lambda content, rng: b"[" * 100_000,
    "gone": None,
    "folder": None,
}


def damage(path: Path, kind: str, rng: random.Random) -> None:
    content = path.read_bytes()
    if DAMAGES[kind]:
        path.write_bytes(DAMAGES[kind](content, rng))
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()


def commands(project, run: str):
    "What each command says, by its first word; any exception but an orderly exit is a failure."
    said = {}
    for words in (
        ["status"],
        ["show", run],
        ["run", project.sweep, "--dry-run"],
        ["du"],
        ["gc", "--dry-run"],
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main(words)
        said[words[0]] = out.getvalue()
        assert "Traceback" not in said[words[0]]
    return said


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("corrupted"))
    said, code = project.sieve("run", project.sweep, "--smoke", "-j", "2")
    assert code == 0, said
    text = Path(project.sweep).read_text()
    project.sweep = project.write(text.replace("seed: [1, 2, 3, 4]", "seed: [1]"), "small.yaml")
    surroundings = dict(os.environ)
    os.environ.update(project.env)
    yield project
    os.environ.clear()
    os.environ.update(surroundings)


def corrupt(project, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted(p for p in project.outputs.glob("*/*/*") if p.is_file())
    path, kind = rng.choice(files), rng.choice(sorted(DAMAGES))
    before, kept = path.read_bytes(), path.with_name("kept")
    shutil.move(shutil.copy2(path, kept), project.folder / "kept")
    damage(path, kind, rng)
    unchanged = path.is_file() and path.read_bytes() == before
    run = f"{path.parent.parent.name}/{path.parent.name}"
    try:
        said = commands(project, run)
        listed = any(line.startswith(f"{run} ") for line in said["run"].splitlines())
        noticed = listed and "finished\n" not in said["show"].splitlines()[0] + "\n"
        # the executed notebook is for people: no number is read from it
        expected = not unchanged and path.name != "run.ipynb"
        assert noticed or not expected, f"seed {seed}: {kind} of {path.name} passed in silence"
    finally:
        if path.is_dir():
            path.rmdir()
        shutil.move(project.folder / "kept", path)
    assert json.loads((path.parent / "result.json").read_text())


@pytest.mark.parametrize("seed", range(25))
def test_damage_is_seen(study, seed):
    corrupt(study, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 275))
def test_more_damage_is_seen(study, seed):
    corrupt(study, seed)
