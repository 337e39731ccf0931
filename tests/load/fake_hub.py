"""A stand-in for the Hugging Face hub on 127.0.0.1, and some repositories for it."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from qkv.load.folder import INDEX

COMMIT = "c0ffee" + "0" * 34
CONFIG = b'{"model_type": "llama"}'
WEIGHTS = bytes(range(256)) * 16
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PLAIN = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"read"}
SHARDED = {
    "config.json": CONFIG,
    INDEX: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: WEIGHTS,
    SHARDS[1]: WEIGHTS[::-1],
}


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


def etag(name: str, content: bytes) -> str:
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """As much of the hub as a download asks for. `served` counts file downloads; `spoil` bytes are flipped first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.served: list[str] = []
        self.asked: list[str] = []
        self.spoil: dict[str, int] = {}


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.asked.append("/".join(parts))
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if repo in self.server.refusals:
            status, code = self.server.refusals[repo]
            self.answer(b"{}", status, {"X-Error-Code": code} if code else {})
        elif repo not in self.server.repos:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif "revision" in parts and parts[-1] not in ("main", COMMIT):
            self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif api:
            files = self.server.repos[repo]
            listing = self.tree(files) if "tree" in parts else self.info(repo, files)
            self.answer(json.dumps(listing).encode(), 200, {"Content-Type": "application/json"})
        else:
            self.file(repo, "/".join(parts[4:]))

    def info(self, repo: str, files: dict[str, bytes]) -> object:
        siblings = [{**entry, "rfilename": entry["path"], "blobId": entry["oid"]} for entry in self.tree(files)]
        return {"id": repo, "sha": COMMIT, "private": False, "siblings": siblings}

    def tree(self, files: dict[str, bytes]) -> list[dict[str, object]]:
        entries = []
        for name, content in files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": etag("small", content)}
            large = {"lfs": {"oid": etag(name, content), "sha256": etag(name, content), "size": len(content)}}
            pointer = {"pointerSize": 130}
            entries.append({**entry, "lfs": {**large["lfs"], **pointer}} if is_large(name) else entry)
        return entries

    def file(self, repo: str, name: str) -> None:
        content = self.server.repos[repo][name]
        headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": COMMIT}
        if self.command == "GET":
            self.server.served.append(name)
            if self.server.spoil.get(name, 0) > 0:
                self.server.spoil[name] -= 1
                content = bytes([content[0] ^ 1]) + content[1:]
        start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        self.answer(content[start:], 206 if start else 200, headers)

    def answer(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
