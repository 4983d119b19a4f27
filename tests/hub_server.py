"""A Hub on the loopback: the calls that `push_to_hub` and `from_pretrained` make, over real HTTP, kept in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard


NAMESPACE = "me"
"""Whose repositories are those without a namespace."""
REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", "tree"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "upload"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify", "verify"),
    ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
"""Method, path, and the kind of request, which is also the name of the method that answers it."""
WRITES = {"create", "branch", "preupload", "commit", "batch"}


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status, message, code=None, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message} | body


@dataclass
class Commit:
    message: str
    files: dict[str, bytes]
    """Path -> content, of the whole repository."""

    @property
    def oid(self):
        described = json.dumps([self.message, sorted((path, git_oid(data)) for path, data in self.files.items())])
        return hashlib.sha1(described.encode()).hexdigest()


@dataclass
class Failure:
    at: int
    how: int | str
    times: float


@dataclass
class Repo:
    private: bool | None = None
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial commit", {})]})


class HubServer:
    """
    Serves until `close()`.

    - `endpoint`: for `HF_ENDPOINT`.
    - `repos`: what is published, by repository id.
    - `requests`: kinds of the requests so far, in order, see `ROUTES`.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: dict[str, Failure] = {}
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def commits(self, repo, revision="main"):
        return self.repos[repo].branches[revision]

    def files(self, repo, revision="main"):
        return self.commits(repo, revision)[-1].files

    def put(self, repo, files):
        """Publishes files without HTTP."""
        self.repos.setdefault(repo, Repo())
        self.commits(repo).append(Commit("by hand", self.files(repo) | files))

    @contextmanager
    def failing(self, kind, at=1, how=500, times=float("inf")):
        """
        Makes requests of a kind fail.

        Args:
            kind (`str`): of the requests, see `ROUTES`.
            at (`int`, defaults to 1): the first request that fails, counted from here.
            how (`int` or `str`, defaults to 500): a status, or `"drop"` to hang up without an answer.
            times (defaults to infinity): how many fail, from that one on.
        """
        self.failures[kind] = Failure(at, how, times)
        try:
            yield
        finally:
            del self.failures[kind]

    def failure(self, kind):
        """How the request of this kind that has just come in fails, if it does."""
        due = self.failures.get(kind)
        if due is None:
            return None
        due.at -= 1
        if due.at > 0 or due.times <= 0:
            return None
        due.times -= 1
        return due.how

    # Answers: JSON, or a file's content

    def create(self, body):
        repo = f"{body.get('organization') or NAMESPACE}/{body['name']}"
        url = f"{self.endpoint}/{repo}"
        if repo in self.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        self.repos[repo] = Repo(private=body.get("visibility") == "private")
        return {"url": url}

    def validate(self, body):
        ModelCard(body["content"])
        return {"errors": [], "warnings": []}

    def info(self, repo, revision=None, body=None):
        commit = self._commit(repo, revision or "main")
        card = commit.files.get("README.md")
        return {
            "id": repo,
            "sha": commit.oid,
            "siblings": [{"rfilename": path} for path in commit.files],
            "cardData": ModelCard(card.decode()).data.to_dict() if card else None,
        }

    def tree(self, repo, revision, body=None):
        return [
            {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            for path, data in self._commit(repo, revision).files.items()
        ]

    def branch(self, repo, revision, body):
        if revision in self._repo(repo).branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        self.repos[repo].branches[revision] = self.commits(repo)[:]
        return {}

    def preupload(self, repo, revision, body):
        there = self._commit(repo, revision).files

        def row(path):
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            hashed = {"lfs": sha256, "regular": git_oid}[mode]
            oid = hashed(there[path]) if path in there else None
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return {"files": [row(file["path"]) for file in body["files"]]}

    def batch(self, repo, body):
        self._repo(repo)

        def row(wanted):
            if wanted["oid"] in self.objects:
                return wanted
            href = f"{self.endpoint}/lfs/{wanted['oid']}"
            return wanted | {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}

        return {"transfer": "basic", "objects": [row(wanted) for wanted in body["objects"]]}

    def upload(self, oid, body):
        if sha256(body) != oid:
            raise Refusal(400, "The content is not what its hash says")
        self.objects[oid] = body
        return {}

    def verify(self, oid, body):
        if len(self.objects.get(oid, b"")) != body["size"]:
            raise Refusal(404, "No such object")
        return {}

    def commit(self, repo, revision, body, create_pr=False):
        """All operations, or none: the new files are put together first and become visible with one assignment."""
        files = dict(self._commit(repo, revision).files)
        header, *operations = body
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refusal(400, f"LFS pointer without an object: {value['path']}")
                files[value["path"]] = self.objects[value["oid"]]
            elif kind == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
            else:
                raise Refusal(400, f"Unknown operation {kind}")
        commit = Commit(header["value"]["summary"], files)
        branches = self.repos[repo].branches
        history = branches[revision]
        if create_pr:
            revision = f"refs/pr/{len([name for name in branches if name.startswith('refs/pr/')]) + 1}"
        branches[revision] = [*history, commit]
        url = f"{self.endpoint}/{repo}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        return answer | {"pullRequestUrl": f"{url}/discussions/{revision.rpartition('/')[2]}"}

    def resolve(self, repo, revision, path, body=None):
        commit = self._commit(repo, revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", oid=commit.oid)
        return commit.files[path], commit.oid

    def _repo(self, repo):
        if repo not in self.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.repos[repo]

    def _commit(self, repo, revision):
        branches = self._repo(repo).branches
        if revision in branches:
            return branches[revision][-1]
        for commit in (commit for history in branches.values() for commit in history):
            if commit.oid == revision:
                return commit
        raise Refusal(404, "Revision not found", "RevisionNotFound")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def answer(self):
        path, query = urlsplit(self.path)[2:4]  # path still quoted: a branch may hold a slash
        body = self.read_body()
        kind, arguments = route(self.command, path)
        if kind is None:
            return self.reply(404, json.dumps({"error": f"No route {self.command} {path}"}).encode())
        with self.hub.lock:
            self.hub.requests.append(kind)
            how = self.hub.failure(kind)
            if how == "drop":
                self.close_connection = True
                return None
            try:
                if how is not None:
                    raise Refusal(how, "Told to fail")
                if kind in WRITES and not self.headers.get("Authorization"):
                    raise Refusal(401, "Invalid username or password.")
                if kind == "commit":
                    arguments["create_pr"] = "create_pr=1" in query
                answer = getattr(self.hub, kind)(body=parsed(kind, body), **arguments)
            except Refusal as refusal:
                headers = {"X-Error-Code": refusal.code} if refusal.code else {}
                if "oid" in refusal.body:
                    headers["X-Repo-Commit"] = refusal.body["oid"]
                return self.reply(refusal.status, json.dumps(refusal.body).encode(), headers)
        if kind == "resolve":
            content, commit = answer
            return self.reply(200, content, {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": commit})
        return self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, status, content, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def route(method, path):
    for wanted, pattern, kind in ROUTES:
        found = re.fullmatch(pattern, path)
        if wanted == method and found:
            return kind, {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
    return None, {}


def parsed(kind, body):
    if kind == "upload" or not body:
        return body
    if kind == "commit":
        return [json.loads(line) for line in body.splitlines()]
    return json.loads(body)


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()
