"""A gRPC server and client for the peers suite; messages are plain bytes, so no generated code is needed.

serve NAME ADDRESS                answers each call with NAME
serve-xds NAME ADDRESS            the same, configured over xDS
authorize ADDRESS FOLDER          is an external authorizer, with the messages of the .proto files under FOLDER: x-verdict says what it
                                  answers
call TARGET COUNT [PATIENCE]      makes COUNT calls of at most PATIENCE seconds each, and prints
                                  {"answers": {NAME: how often, ...}, "errors": [...]} as JSON
call-xds TARGET COUNT [PATIENCE]  the same, with credentials that xDS names
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import sys
import tempfile
import threading

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


CHECK = "/envoy.service.auth.v3.Authorization/Check"


class Authorizer(grpc.GenericRpcHandler):
    def __init__(self, messages):
        self.messages = messages

    def service(self, details):
        if details.method != CHECK:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self.check,
            request_deserializer=self.messages.CheckRequest.FromString,
            response_serializer=self.messages.CheckResponse.SerializeToString,
        )

    def check(self, request, context):
        attributes, answer = request.attributes, self.messages.CheckResponse()
        if not attributes.HasField("request"):
            # An opaque connection: what its client is called is all that there is.
            answer.status.code = 0 if attributes.source.address.socket_address.address == "127.0.0.1" else 7
            return answer
        http = attributes.request.http
        verdict = http.headers.get("x-verdict", "")
        if verdict == "fail":
            context.abort(grpc.StatusCode.UNAVAILABLE, "told to")
        if verdict == "die":
            os._exit(1)
        if verdict == "hang":
            # Until the one who asks gives up.
            given_up = threading.Event()
            context.add_callback(given_up.set)
            given_up.wait()
        if verdict == "deny":
            answer.status.code = 7
            answer.denied_response.status.code = 401
            answer.denied_response.body = f"{http.method} {http.path} {len(http.body)}"
            header = answer.denied_response.headers.add().header
            header.key, header.value = "x-denied", "yes"
            return answer
        header = answer.ok_response.headers.add().header
        header.key, header.value = "x-user", "joe"
        answer.ok_response.headers_to_remove.append("x-verdict")
        return answer


def authorize(address, folder):
    from grpc_tools import protoc

    own = pathlib.Path(protoc.__file__).parent / "_proto"
    out = tempfile.mkdtemp()
    files = [str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*.proto")]
    if protoc.main(["", f"-I{folder}", f"-I{own}", f"--python_out={out}", *files]) != 0:
        sys.exit("the .proto files can't be compiled")
    # The package that brings Envoy's binary is called `envoy`, too: a folder that says that it is one comes before it.
    for made in [pathlib.Path(out, "envoy"), *pathlib.Path(out, "envoy").rglob("*/")]:
        (made / "__init__.py").touch()
    sys.path.insert(0, out)
    from envoy.service.auth.v3 import external_auth_pb2 as messages

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8), handlers=[Authorizer(messages)])
    if server.add_insecure_port(address) == 0:
        sys.exit(f"cannot listen on {address}")
    server.start()
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
elif sys.argv[1] == "authorize":
    authorize(sys.argv[2], sys.argv[3])
else:
    call(sys.argv[2], int(sys.argv[3]), sys.argv[1] == "call-xds", int(sys.argv[4]) if len(sys.argv) > 4 else 20)
