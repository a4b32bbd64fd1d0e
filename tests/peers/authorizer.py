"""An external authorizer that is asked by gRPC, for the peers suite: ADDRESS FOLDER, with the messages of the .proto files under
FOLDER. The request's x-verdict says what it answers.
"""

import concurrent.futures
import os
import pathlib
import sys
import tempfile
import threading

import grpc

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


def serve(address, folder):
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


serve(sys.argv[1], sys.argv[2])
