"""A collector of OpenTelemetry spans on loopback: OTLP over HTTP, kept in memory."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sglang_layered_lab.serving import HOST


@dataclass
class Collector:
    """Where to send spans, and those that came."""

    url: str
    spans: list[Any] = field(default_factory=list)

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--enable-trace", "--otlp-traces-endpoint", self.url)

    def named(self, name: str) -> list[Any]:
        return [span for span in list(self.spans) if span.name == name]


def attributes(span: Any) -> dict[str, int]:
    return {attribute.key: attribute.value.int_value for attribute in span.attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    made.spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    made = Collector(f"http://{HOST}:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
