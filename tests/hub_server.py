"""A small Hub on the loopback, for the real `huggingface_hub` client: repositories, commits, LFS, tokens, faults.

It keeps to what the client sends and reads: https paths, status codes and headers as the Hub answers them, without
its rate limits, pull-request pages or storage. Nothing here is mocked on the client's side.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

BODY_LIMIT = 10_000_000


@dataclass(frozen=True)
class Commit:
    """One state of a repository: path -> content."""

    message: str
    files: dict[str, bytes]
    parent: str | None = None

    @property
    def oid(self):
        digest = hashlib.sha1(f"{self.parent} {self.message}".encode())
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()


@dataclass
class Repo:
    """Branches, oldest commit first. A new repository has one commit, as on the Hub."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial commit", {})]})

    def find(self, revision):
        """The commit that a branch or an oid names, else `None`."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next(
            (commit for commits in self.branches.values() for commit in commits if commit.oid == revision), None
        )


@dataclass
class Fault:
    """What goes wrong the next `times` times a request matches: a status, or a connection that breaks half-way."""

    request: str
    times: int
    status: int | None


class HubServer(ThreadingHTTPServer):
    """The server; `with HubServer() as hub:` runs it.

    Attributes:
        repos: id -> `Repo`.
        tokens: token -> user name.
        requests: `"METHOD path"` of what was answered so far.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage_url = f"http://localhost:{self.server_port}"  # another host, as the Hub's storage is
        self.repos: dict[str, Repo] = {}
        self.tokens = {"hf_me": "me", "hf_other": "other"}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lfs: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def fail(self, request, times=1, status=500):
        """Answer `status` to the next requests whose `"METHOD path"` matches a pattern."""
        self.faults.append(Fault(request, times, status))

    def drop(self, request, times=1):
        """Break the connection in the middle of the next requests that match."""
        self.faults.append(Fault(request, times, None))

    def commits(self, repo_id, branch="main"):
        """Messages of a branch's commits, without the first, empty one."""
        return [commit.message for commit in self.repos[repo_id].branches[branch][1:]]

    def files(self, repo_id, revision="main"):
        """Path -> content at a revision."""
        return self.repos[repo_id].find(revision).files

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _HubError(Exception):
    def __init__(self, status, code=None, message=""):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self):
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        fault = self._fault(f"{self.command} {path}")
        self.broken = fault is not None and fault.status is None
        length = int(self.headers.get("Content-Length") or 0)
        if self.broken and self.command == "PUT":
            self.rfile.read(length // 2)
            self._break()
            return
        self.body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        try:
            if fault is not None and fault.status is not None:
                raise _HubError(fault.status, message="the test asked for this")
            with self.server.lock:
                self._route(path)
        except _HubError as error:
            headers = {"X-Error-Code": error.code} if error.code else {}
            self._json({"error": str(error)}, error.status, {**headers, "X-Error-Message": str(error)})

    def _fault(self, request):
        for fault in self.server.faults:
            if fault.times and re.search(fault.request, request):
                fault.times -= 1
                return fault
        return None

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _break(self):
        self.close_connection = True
        self.connection.close()

    def _route(self, path):
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                self.server.requests.append(f"{self.command} {path}")
                answer(self, *match.groups())
                return
        raise _HubError(404, message=f"no such page: {path}")

    # Answers, one for each route.

    def _whoami(self):
        self._json({"name": self._user(), "type": "user", "orgs": []})

    def _create_repo(self):
        request = json.loads(self.body)
        owner = request.get("organization") or self._user()
        repo_id = f"{owner}/{request['name']}"
        if owner != self._user():
            raise _HubError(403, message=f"you may not create {repo_id}")
        url = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repos:
            self._json({**url, "error": "You already created this model repo"}, 409)
            return
        self.server.repos[repo_id] = Repo(request.get("visibility") == "private" or bool(request.get("private")))
        self._json(url)

    def _create_branch(self, repo_id, branch):
        repo = self._writable(repo_id)
        if branch in repo.branches:
            raise _HubError(409, message=f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = list(repo.branches["main"])
        self._json({})

    def _info(self, repo_id, revision="main"):
        repo = self._readable(repo_id)
        commit = self._commit_of(repo, revision)
        files = [{"rfilename": path} for path in sorted(commit.files)]
        self._json({"id": repo_id, "modelId": repo_id, "sha": commit.oid, "private": repo.private, "siblings": files})

    def _tree(self, repo_id, revision, folder=""):
        commit = self._commit_of(self._readable(repo_id), revision)
        inside = {path: content for path, content in commit.files.items() if path.startswith(folder)}
        if folder and not inside:
            raise _HubError(404, "EntryNotFound", f"{folder} does not exist")
        self._json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
                for path, content in sorted(inside.items())
            ]
        )

    def _validate_yaml(self):
        content = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---", content, flags=re.DOTALL)
        try:
            yaml.safe_load(block.group(1) if block else "")
            self._json({"errors": [], "warnings": []})
        except yaml.YAMLError as error:
            self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)

    def _preupload(self, repo_id, revision):
        there = self._commit_of(self._writable_or_pr(repo_id), revision).files
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_lfs(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], there[file["path"]]) if file["path"] in there else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def _lfs_batch(self, repo_id):
        self._readable(repo_id)
        verify = {"href": f"{self.server.url}/api/lfs/verify"}
        objects = []
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.storage_url}/storage/{item['oid']}"}
            actions = {} if item["oid"] in self.server.lfs else {"actions": {"upload": upload, "verify": verify}}
            objects.append({**item, **actions})
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _HubError(400, message="the content is not what its oid says")
        self.server.lfs[oid] = self.body
        self._json({})

    def _verify(self):
        item = json.loads(self.body)
        if len(self.server.lfs.get(item["oid"], b"")) != item["size"]:
            raise _HubError(422, message="the object was not uploaded")
        self._json({})

    def _commit(self, repo_id, revision):
        pull_request = "create_pr" in self.query
        repo = self._writable_or_pr(repo_id) if pull_request else self._writable(repo_id)
        head = self._commit_of(repo, revision)
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        files = dict(head.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.server.lfs:
                    raise _HubError(400, message=f"{value['path']} was not uploaded")
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        commit = Commit(header["value"]["summary"], files, parent=head.oid)
        number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
        if pull_request:
            repo.branches[f"refs/pr/{number}"] = [*repo.branches[revision], commit]
        else:
            repo.branches[revision].append(commit)
        self._json(
            {
                "success": True,
                "commitOid": commit.oid,
                "commitUrl": f"{self.server.url}/{repo_id}/commit/{commit.oid}",
                "pullRequestUrl": f"{self.server.url}/{repo_id}/discussions/{number}" if pull_request else None,
            }
        )

    def _resolve(self, repo_id, revision, path):
        commit = self._commit_of(self._readable(repo_id), revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            self._json({}, 404, {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = commit.files[path]
        oid = _oid(path, content)
        if _is_lfs(path):
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            self._json({}, 302, {**headers, **linked, "Location": f"{self.server.storage_url}/storage/{oid}"})
            return
        self._send(content, headers={**headers, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _fetch(self, oid):
        content = self.server.lfs[oid]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._send(content)
            return
        start, end = int(asked.group(1)), min(int(asked.group(2) or len(content) - 1), len(content) - 1)
        self._send(content[start : end + 1], 206, {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    # Who asks, and what they may.

    def _user(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.server.tokens:
            raise _HubError(401, message="Invalid username or password.")
        return self.server.tokens[token]

    def _readable(self, repo_id):
        repo = self.server.repos.get(repo_id)
        known = "Authorization" in self.headers
        if repo is None or (repo.private and not (known and self._user() == repo_id.split("/")[0])):
            # As the Hub does: whether a private repository exists is not for strangers to know.
            raise _HubError(404 if known else 401, "RepoNotFound", "Repository not found")
        return repo

    def _writable(self, repo_id):
        repo = self._readable(repo_id)
        if self._user() != repo_id.split("/")[0]:
            raise _HubError(403, message=f"you may not write to {repo_id}")
        return repo

    def _writable_or_pr(self, repo_id):
        return self._readable(repo_id) if "create_pr" in self.query else self._writable(repo_id)

    def _commit_of(self, repo, revision):
        commit = repo.find(revision)
        if commit is None:
            raise _HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _json(self, data, status=200, headers=None):
        self._send(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, content, status=200, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if self.broken else content)
        if self.broken:
            self.wfile.flush()
            self._break()


_REPO = r"([\w.-]+/[\w.-]+)"
_API = rf"/api/models/{_REPO}"
_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler._whoami),
    (("POST",), r"/api/repos/create", _Handler._create_repo),
    (("POST",), r"/api/validate-yaml", _Handler._validate_yaml),
    (("POST",), r"/api/lfs/verify", _Handler._verify),
    (("POST",), rf"{_API}/branch/(.+)", _Handler._create_branch),
    (("POST",), rf"{_API}/preupload/(.+)", _Handler._preupload),
    (("POST",), rf"{_API}/commit/(.+)", _Handler._commit),
    (("GET",), rf"{_API}/tree/([^/]+|refs/pr/\d+)", _Handler._tree),
    (("GET",), rf"{_API}/tree/([^/]+)/(.+)", _Handler._tree),
    (("GET",), rf"{_API}/revision/(.+)", _Handler._info),
    (("GET",), _API, _Handler._info),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (("PUT",), r"/storage/(\w+)", _Handler._store),
    (("GET", "HEAD"), r"/storage/(\w+)", _Handler._fetch),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/(refs/pr/\d+|[^/]+)/(.+)", _Handler._resolve),
]


def _is_lfs(path):
    return path.endswith((".safetensors", ".bin"))


def _oid(path, content):
    """What the Hub calls a file: the sha256 of an LFS file, the blob id that git gives any other."""
    return hashlib.sha256(content).hexdigest() if _is_lfs(path) else _git_oid(content)


def _git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
