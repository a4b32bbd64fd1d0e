"""A TCP service that answers when its client has said everything, and a client of it.

serve NAME HOST PORT   reads to the end of what the client sends, then answers with its size and closes, until it is ended
call HOST PORT         sends a lot, ends its side, and prints what comes until the other side ends
first HOST PORT        reads to the end of what the server sends first, and only then sends
"""

import os
import signal
import socket
import socketserver
import sys

LARGE = 4 << 20


class Count(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"go on\n")
        first = self.request.recv(1)
        if not first:
            return
        if first == b"!":
            # Our side ends first; the other one goes on.
            self.request.shutdown(socket.SHUT_WR)
        size = len(first)
        while data := self.request.recv(65536):
            size += len(data)
        if first == b"!":
            with open("counted", "w") as file:
                file.write(f"{size}\n")
        else:
            self.request.sendall(b"x" * LARGE + f"\n{size}\n".encode())


def serve(name, host, port):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer((host, int(port)), Count).serve_forever()


def read_to_end(connection):
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def call(host, port):
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"a" * LARGE)
        connection.shutdown(socket.SHUT_WR)
        greeting, body, size, end = read_to_end(connection).split(b"\n")
        print(greeting.decode(), body == b"x" * LARGE, size.decode(), end.decode())


def first(host, port):
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"!")
        print(read_to_end(connection).decode(), end="")
        connection.sendall(b"a" * LARGE)


{"serve": serve, "call": call, "first": first}[sys.argv[1]](*sys.argv[2:])
