"An exported folder sent to a stand-in for a hub on this machine: what is created, what arrives, and what is refused."

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from lib.core.runs import start
from lib.models.masks import save_mask
from lib.training.loading import save_model

ROOT = Path(__file__).parents[1]
SIEVE = "import sys; from lib.commands.cli import main; sys.exit(main())"


class Hub(BaseHTTPRequestHandler):
    "What a client asks to create a repository and to commit files; keeps what came"

    repos: dict = {}  # name -> private
    files: dict = {}  # name of a file -> bytes
    stored: dict = {}  # sha256 -> bytes of large files
    asked: list = []
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body=None, code: int = 200, **headers) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        for name, value in (
            {"Content-Length": len(text), "Content-Type": "application/json"} | headers
        ).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def place(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        name = path.removeprefix("/api/models/")
        self.asked.append(("GET", path))
        if name in self.repos:
            return self.answer({"id": name, "private": self.repos[name], "sha": "c" * 40, "siblings": []})
        self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")

    def do_PUT(self) -> None:
        body = self.body()
        self.stored[self.path.rpartition("/")[2]] = body
        self.answer()

    def do_POST(self) -> None:
        body, path = self.body(), self.path.split("?")[0]
        self.asked.append(("POST", path))
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self.answer({"error": "who are you"}, 401)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            if name in self.repos:
                return self.answer({"error": "exists", "url": f"{self.place()}/{name}"}, 409)
            self.repos[name] = given.get("visibility") == "private"
            return self.answer({"url": f"{self.place()}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            kinds = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": [k | {"shouldIgnore": False, "oid": None} for k in kinds]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{self.place()}/store/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                v = line["value"]
                if line["key"] == "file":
                    self.files[v["path"]] = base64.b64decode(v["content"])
                if line["key"] == "lfsFile":
                    self.files[v["path"]] = self.stored[v["oid"]]
            return self.answer(
                {"commitOid": "d" * 40, "commitUrl": f"{self.place()}/org/x/commit/{'d' * 40}"}
            )
        self.answer({"error": path}, 404)


@pytest.fixture
def hub():
    for kept in (Hub.repos, Hub.files, Hub.stored, Hub.asked):
        kept.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def key(tmp_path, monkeypatch):
    "A run of a mask, and the model that it is for"
    from lib.data.tasks import load_task
    from lib.training.loading import tiny_model

    monkeypatch.setenv("SIEVE_OUTPUTS", str(tmp_path / "outputs"))
    given = {"task": "synthetic-nli", "settings": {"train": 60, "dev": 20, "ood": 10}}
    net, tokenizer = tiny_model(
        load_task(**{"name": given["task"], "settings": given["settings"]}),
        1,
        {"width": 32, "heads": 2, "vocab": 200, "length": 32},
    )
    whole = start("finetune", given)
    save_model(net, tokenizer, whole.path("model/config.json").parent)
    whole.finish([])
    found = start("importance", given | {"model": whole.key})
    mask = {"head": torch.tensor([[1.0, 0], [1, 1]])}
    save_mask(mask, found.path("mask.safetensors"), whole.key, "heads", "good")
    found.finish([])
    return found.key


def sieve(tmp_path, hub, *arguments, token="hf_good"):
    own = {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # large files by git-lfs's protocol, which this hub speaks
        "PYTHONPATH": str(ROOT),
    }
    env = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE")} | own
    env |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", SIEVE, "export", *map(str, arguments)]
    return subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_a_folder_is_sent_to_a_private_repository(tmp_path, hub, key):
    folder = tmp_path / "out"
    done = sieve(tmp_path, hub, key, folder, "--push", "org/mine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Hub.repos == {"org/mine": True}
    there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert (
        Hub.files == there and "modeling_shrunken_bert.py" in there and there["README.md"].startswith(b"---")
    )
    weights = there["model.safetensors"]
    assert Hub.stored == {hashlib.sha256(weights).hexdigest(): weights}  # as a large file
    total = sum(map(len, there.values()))
    assert (
        f"sent {len(there)} files, {total:,} bytes, to {hub}/org/mine (private), commit {'d' * 40}"
        in done.stdout
    )
    assert f"{len(weights):12,d} bytes  model.safetensors" in done.stdout
    assert b"name: org/mine" in there["README.md"] or b"# org/mine" in there["README.md"]
    again = sieve(tmp_path, hub, key, folder, "--push", "org/mine", "--as", "masked")
    assert again.returncode == 0 and "(private)" in again.stdout, again.stderr


def test_public_is_asked_for(tmp_path, hub, key):
    done = sieve(tmp_path, hub, key, tmp_path / "out", "--as", "mask", "--push", "org/open", "--public")
    assert done.returncode == 0 and Hub.repos == {"org/open": False} and "(public)" in done.stdout, (
        done.stderr
    )
    Hub.files.clear()
    done = sieve(tmp_path, hub, key, tmp_path / "out", "--as", "mask", "--push", "org/open")
    assert done.returncode and "org/open is public, and nothing was sent" in done.stderr and not Hub.files


def test_what_cannot_be_sent_is_one_line(tmp_path, hub, key):
    done = sieve(tmp_path, hub, key, tmp_path / "out", "--push", "org/mine", token="")
    assert done.returncode and done.stderr.count("\n") == 1 and "no token" in done.stderr and not Hub.asked
    assert not (tmp_path / "out").exists()
    done = sieve(tmp_path, hub, key, tmp_path / "out", "--push", "org/mine", token="hf_bad")
    assert done.returncode and done.stderr.count("\n") == 1 and "org/mine was not sent" in done.stderr, (
        done.stderr
    )
    assert (tmp_path / "out" / "README.md").is_file() and not Hub.files  # the folder is there all the same
