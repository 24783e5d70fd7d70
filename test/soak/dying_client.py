"""A client that gets killed: streams each request on its own socket, says `flowing` when the first one flows.

Reads one JSON body a line from its input. Plain sockets and the standard library, so that it starts at once.
"""

from __future__ import annotations

import select
import socket
import sys
from urllib.parse import urlsplit


def send(base_url: str, body: bytes) -> socket.socket:
    """Open a connection and ask."""
    where = urlsplit(base_url)
    assert where.hostname is not None and where.port is not None
    connection = socket.create_connection((where.hostname, where.port))
    head = f"POST /generate HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def main() -> None:
    """Read until the end, which comes from outside."""
    streams = [send(sys.argv[1], line.strip()) for line in sys.stdin.buffer]
    first, is_flowing = streams[0], False
    while streams:
        for each in select.select(streams, [], [])[0]:
            got = each.recv(1 << 16)
            if not got:
                streams.remove(each)
            if each is first and not is_flowing and b"data: {" in got:
                is_flowing = True
                print("flowing", flush=True)


if __name__ == "__main__":
    main()
