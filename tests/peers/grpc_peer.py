"""A gRPC server and client for the peers suite; messages are plain bytes, so no generated code is needed.

serve NAME ADDRESS                answers each call with NAME
serve-xds NAME ADDRESS            the same, configured over xDS
call TARGET COUNT [PATIENCE]      makes COUNT calls of at most PATIENCE seconds each, and prints
                                  {"answers": {NAME: how often, ...}, "errors": [...]} as JSON
call-xds TARGET COUNT [PATIENCE]  the same, with credentials that xDS names
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


def channel_to(target, xds):
    if not xds:
        return grpc.insecure_channel(target)
    # Without a transport socket in the cluster these would be plaintext: who is believed has shown a certificate.
    return grpc.secure_channel(target, grpc.xds_channel_credentials(grpc.ssl_channel_credentials()))


def call(target, count, xds, patience):
    answers, errors = collections.Counter(), []
    with channel_to(target, xds) as channel:
        stub = channel.unary_unary(METHOD)
        for _ in range(count):
            try:
                answers[stub(b"", timeout=patience, wait_for_ready=True).decode()] += 1
            except grpc.RpcError as error:
                errors.append(f"{error.code()}: {error.details()}")
    print(json.dumps({"answers": answers, "errors": errors}))


if sys.argv[1] in ("serve", "serve-xds"):
    serve(sys.argv[2], sys.argv[3], sys.argv[1] == "serve-xds")
else:
    call(sys.argv[2], int(sys.argv[3]), sys.argv[1] == "call-xds", int(sys.argv[4]) if len(sys.argv) > 4 else 20)
