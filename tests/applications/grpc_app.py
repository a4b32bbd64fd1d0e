"""A gRPC service with all four kinds of calls, and a client of it; messages are plain bytes, so no generated code is needed.

serve NAME ADDRESS     serves, until it is ended
call TARGET [OPTION]   makes every kind of call and prints what came as JSON; OPTION is a default authority
"""

import collections
import concurrent.futures
import json
import os
import signal
import sys
import threading
import time

import grpc

SERVICE = "/osier.test.Talk/"
LIMIT = 20
LARGE = 3 << 20


class Talk(grpc.GenericRpcHandler):
    """The service."""

    def __init__(self, name):
        self.name = name.encode()
        self.cancelled = threading.Semaphore(0)
        self.methods = {
            SERVICE + "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            SERVICE + "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            SERVICE + "Sleep": grpc.unary_unary_rpc_method_handler(self.sleep),
            SERVICE + "Cancelled": grpc.unary_unary_rpc_method_handler(self.was_cancelled),
            SERVICE + "Count": grpc.unary_stream_rpc_method_handler(self.count),
            SERVICE + "Forever": grpc.unary_stream_rpc_method_handler(self.forever),
            SERVICE + "Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            SERVICE + "Echo": grpc.stream_stream_rpc_method_handler(self.echo),
        }

    def service(self, details):
        return self.methods.get(details.method)

    def unary(self, request, context):
        sent = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-initial", sent.get("x-text", "")),))
        context.set_trailing_metadata((("x-trailing-bin", sent.get("x-value-bin", b"")),))
        return self.name + b" " + request

    def fail(self, request, context):
        context.set_trailing_metadata((("x-reason", "so it is"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "nichts für dich: 100 %")

    def sleep(self, request, context):
        context.add_callback(self.cancelled.release)
        time.sleep(float(request))
        return b"slept"

    def was_cancelled(self, request, context):
        """Waits until so many calls have ended before their time."""
        return str(all(self.cancelled.acquire(timeout=LIMIT) for _ in range(int(request)))).encode()

    def count(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def forever(self, request, context):
        context.add_callback(self.cancelled.release)
        while context.is_active():
            yield b"more"
            time.sleep(0.01)

    def sum(self, requests, context):
        return str(sum(int(request) for request in requests)).encode()

    def echo(self, requests, context):
        for request in requests:
            yield request


def serve(name, address):
    workers = concurrent.futures.ThreadPoolExecutor(max_workers=16)
    server = grpc.server(workers, handlers=[Talk(name)], options=[("grpc.max_receive_message_length", 2 * LARGE)])
    if server.add_insecure_port(address) == 0:
        sys.exit(f"cannot listen on {address}")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.start()
    server.wait_for_termination()


def echo_one_by_one(channel, count):
    """Each message is sent only after the answer to the one before has come: both directions are open at once."""
    turn, answers = threading.Semaphore(1), []

    def messages():
        for number in range(count):
            if not turn.acquire(timeout=LIMIT):
                return
            yield str(number).encode()

    for answer in channel.stream_stream(SERVICE + "Echo")(messages(), timeout=LIMIT):
        answers.append(int(answer))
        turn.release()
    return answers == list(range(count))


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    return None


def call(target, authority=None):
    options = [("grpc.max_receive_message_length", 2 * LARGE), ("grpc.max_send_message_length", 2 * LARGE)]
    if authority:
        options.append(("grpc.default_authority", authority))
    said = {}
    with grpc.insecure_channel(target, options=options) as channel:
        unary = channel.unary_unary(SERVICE + "Unary")

        def ask(request):
            return unary(request, timeout=LIMIT, wait_for_ready=True)

        names = collections.Counter(ask(b"hello").decode() for _ in range(100))
        said["unary"] = names

        sent = (("x-text", "text"), ("x-value-bin", bytes(range(256))))
        answer, done = unary.with_call(b"", timeout=LIMIT, metadata=sent)
        said["initial"] = dict(done.initial_metadata()).get("x-initial")
        said["trailing"] = list(dict(done.trailing_metadata()).get("x-trailing-bin", b"")) == list(range(256))
        large = bytes(range(256)) * (LARGE // 256)
        said["large"] = ask(large).split(b" ", 1)[1] == large

        counted = channel.unary_stream(SERVICE + "Count")(b"1000", timeout=LIMIT)
        said["server_stream"] = [int(number) for number in counted] == list(range(1000))
        numbers = (str(number).encode() for number in range(1000))
        said["client_stream"] = channel.stream_unary(SERVICE + "Sum")(numbers, timeout=LIMIT).decode()
        said["bidirectional"] = echo_one_by_one(channel, 200)

        error = failure(lambda: channel.unary_unary(SERVICE + "Fail")(b"", timeout=LIMIT))
        said["failure"] = [error.code().name, error.details(), dict(error.trailing_metadata()).get("x-reason")]
        error = failure(lambda: channel.unary_unary(SERVICE + "Nothing")(b"", timeout=LIMIT))
        said["unknown"] = error.code().name

        begun = time.monotonic()
        error = failure(lambda: channel.unary_unary(SERVICE + "Sleep")(b"5", timeout=0.3))
        took = time.monotonic() - begun
        name = error.code().name
        if name != "DEADLINE_EXCEEDED":
            name += f" after {took:.4f} s: {error.details()}"
        said["deadline"] = [name, took < 3]
    print(json.dumps(said))


def cancel(target):
    """Breaks a stream off, and asks the server whether it has seen that. For one server behind the name."""
    with grpc.insecure_channel(target) as channel:
        stream = channel.unary_stream(SERVICE + "Forever")(b"", timeout=LIMIT, wait_for_ready=True)
        received = [next(stream) for _ in range(10)]
        stream.cancel()
        seen = channel.unary_unary(SERVICE + "Cancelled")(b"1", timeout=LIMIT)
        print(json.dumps({"received": len(received), "seen": seen.decode()}))


{"serve": serve, "call": call, "cancel": cancel}[sys.argv[1]](*sys.argv[2:])
