"""A hub of our own on localhost: the part of the Hugging Face hub's protocol that downloads use, with faults on demand."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `repos`, {"org/name": folder}. `requests` lists (method, repo, file, range start, authorization).

    breaks: a file of which every answer ends after `break_after` bytes. damage: a file whose bytes are changed on the way.
    gated: repositories that answer 403.
    """

    def __init__(self, repos: dict[str, Path]):
        self.repos, self.requests = repos, []
        self.breaks, self.break_after, self.damage, self.gated = None, 0, None, set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler, body: bool):
        parts = handler.path.strip("/").split("/", 4)
        if len(parts) < 5:  # telemetry and the like
            return handler.send_error(404)
        org, name, _, _, file = parts
        repo, wanted = f"{org}/{name}", handler.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.requests.append((handler.command, repo, file, start, handler.headers.get("Authorization")))
        path = self.repos.get(repo, Path("/nowhere")) / file
        code, error = 206 if wanted else 200, None
        if repo in self.gated:
            code, error = 403, "GatedRepo"
        elif repo not in self.repos:
            code, error = 404, "RepoNotFound"
        elif not path.is_file():
            code, error = 404, "EntryNotFound"
        content = path.read_bytes() if error is None else b""
        digest = hashlib.sha256(content) if file.endswith(".safetensors") else hashlib.sha1(content)
        handler.send_response(code)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("ETag", f'"{digest.hexdigest()}"')
        handler.send_header("Content-Length", str(len(content) - start))
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if error:
            handler.send_header("X-Error-Code", error)
        handler.end_headers()
        if body and not error:
            if file == self.damage:
                content = content[:-4] + b"\xff\xff\xff\xff"
            handler.wfile.write(content[start:][: self.break_after if file == self.breaks else None])
            handler.close_connection = True

    def got(self, file: str) -> list[int]:
        """Where each GET of a file started."""
        return [start for method, _, name, start, _ in self.requests if method == "GET" and name == file]
