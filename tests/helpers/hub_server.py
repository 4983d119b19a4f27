"""A Hub on the loopback: the calls that `push_to_hub` and `from_pretrained` make, over real HTTP."""

import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from hub_store import HubStore, Refusal, git_oid


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
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


@dataclass
class Failure:
    at: int
    how: int | str
    times: float


class HubServer(HubStore):
    """
    Serves until `close()`.

    - `endpoint`: for `HF_ENDPOINT`.
    - `requests`: kinds of the requests so far, in order, see `ROUTES`.
    """

    def __init__(self):
        self.requests: list[str] = []
        self.failures: dict[str, Failure] = {}
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        super().__init__(f"http://127.0.0.1:{self.http.server_port}")
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

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
        """Returns how the current request of this kind fails, if it does."""
        due = self.failures.get(kind)
        if due is None:
            return None
        due.at -= 1
        if due.at > 0 or due.times <= 0:
            return None
        due.times -= 1
        return due.how


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
