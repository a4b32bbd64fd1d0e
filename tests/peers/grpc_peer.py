"""A gRPC server and client for the peers suite; messages are plain bytes, so no generated code is needed.

serve NAME ADDRESS        answers each call with NAME
call TARGET COUNT         makes COUNT calls and prints {"NAME": how often, ..., "errors": [...]} as JSON
"""

import collections
import concurrent.futures
import json
import sys

import grpc

METHOD = "/osier.test.Echo/Call"


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()

    def service(self, details):
        if details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.name)


def serve(name, address):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4), handlers=[Echo(name)])
    if server.add_insecure_port(address) == 0:
        sys.exit(f"cannot listen on {address}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def call(target, count):
    answers, errors = collections.Counter(), []
    with grpc.insecure_channel(target) as channel:
        stub = channel.unary_unary(METHOD)
        for _ in range(count):
            try:
                answers[stub(b"", timeout=20, wait_for_ready=True).decode()] += 1
            except grpc.RpcError as error:
                errors.append(f"{error.code()}: {error.details()}")
    print(json.dumps({"answers": answers, "errors": errors}))


if sys.argv[1] == "serve":
    serve(sys.argv[2], sys.argv[3])
else:
    call(sys.argv[2], int(sys.argv[3]))
