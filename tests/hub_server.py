"""A Hugging Face Hub in memory, on loopback: as much of one as `datasets` and `huggingface_hub` ask for, without Xet.

Clients find it by HF_ENDPOINT, which they read when they are imported, so they run in processes of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Kind = Literal["model", "dataset", "space"]
Access = Literal["public", "private", "gated"]
Files = Mapping[str, bytes]

TOKEN = "hf_reader"
"""What private and gated repositories ask for; the others take any token, and none."""

LARGE_BYTES = 10 << 20
LARGE_KINDS = (".safetensors", ".parquet", ".bin", ".pt", ".onnx")


@dataclass(frozen=True)
class Request:
    """What was asked for. `path` is decoded and has no query."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes

    @property
    def may_read_all(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Commit:
    oid: str
    files: Files


@dataclass
class Repository:
    kind: Kind
    id: str
    access: Access
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def page(self, hub: str) -> str:
        return f"{hub}/{self.id}" if self.kind == "model" else f"{hub}/{self.kind}s/{self.id}"

    def commit(self, files: Files, branch: str = "main") -> Commit:
        tree = sorted((path, _git_oid(content)) for path, content in files.items())
        oid = hashlib.sha1(json.dumps([self.id, len(self.commits), tree]).encode()).hexdigest()
        self.commits.append(Commit(oid, dict(files)))
        self.branches[branch] = self.commits[-1]
        return self.commits[-1]


class Refusal(Exception):
    """An error as the Hub words it, from which clients raise errors of their own."""

    def __init__(self, status: int, code: str):
        self.reply = Reply(json.dumps({"error": code}).encode(), status, {"X-Error-Code": code})


class HubServer:
    """A Hub at `url` until :meth:`stop`.

    Attributes:
        requests: what it was asked for, oldest first.
        failures: path -> the status of an error that it is answered with; of 0, the connection is closed instead.
        lost_answers: paths of which what was asked for is done, and the connection closed instead of an answer.
    """

    def __init__(self):
        self.requests: list[Request] = []
        self.failures: dict[str, int] = {}
        self.lost_answers: set[str] = set()
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._large: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._routes = self._route_by_pattern()
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_port}"

    def stop(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def publish(self, kind: Kind, repo_id: str, files: Files, access: Access = "public") -> str:
        """Commit files as the whole content of a repository, new or not, without a client; return the commit's id."""
        with self._lock:
            return self._repository_or_new(kind, repo_id, access).commit(files).oid

    def files(self, kind: Kind, repo_id: str, branch: str = "main") -> Files:
        """What a branch of a repository holds."""
        with self._lock:
            return self._repositories[kind, repo_id].branches[branch].files

    def answer(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            if request.path in self.failures:
                return Refusal(self.failures[request.path], "Injected").reply
            try:
                for pattern, answer in self._routes.items():
                    if match := re.fullmatch(pattern, request.path):
                        reply = answer(request, **match.groupdict())
                        return Reply(status=0) if request.path in self.lost_answers else reply
            except Refusal as refusal:
                return refusal.reply
        return Refusal(404, "NoSuchRoute").reply

    def _route_by_pattern(self) -> dict[str, Callable[..., Reply]]:
        api = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
        page = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo>[^/]+/[^/]+)"
        return {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate_card,
            rf"{api}(?:/revision/(?P<revision>[^/]+))?": self._info,
            rf"{api}/auth-check": self._check_access,
            rf"{api}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)": self._tree,
            rf"{api}/paths-info/(?P<revision>[^/]+)": self._paths_info,
            rf"{api}/branch/(?P<branch>[^/]+)": self._branch,
            rf"{api}/preupload/(?P<revision>[^/]+)": self._preupload,
            rf"{api}/commit/(?P<branch>[^/]+)": self._commit,
            rf"{page}\.git/info/lfs/objects/batch": self._lfs_batch,
            r"/lfs/[0-9a-f]{64}": self._lfs_upload,
            rf"{page}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": self._resolve,
        }

    def _create(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        kind, repo_id = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        status = 409 if (kind, repo_id) in self._repositories else 200
        repository = self._repository_or_new(kind, repo_id, asked.get("visibility", "public"))
        return _json({"url": repository.page(self.url)}, status)

    def _validate_card(self, request: Request) -> Reply:
        """The Hub's own schema is not here, but something of it that a card can offend."""
        metadata = yaml.safe_load(json.loads(request.body)["content"].split("---\n")[1])
        offending = [name for name in ("license", "pipeline_tag") if not isinstance(metadata.get(name, ""), str)]
        errors = [{"message": f'"{name}" must be a string'} for name in offending]
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, request: Request, kind: str, repo: str, branch: str) -> Reply:
        repository, commit = self._at(request, kind, repo, "main")
        if branch in repository.branches:
            raise Refusal(409, "BranchExists")
        repository.branches[branch] = commit
        return Reply()

    def _info(self, request: Request, kind: str, repo: str, revision: str | None) -> Reply:
        repository, commit = self._at(request, kind, repo, revision or "main")
        siblings = [{"rfilename": path, "size": len(commit.files[path])} for path in sorted(commit.files)]
        access = {"private": repository.access == "private", "gated": repository.access == "gated" and "manual"}
        return _json({"id": repo, "sha": commit.oid, "siblings": siblings, **access})

    def _check_access(self, request: Request, kind: str, repo: str) -> Reply:
        repository, _ = self._at(request, kind, repo, "main")
        if repository.access == "gated" and not request.may_read_all:
            raise Refusal(403, "GatedRepo")
        return Reply()

    def _tree(self, request: Request, kind: str, repo: str, revision: str, folder: str) -> Reply:
        files = self._at(request, kind, repo, revision)[1].files
        start = f"{folder}/" if folder else ""
        inside = sorted(path for path in files if path.startswith(start))
        if folder and not inside:
            raise Refusal(404, "EntryNotFound")
        entries = [_folder_entry(path) for path in sorted(_folders(inside)) if path.startswith(start)]
        entries += [_file_entry(path, files[path]) for path in inside]
        if request.query.get("recursive") != ["true"]:
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(start)]
        return _json(entries)

    def _paths_info(self, request: Request, kind: str, repo: str, revision: str) -> Reply:
        files = self._at(request, kind, repo, revision)[1].files
        asked = parse_qs(request.body.decode())["paths"]
        entries = [_file_entry(path, files[path]) for path in asked if path in files]
        return _json(entries + [_folder_entry(path) for path in asked if path in _folders(files)])

    def _preupload(self, request: Request, kind: str, repo: str, revision: str) -> Reply:
        self._at(request, kind, repo, revision)
        files = json.loads(request.body)["files"]
        for file in files:
            file["uploadMode"] = "lfs" if _is_large(file["path"], file["size"]) else "regular"
            file["shouldIgnore"] = False
        return _json({"files": files})

    def _lfs_batch(self, request: Request, kind: str | None, repo: str) -> Reply:
        files = json.loads(request.body)["objects"]
        for file in files:
            if file["oid"] not in self._large:
                file["actions"] = {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}
        return _json({"transfer": "basic", "objects": files})

    def _lfs_upload(self, request: Request) -> Reply:
        self._large[hashlib.sha256(request.body).hexdigest()] = request.body
        return Reply()

    def _commit(self, request: Request, kind: str, repo: str, branch: str) -> Reply:
        repository, last = self._at(request, kind, repo, branch)
        files = dict(last.files)
        for key, value in (json.loads(line).values() for line in request.body.splitlines()):
            if key == "header" and value.get("parentCommit", last.oid) != last.oid:
                raise Refusal(412, "PreconditionFailed")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self._large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                files = {path: content for path, content in files.items() if not path.startswith(folder)}
        oid = repository.commit(files, branch).oid
        return _json({"commitOid": oid, "commitUrl": f"{repository.page(self.url)}/commit/{oid}"})

    def _resolve(self, request: Request, kind: str | None, repo: str, revision: str, path: str) -> Reply:
        kind = kind or "model"
        self._check_access(request, kind, repo)
        _, commit = self._at(request, kind, repo, revision)
        content = commit.files.get(path)
        if content is None:
            raise Refusal(404, "EntryNotFound")
        oid = hashlib.sha256(content).hexdigest() if _is_large(path, len(content)) else _git_oid(content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        return _ranged(content, request.headers.get("Range"), headers)

    def _repository_or_new(self, kind: Kind, repo_id: str, access: Access) -> Repository:
        if (kind, repo_id) not in self._repositories:
            self._repositories[kind, repo_id] = Repository(kind, repo_id, access)
            self._repositories[kind, repo_id].commit({})
        return self._repositories[kind, repo_id]

    def _at(self, request: Request, kind: str, repo_id: str, revision: str) -> tuple[Repository, Commit]:
        repository = self._repositories.get((kind, repo_id))
        if repository is None or (repository.access == "private" and not request.may_read_all):
            raise Refusal(401 if repository else 404, "RepoNotFound")
        for name, commit in [*repository.branches.items(), *((one.oid, one) for one in repository.commits)]:
            if revision == name:
                return repository, commit
        raise Refusal(404, "RevisionNotFound")


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, unquote(url.path), parse_qs(url.query), self.headers, body)
        reply = self.hub.answer(request)
        if reply.status == 0:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: `HubServer.requests` is the log."""


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status)


def _ranged(content: bytes, asked: str | None, headers: Mapping[str, str]) -> Reply:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
    if not match:
        return Reply(content, 200, headers)
    first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Reply(content[first : last + 1], 206, headers)


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if _is_large(path, len(content)):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _folders(paths: Iterable[str]) -> set[str]:
    return {path[: slash.start()] for path in paths for slash in re.finditer("/", path)}


def _is_large(path: str, size: int) -> bool:
    return path.endswith(LARGE_KINDS) or size > LARGE_BYTES


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
