"""A Hugging Face hub on loopback, for the real clients: huggingface_hub, timm and datasets.

It speaks as much of the hub's protocol as they ask for: repositories of models and data sets with
branches and commits, files in git or in LFS (whose bytes another address gives, to whoever has the
signed link, and from where a client asks), private and gated repositories, logins, and commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

ONE, TWO = "1" * 40, "2" * 40
RESNET = "timm/test_resnet.r160_in1k"
"""Where timm keeps the weights of its smallest network."""
_IN_GIT = {".json", ".md", ".txt", ".yaml", ".csv", ""}
_SIGNED = "?Signature=a-secret"
LICENSES = ("unknown", "mit", "apache-2.0")


def in_lfs(name: str) -> bool:
    """What the hub's ``.gitattributes`` says of a file, roughly."""
    return PurePosixPath(name).suffix not in _IN_GIT


def etag(name: str, data: bytes) -> str:
    """The sha256 of a file in LFS, git's own hash of another."""
    if in_lfs(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """``files`` are by (repository, commit, name), ``refs`` by (repository, branch); a data set is
    ``datasets/OWNER/NAME``. ``refusals`` answers a repository, or all of ``lfs``, with a status
    and an error code instead, ``private`` ones are there for their owners. ``logins`` has whom a
    token is of. Each body of LFS is cut after as many bytes as ``cuts`` gives. ``asked`` notes
    every request."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.private: set[str] = set()
        self.logins: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.cuts: Iterator[int] = iter(())
        self.asked: list[str] = []
        self._running = []
        for _ in range(2):
            made = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
            thread = threading.Thread(target=made.serve_forever, args=(0.01,))
            thread.start()
            self._running.append((made, thread))
        # The bytes of large files come from another origin, which must not be given the token.
        self.url, self.store = (f"http://127.0.0.1:{s.server_address[1]}" for s, _ in self._running)

    def close(self) -> None:
        """From here on nobody answers."""
        while self._running:
            made, thread = self._running.pop()
            made.shutdown()
            thread.join()
            made.server_close()

    def add(
        self,
        data: bytes,
        repo: str = RESNET,
        commit: str = ONE,
        name: str = "model.safetensors",
    ) -> None:
        """A file of a commit, which main then is."""
        self.files[repo, commit, name] = data
        self.objects[hashlib.sha256(data).hexdigest()] = data
        self.refs[repo, "main"] = commit

    def login(self, token: str = "hf_me", name: str = "me", role: str = "write", orgs=()) -> str:
        access = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
        teams = [{"type": "org", "name": org} for org in orgs]
        self.logins[token] = {"type": "user", "name": name, "orgs": teams, "auth": access}
        return token

    def tree(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a commit or branch, by name."""
        at = self.refs.get((repo, revision), revision)
        return {n: data for (r, commit, n), data in self.files.items() if (r, commit) == (repo, at)}

    def commits(self, repo: str) -> set[str]:
        known = {commit for owner, commit, _ in self.files if owner == repo}
        return known | {commit for (owner, _), commit in self.refs.items() if owner == repo}


@dataclass
class Reply(Exception):
    """An answer, which is raised where it is a refusal; ``most`` bytes of its body are sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    most: int | None = None


def said(facts: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(facts).encode(), {"Content-Type": "application/json"})


def refusal(status: int, code: str = "", message: str = "", commit: str = "") -> Reply:
    message = message or code
    headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
    body = json.dumps({"error": message}).encode()
    return Reply(status, body, {name: value for name, value in headers.items() if value})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        try:
            reply = self._reply(self._sent())
        except Reply as refused:
            reply = refused
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.most])
        self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def _sent(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, sent: bytes) -> Reply:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.startswith("lfs/"):
            return self._large(path.removeprefix("lfs/"), sent)
        if self.token and self.token not in self.hub.logins:
            raise refusal(401, message="Invalid credentials in Authorization header")
        if "/resolve/" in path:
            return self._file(*path.split("/resolve/", 1))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(sent))
        if path == "api/whoami-v2":
            return said(self.hub.logins[self.token])
        if path == "api/validate-yaml":
            return self._validated(json.loads(sent))
        if path == "api/repos/create":
            return self._created(json.loads(sent))
        return self._api(path.removeprefix("api/").removeprefix("models/").split("/"), sent)

    def _commit(self, repo: str, revision: str) -> str:
        """The commit that is meant, for whoever may read it."""
        hub = self.hub
        if repo in hub.refusals:
            status, code = hub.refusals[repo]
            raise refusal(status, code) if status != 200 else Reply(headers={"ETag": '"x"'})
        hidden = repo in hub.private and repo.split("/")[-2] not in self._spaces()
        if hidden or not hub.commits(repo):
            raise refusal(404 if self.token else 401, "RepoNotFound")
        commit = hub.refs.get((repo, revision), revision)
        if commit not in hub.commits(repo):
            raise refusal(404, "RevisionNotFound")
        return commit

    def _spaces(self) -> set[str]:
        """The names under which whoever asks may have repositories."""
        login = self.hub.logins.get(self.token)
        return {login["name"], *(org["name"] for org in login["orgs"])} if login else set()

    def _refuse_writing(self, owner: str) -> None:
        login = self.hub.logins.get(self.token)
        role = login["auth"]["accessToken"]["role"] if login else ""
        if owner not in self._spaces() or role != "write":
            message = f"You don't have the rights to write to '{owner}'"
            raise refusal(403 if login else 401, message=message)

    def _file(self, repo: str, rest: str) -> Reply:
        hub, branches = self.hub, [branch for owner, branch in self.hub.refs if owner == repo]
        named = (r for r in [*hub.commits(repo), *branches] if rest.startswith(f"{r}/"))
        revision = next(named, rest.partition("/")[0])
        commit, name = self._commit(repo, revision), rest.removeprefix(f"{revision}/")
        data = hub.files.get((repo, commit, name))
        if data is None:
            raise refusal(404, "EntryNotFound", commit=commit)
        tag, headers = etag(name, data), {"X-Repo-Commit": commit}
        if not in_lfs(name):
            return Reply(200, data, {**headers, "ETag": f'"{tag}"'})
        large = {"X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(data))}
        return Reply(302, b"", {**headers, **large, "Location": f"{hub.store}/lfs/{tag}{_SIGNED}"})

    def _large(self, oid: str, sent: bytes) -> Reply:
        """Bytes of LFS, from where they are asked for, to whoever has the signed link alone."""
        if self.token or _SIGNED not in self.path:
            raise refusal(403, message="a signature, and no token, is wanted here")
        if "lfs" in self.hub.refusals:
            raise refusal(*self.hub.refusals["lfs"])
        if self.command == "PUT":
            assert hashlib.sha256(sent).hexdigest() == oid
            self.hub.objects[oid] = sent
            return Reply()
        data, wanted = self.hub.objects[oid], self.headers.get("Range")
        headers, most = {"ETag": f'"{oid}"'}, next(self.hub.cuts, None)
        if not wanted:
            return Reply(200, data, headers, most)
        start = int(wanted.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Reply(206, data[start:], headers, most)

    def _created(self, asked: dict[str, Any]) -> Reply:
        owner = asked.get("organization") or self.hub.logins[self.token]["name"]
        self._refuse_writing(owner)
        repo = f"{owner}/{asked['name']}"
        facts = {"url": f"{self.hub.url}/{repo}", "name": repo}
        if self.hub.commits(repo):
            return said({**facts, "error": "You already created this model repo"}, 409)
        self.hub.refs[repo, "main"] = hashlib.sha1(repo.encode()).hexdigest()
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repo)
        return said(facts)

    def _validated(self, asked: dict[str, Any]) -> Reply:
        license_name = yaml.safe_load(asked["content"].split("---")[1])["license"]
        if license_name in LICENSES:
            return said({"errors": [], "warnings": []})
        message = '"license" must be one of [mit, apache-2.0, unknown]'
        if self.headers.get("Accept") == "text/plain":
            return Reply(400, message.encode())
        return said({"errors": [{"message": message}], "warnings": []}, 400)

    def _batch(self, asked: dict[str, Any]) -> Reply:
        """Where the objects go that are not there."""
        known = self.hub.objects
        upload = lambda oid: {"upload": {"href": f"{self.hub.store}/lfs/{oid}{_SIGNED}"}}  # noqa: E731
        objects = [
            o if o["oid"] in known else {**o, "actions": upload(o["oid"])} for o in asked["objects"]
        ]
        return said({"transfer": "basic", "objects": objects})

    def _api(self, path: list[str], sent: bytes) -> Reply:
        size = 3 if path[0] == "datasets" else 2
        repo, verb, rest = "/".join(path[:size]), (path[size:] or [""])[0], path[size + 1 :]
        commit = self._commit(repo, rest[0] if rest else "main")
        tree = self.hub.tree(repo, commit)
        if verb in ("", "revision"):
            facts = {"id": repo.removeprefix("datasets/"), "sha": commit, "tags": []}
            return said({**facts, "siblings": [{"rfilename": name} for name in tree]})
        if verb == "tree":
            return said(listed(tree, "/".join(rest[1:])))
        if verb == "paths-info":
            wanted = parse_qs(sent.decode())["paths"]
            return said([entry for entry in listed(tree) if entry["path"] in wanted])
        self._refuse_writing(repo.split("/")[-2])
        if verb == "preupload":
            modes = {f["path"]: in_lfs(f["path"]) for f in json.loads(sent)["files"]}
            kinds = {path: "lfs" if large else "regular" for path, large in modes.items()}
            told = [{"path": p, "uploadMode": k, "shouldIgnore": False} for p, k in kinds.items()]
            return said({"files": told})
        return self._committed(repo, commit, tree, sent)

    def _committed(self, repo: str, parent: str, tree: dict[str, bytes], sent: bytes) -> Reply:
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
        made = hashlib.sha1(parent.encode() + sent).hexdigest()
        for name, data in tree.items():
            self.hub.add(data, repo, made, name)
        return said({"commitUrl": f"{self.hub.url}/{repo}/commit/{made}", "commitOid": made})


def listed(tree: dict[str, bytes], below: str = "") -> list[dict[str, Any]]:
    """The files below a folder, and the folders that they are in."""
    start = f"{below}/" if below else ""
    found: dict[str, dict[str, Any]] = {}
    for name, data in tree.items():
        if not name.startswith(start):
            continue
        for folder in map(str, PurePosixPath(name).parents):
            if folder != "." and folder.startswith(start):
                oid = hashlib.sha1(folder.encode()).hexdigest()
                found[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
        tag = etag(name, data)
        found[name] = {"type": "file", "path": name, "oid": tag[:40], "size": len(data)}
        if in_lfs(name):
            found[name]["lfs"] = {"oid": tag, "size": len(data), "pointerSize": 130}
    return list(found.values())


def connect(patch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Have the clients of this process ask the hub at ``url``, with a cache in ``home`` and nobody
    logged in. A process that begins then does the same."""
    from huggingface_hub import constants

    places = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(home / "hf"), "HF_HOME": str(home / "home")}
    switches = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS")
    for name, value in {**places, **dict.fromkeys(switches, "1")}.items():
        patch.setenv(name, value)
    patch.setenv("no_proxy", "*")
    patch.delenv("HF_TOKEN", raising=False)
    patch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", places["HF_HUB_CACHE"])
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "home" / "token"))
    for name in switches:
        patch.setattr(constants, name, True, raising=False)
