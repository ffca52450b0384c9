"Models of the hub, fetched from a stand-in on this machine: one commit of a name, its files, and what is kept of it."

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
ASK = """
import json, sys
from lib.core.base import DataError
from lib.core.provenance import model_identity
from lib.training.loading import check_model, model_place
for name in sys.argv[1:]:
    try:
        place = model_place(name)
        print(json.dumps([name, place, check_model(name).hidden_size, model_identity(name)]))
    except DataError as error:
        print(json.dumps([name, str(error)]))
"""


class Hub(BaseHTTPRequestHandler):
    "What the clients ask of a repository: its commit and names of files, and the files."

    files: dict = {}  # commit -> name -> bytes
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body: bytes, code: int = 200, **headers) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").split("/")
        if path[:2] == ["api", "models"] and path[2:4] == ["org", "net"]:
            commit = COMMITS.get(path[5], path[5]) if len(path) > 5 else COMMITS["main"]
            if commit not in self.files:
                return self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
            said = {
                "id": "org/net",
                "sha": commit,
                "siblings": [{"rfilename": n} for n in self.files[commit]],
            }
            if path[4:5] == ["tree"]:
                hashes = {n: hashlib.sha1(body).hexdigest() for n, body in self.files[commit].items()}
                said = [{"type": "file", "path": n, "size": 1, "oid": oid} for n, oid in hashes.items()]
            return self.answer(json.dumps(said).encode())
        if path[:3] == ["org", "net", "resolve"]:
            commit = COMMITS.get(path[3], path[3])
            body = self.files.get(commit, {}).get("/".join(path[4:]))
            if body is not None:
                etag = f'"{hashlib.sha1(body).hexdigest()}"'
                return self.answer(body, X_Repo_Commit=commit, ETag=etag)
            return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        self.answer(b"" if not path[0] else b"{}", 200 if not path[0] else 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub():
    small = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    for width, (name, commit) in enumerate(COMMITS.items(), 16):
        config = json.dumps(small | {"hidden_size": width}).encode()
        weights = "pytorch_model.bin" if name == "v1" else "model.safetensors"
        Hub.files[commit] = {"config.json": config, weights: b"w", "vocab.txt": b"a", "onnx/big.json": b"{}"}
    Hub.files[COMMITS["main"]]["pytorch_model.bin"] = b"the same again"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow  # a process of its own, whose imports are most of it
def test_models_are_fetched_at_the_commit_that_is_asked_for(hub, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    names = ["org/net", "org/net@v1?labels=a,b", f"org/net@{COMMITS['v1']}", "org/net@v2", "org/none"]
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(names), done.stderr[-2000:]
    assert [row[2] for row in told[:3]] == [16, 17, 17]
    assert [Path(row[1]).name for row in told[:3]] == [COMMITS["main"], COMMITS["v1"], COMMITS["v1"]]
    wanted = [f"commit:{COMMITS[name]}" for name in ("main", "v1", "v1")]
    assert [row[3] for row in told[:3]] == wanted  # what a run's provenance holds
    kept = {
        p.name for p in Path(told[0][1]).iterdir()
    }  # one form of the weights, and nothing of folders below
    assert kept == {"config.json", "model.safetensors", "vocab.txt"}
    assert {p.name for p in Path(told[1][1]).iterdir()} == {"config.json", "pytorch_model.bin", "vocab.txt"}
    for (name, message), why in zip(told[3:], ("no such revision", "no such model"), strict=True):
        assert message.startswith(f"no model {name!r}") and why in message and "\n" not in message
