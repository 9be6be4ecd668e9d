"""A small S3 server that can fall silent: it takes requests then, and answers none."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class S3Server:
    """Serves the files of a folder as the objects of the bucket ``test``."""

    def __init__(self, folder: Path | None = None) -> None:
        self.objects = {} if folder is None else {f.name: f.read_bytes() for f in folder.iterdir()}
        self.speaks = threading.Event()
        self.speaks.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        """What leads a client here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def close(self) -> None:
        self.speaks.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        objects, speaks = self.objects, self.speaks

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                speaks.wait()
                parts = urlsplit(self.path)
                query = parse_qs(parts.query)
                name = unquote(parts.path).removeprefix("/test").strip("/")
                if "list-type" in query:
                    prefix = query.get("prefix", [""])[0]
                    self._answer(
                        200, _listing(objects, prefix), {"Content-Type": "application/xml"}
                    )
                elif name in objects:
                    self._object(objects[name])
                else:
                    self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})

            do_HEAD = do_GET

            def _object(self, data: bytes) -> None:
                headers = {"ETag": f'"{len(data):x}"', "Last-Modified": _DATE}
                span = self.headers.get("Range")
                if span is None:
                    self._answer(200, data, headers)
                    return
                first, last = span.removeprefix("bytes=").split("-")
                start = int(first) if first else len(data) - int(last)
                end = min(int(last) + 1, len(data)) if first and last else len(data)
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
                self._answer(206, data[start:end], headers)

            def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


_DATE = "Wed, 01 Jan 2025 00:00:00 GMT"


def _listing(objects: dict[str, bytes], prefix: str) -> bytes:
    entries = "".join(
        f"<Contents><Key>{escape(name)}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{len(data):x}&quot;</ETag><Size>{len(data)}</Size></Contents>"
        for name, data in sorted(objects.items())
        if name.startswith(prefix)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>test</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>{entries}"
        "</ListBucketResult>"
    ).encode()
