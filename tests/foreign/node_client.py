"""grpc-js: node_client.cjs."""

import os

from line_client import LineClient


class GrpcJsClient(LineClient):
    name = "grpc-js"

    @staticmethod
    def make(tools):
        return ["node", tools.here / "node_client.cjs"], os.environ | {"NODE_PATH": str(tools.node_modules)}
