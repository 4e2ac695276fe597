"""A server on this machine that speaks the part of the Hugging Face Hub's HTTP interface that a download needs."""

import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "c0ffee" + "0" * 34  # what main stands for
INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/revision/(main|v1|[0-9a-f]{40})")
TREE = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[0-9a-f]{40}")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/(main|[0-9a-f]{40})/(.+)")


class _Handler(BaseHTTPRequestHandler):
    """Serves `ROOT/models/OWNER/NAME/…` and `ROOT/datasets/OWNER/NAME/…` as repositories, the same at every commit."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/":
            self._answer(b"")
        elif match := INFO.fullmatch(path):
            commit = {"main": COMMIT, "v1": COMMIT[::-1]}.get(match[3], match[3])
            self._describe(match[1], match[2], lambda files: {"id": match[2], "sha": commit, "siblings": files})
        elif match := TREE.fullmatch(path):
            self._describe(*match.groups(), lambda files: files)
        elif (match := FILE.fullmatch(path)) and (
            path := self.server.root / (match[1] or "models/") / match[2] / match[4]
        ).is_file():
            self.server.downloads.append((self.command, match[4]))
            content = path.read_bytes()
            self._answer(
                content,
                {
                    "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                    "X-Repo-Commit": COMMIT if match[3] == "main" else match[3],
                },
            )
        else:
            self._answer(b"", {"X-Error-Code": "EntryNotFound"}, status=404)

    do_HEAD = do_GET

    def _describe(self, kind, name, make):
        folder = self.server.root / kind / name
        if not folder.is_dir():
            self._answer(b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, status=404)
            return
        files = [
            {"type": "file", "path": name, "rfilename": name, "size": path.stat().st_size, "oid": "0" * 40}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and (name := str(path.relative_to(folder)))
        ]
        self._answer(json.dumps(make(files)).encode(), {"Content-Type": "application/json"})

    def _answer(self, content, headers=(), status=200):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextmanager
def loopback_hub(root: Path):
    """Serve a folder as a Hub; yields the server, with its `endpoint` and the `downloads` that it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.root, server.downloads = root, []
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
