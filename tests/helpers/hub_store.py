"""What a Hub holds, in memory, and what it answers to the calls of `push_to_hub` and `from_pretrained`."""

import base64
import hashlib
import json
from dataclasses import dataclass, field

from huggingface_hub import ModelCard


NAMESPACE = "me"
"""Whose repositories are those without a namespace."""


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
class Repo:
    private: bool | None = None
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial commit", {})]})


class HubStore:
    """
    The repositories of a Hub.

    - `endpoint`: the address that answers point to.
    - `repos`: what is published, by repository id.
    - `objects`: large files that have been uploaded, by their hash.
    """

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}

    def commits(self, repo, revision="main"):
        return self.repos[repo].branches[revision]

    def files(self, repo, revision="main"):
        return self.commits(repo, revision)[-1].files

    def put(self, repo, files):
        """Publishes files without HTTP."""
        self.repos.setdefault(repo, Repo())
        self.commits(repo).append(Commit("by hand", self.files(repo) | files))

    # Answers: JSON, or a file's content

    def whoami(self, body):
        return {"name": NAMESPACE, "type": "user", "auth": {"accessToken": {"role": "write"}}}

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
        """Applies all operations or none: new files are collected first and become visible with one assignment."""
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


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data):
    return hashlib.sha256(data).hexdigest()
