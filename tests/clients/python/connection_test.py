"""What goes with every call, and arguments that cannot be."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from unittest import mock

import grpc
from bst_client import Client, Tls
from fake_server import FakeServer, whole


class ConnectionTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_token(self) -> None:
        with FakeServer(whole(), whole()) as server:
            with Client(server.target, token="alpha") as client:
                client.generate("x")
            with Client(server.target) as client:
                client.generate("x")
            self.assertEqual([metadata.get("authorization") for metadata in server.metadata], ["Bearer alpha", None])

    def test_token_file_is_read_at_every_call(self) -> None:
        path = self.folder / "token"
        path.write_text("first\nsecond line\n")
        with FakeServer(whole(), whole()) as server, Client(server.target, token_file=path) as client:
            client.generate("x")
            path.write_text("rotated\r\n")
            client.generate("x")
            self.assertEqual([metadata["authorization"] for metadata in server.metadata],
                             ["Bearer first", "Bearer rotated"])

    def test_a_server_that_is_back_is_found_soon(self) -> None:
        name = "grpc.max_reconnect_backoff_ms"
        for further, expected in ([], 2000), ([(name, 9000)], 9000):
            with mock.patch("grpc.insecure_channel", wraps=grpc.insecure_channel) as opened:
                Client("127.0.0.1:1", channel_options=further).close()
            self.assertEqual(dict(opened.call_args.kwargs["options"]).get(name), expected)  # the last one counts

    def test_what_cannot_be(self) -> None:
        empty = self.folder / "empty"
        empty.write_text("\n")
        for arguments, error in (({"token": "a", "token_file": "b"}, ValueError), ({"token": ""}, ValueError),
                                 ({"token": "a\nb"}, ValueError), ({"token": "schlüssel"}, ValueError),
                                 ({"token_file": empty}, ValueError), ({"token_file": "/nonexistent"}, OSError),
                                 ({"tls": Tls("/nonexistent")}, OSError)):
            with self.subTest(arguments), self.assertRaises(error):
                Client("127.0.0.1:1", **arguments)
        for arguments in ({"cert_file": "c"}, {"key_file": "k"}, {"server_name": ""}):
            with self.subTest(arguments), self.assertRaises(ValueError):
                Tls(**arguments)


if __name__ == "__main__":
    unittest.main()
