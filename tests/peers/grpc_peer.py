"""A gRPC server and client for the peers suite; messages are plain bytes, so no generated code is needed.

serve NAME ADDRESS        answers each call with NAME
serve-xds NAME ADDRESS    the same, configured over xDS
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


def serve(name, address, xds):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=4), handlers=[Echo(name)], xds=xds)
    if xds:
        fallback = grpc.insecure_server_credentials()
        port = server.add_secure_port(address, grpc.xds_server_credentials(fallback))
    else:
        port = server.add_insecure_port(address)
    if port == 0:
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


if sys.argv[1] in ("serve", "serve-xds"):
    serve(sys.argv[2], sys.argv[3], sys.argv[1] == "serve-xds")
else:
    call(sys.argv[2], int(sys.argv[3]))
