"""A Hugging Face hub of a few files on the loopback: HEAD and GET of `resolve`, redirected to content by SHA-256."""

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import polars
from PIL import Image

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """`files` by "repo/resolve/main/path"; `seen` are the requests that came, `drop` counts downloads to break off."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs = {hashlib.sha256(content).hexdigest(): content for content in files.values()}
        self.links = {f"/datasets/{name}": hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self.seen: list[tuple[str, str, str | None]] = []
        self.drop = 0
        self.damage = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.seen.append((self.command, self.path, self.headers.get("Range")))
        if self.path in self.server.links:
            sha = self.server.links[self.path]
            self.send_response(302)
            # Under another host's name, as the real one's content is: within one host the client follows by itself.
            self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn/{sha}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{sha}"')
            self.send_header("X-Linked-Size", str(len(self.server.blobs[sha])))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith("/cdn/"):
            self.send_content(self.server.blobs[self.path.removeprefix("/cdn/")], body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send_content(self, content: bytes, body: bool) -> None:
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.server.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        end = len(content)
        if self.server.drop:
            self.server.drop -= 1
            end = begin + (len(content) - begin) // 2
            self.close_connection = True
        if body:
            self.wfile.write(content[begin:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def parquet(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The images as the hub's image data sets keep them: PNG bytes and a class number in each row."""
    rows = []
    for image in images:
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        rows.append({"bytes": png.getvalue(), "path": None})
    file = io.BytesIO()
    schema = {"image": polars.Struct({"bytes": polars.Binary, "path": polars.String}), "label": polars.Int64}
    polars.DataFrame({"image": rows, "label": labels.tolist()}, schema=schema).write_parquet(file)
    return file.getvalue()
