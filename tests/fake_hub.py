"""A hub on localhost: as much of the Hugging Face hub's protocol as downloads use, with faults on demand."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `repos`, {"org/name": folder}, as long as it is entered with `with`.

    requests: what came in, (method, repository, file, authorization).
    breaks: {file: answers}; so many answers with that file end in the middle.
    short: files that are sent whole as it seems, but without their last 100 bytes.
    huge: files that are said to have 10^15 bytes.
    gated: repositories that answer 403. wrong_token: the authorization that is refused.
    """

    def __init__(self, repos: dict[str, Path]):
        self.repos = repos
        self.reset()
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

    def reset(self) -> None:
        """Forget all requests and faults."""
        self.requests, self.breaks, self.wrong_token = [], {}, None
        self.short, self.huge, self.gated = set(), set(), set()

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        parts = handler.path.strip("/").split("/", 4)  # org/name/resolve/revision/file
        if len(parts) < 5:  # telemetry and the like
            return handler.send_error(404)
        repo, file, key = "/".join(parts[:2]), parts[4], handler.headers.get("Authorization")
        self.requests.append((handler.command, repo, file, key))
        path = self.repos.get(repo, Path("/nowhere")) / file
        if key and key == self.wrong_token:
            return self.refuse(handler, 401, "X-Error-Message", "Invalid credentials in Authorization header")
        if repo in self.gated:
            return self.refuse(handler, 403, "X-Error-Code", "GatedRepo")
        if repo not in self.repos:
            return self.refuse(handler, 404, "X-Error-Code", "RepoNotFound")
        if not path.is_file():
            return self.refuse(handler, 404, "X-Error-Code", "EntryNotFound")
        content = path.read_bytes()
        size = 10**15 if file in self.huge else len(content)
        sent = content[:-100] if file in self.short else content
        handler.send_response(200)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        handler.send_header("X-Linked-Size", str(size))
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        if body:
            if self.breaks.get(file, 0) > 0:
                self.breaks[file] -= 1
                sent = sent[: len(sent) // 3]
            handler.wfile.write(sent)
            handler.close_connection = True

    def refuse(self, handler: BaseHTTPRequestHandler, code: int, header: str, value: str) -> None:
        handler.send_response(code)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header(header, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def fetched(self) -> set[str]:
        """The files whose contents were asked for."""
        return {file for method, _, file, _ in self.requests if method == "GET"}
