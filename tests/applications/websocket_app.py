"""A WebSocket service and a client of it (the package `websockets`, which goes through `http_proxy` with CONNECT).

serve NAME HOST PORT   answers each message with NAME and the message, until it is ended
call URL [direct]      talks, and prints what came as JSON; `direct`: the proxy is left out, which the package does not do for
                       127.0.0.0/8 in `no_proxy`
plain URL              asks the proxy itself to upgrade, with the whole URL, and prints what comes up to the first message
"""

import json
import os
import signal
import socket
import sys
import urllib.parse

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve as listen

LARGE = 1 << 20


def serve(name, host, port):
    def talk(connection):
        connection.send(f"{name} at {connection.request.path}, {connection.subprotocol}")
        for message in connection:
            if message == "bye":
                connection.close(4001, "told to")
                return
            connection.send(message)

    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with listen(talk, host, int(port), subprotocols=["chat"], max_size=2 * LARGE) as server:
        server.serve_forever()


def call(url, way=None):
    said = {}
    proxy = None if way == "direct" else True
    with connect(url, proxy=proxy, subprotocols=["chat"], max_size=2 * LARGE) as connection:
        said["greeting"] = connection.recv(timeout=20)
        for number in range(100):
            connection.send(str(number))
            assert connection.recv(timeout=20) == str(number), number
        large = bytes(range(256)) * (LARGE // 256)
        connection.send(large)
        said["large"] = connection.recv(timeout=20) == large
        said["pong"] = connection.ping().wait(20)
        connection.send("bye")
        try:
            said["more"] = connection.recv(timeout=20)
        except ConnectionClosed:
            pass
        said["closed"] = [connection.close_code, connection.close_reason]
    print(json.dumps(said))


def plain(url):
    proxy = urllib.parse.urlsplit(os.environ["http_proxy"])
    head = [
        f"GET {url} HTTP/1.1",
        f"Host: {urllib.parse.urlsplit(url).netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: chat",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection((proxy.hostname, proxy.port), timeout=20) as connection:
        connection.sendall("\r\n".join(head + ["", ""]).encode())
        received = b""
        while b"chat" not in received.partition(b"\r\n\r\n")[2]:
            data = connection.recv(65536)
            if not data:
                break
            received += data
    print(received.decode(errors="replace"))


{"serve": serve, "call": call, "plain": plain}[sys.argv[1]](*sys.argv[2:])
