"""Right, wrong, missing and expired credentials: keys, TLS and mutual TLS, on both ports."""

from __future__ import annotations

import datetime
import random
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import grpc

import bst_process
from bst_process import ServerProcess, arguments, run_cli
from raw_calls import Api, Http2, finish

SHORT: dict[str, Any] = {"text": "y", "stopping": {"max_new_tokens": 2, "ignore_eos": True}}
# (port, RPC, request): every RPC that asks for credentials.
RPCS = [("grpc", "Generation/Generate", SHORT), ("grpc", "Generation/GenerateOnce", SHORT),
        ("grpc", "Generation/Score", {"text": "y"}), ("grpc", "Generation/Tokenize", {"text": "y"}),
        ("grpc", "Generation/Detokenize", {}), ("grpc", "Generation/GetModelInfo", {}),
        ("control", "Control/GetServerInfo", {}), ("control", "Control/GetLoad", {}),
        ("control", "Control/Abort", {"request_id": "nobody"})]


class Authority:
    """A certificate authority in a folder, by the openssl program."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.key, self.cert = folder / f"{name}.key", folder / f"{name}.pem"
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key,
                  "-out", self.cert, "-days", "2", "-subj", f"/CN={name}")
        (folder / f"{name}.index").touch()
        (folder / f"{name}.serial").write_text("01\n")
        self.config = folder / f"{name}.cnf"
        self.config.write_text(
            f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/{name}.index\nserial={folder}/{name}.serial\n"
            f"new_certs_dir={folder}\ndefault_md=sha256\npolicy=any\ncopy_extensions=copy\nunique_subject=no\n"
            "[any]\ncommonName=supplied\n")

    @staticmethod
    def _run(*command: object) -> None:
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)

    def sign(self, name: str, host: str = "localhost", first_day: int = -1, last_day: int = 1) -> tuple[str, str]:
        """The paths of a key and a certificate for `host`, valid between these days from now."""
        key, request, cert = (self.folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out",
                  request, "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
        now = datetime.datetime.now(datetime.timezone.utc)
        start, end = ((now + datetime.timedelta(days=day)).strftime("%Y%m%d%H%M%SZ") for day in (first_day, last_day))
        self._run("ca", "-batch", "-config", self.config, "-cert", self.cert, "-keyfile", self.key, "-in", request,
                  "-out", cert, "-startdate", start, "-enddate", end, "-notext")
        return str(key), str(cert)


class CredentialsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def server(self, *flags: str) -> ServerProcess:
        return self.enterContext(ServerProcess("--control_listen=127.0.0.1:0", *flags))

    def code(self, api: Api, rpc: str, request: dict[str, Any], metadata: Any = None) -> tuple[str, str]:
        """The status of a call and its message."""
        try:
            call = api.call(rpc, request, timeout=20, metadata=metadata)
            if isinstance(call, grpc.Call):
                _, name = finish(call)
                return name, call.details()
            return "OK", ""
        except grpc.RpcError as error:
            return error.code().name, error.details()


class KeysTest(CredentialsTest):
    def test_every_rpc_with_every_kind_of_key(self) -> None:
        def date(days: int) -> str:
            moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
            return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

        keys = self.folder / "keys"
        keys.write_text(f"first-key\nsecond-key expires={date(1)}\nbygone-key expires={date(-1)}\n")
        server = self.server(f"--auth_token_file={keys}")
        apis = {name: self.enterContext(Api(server.addresses[name])) for name in ("grpc", "control")}
        shown = {"Bearer first-key": "", "Bearer second-key": "", "bearer first-key": "",
                 "Bearer bygone-key": "UNAUTHENTICATED", "Bearer third-key": "PERMISSION_DENIED",
                 "Bearer first-key2": "PERMISSION_DENIED", "Bearer first-ke": "PERMISSION_DENIED",
                 "Bearer ": "UNAUTHENTICATED", "Basic first-key": "UNAUTHENTICATED", "first-key": "UNAUTHENTICATED",
                 "": "UNAUTHENTICATED"}
        for port, rpc, request in RPCS:
            for authorization, refusal in shown.items():
                metadata = [("authorization", authorization)] if authorization else None
                code, message = self.code(apis[port], rpc, request, metadata)
                with self.subTest(rpc=rpc, authorization=authorization):
                    if refusal:
                        self.assertEqual(code, refusal)
                        for key in ("first-key", "bygone-key", "third-key"):
                            self.assertNotIn(key, message)
                    else:
                        self.assertEqual(code, "NOT_FOUND" if rpc == "Control/Abort" else "OK")
        drain = apis["control"].call("Control/Drain", {})
        self.assertEqual(finish(drain)[1], "UNAUTHENTICATED")
        self.assertEqual([api.health() for api in apis.values()], ["SERVING", "SERVING"])  # open, and not drained
        server.terminate()
        log = "\n".join(server.lines)
        for key in ("first-key", "second-key", "bygone-key", "third-key"):
            self.assertNotIn(key, log)

    def test_a_key_that_expires_while_the_server_runs(self) -> None:
        keys = self.folder / "keys"
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=4)
        keys.write_text(f"brief expires={end.isoformat()}\n")
        api = self.enterContext(Api(self.server(f"--auth_token_file={keys}").grpc))
        metadata = [("authorization", "Bearer brief")]
        codes = []
        while (now := datetime.datetime.now(datetime.timezone.utc)) < end + datetime.timedelta(milliseconds=200):
            code, _ = self.code(api, "Generation/GetModelInfo", {}, metadata)
            if datetime.datetime.now(datetime.timezone.utc) < end or now > end:  # not one that was in between
                codes.append((now < end, code))
        self.assertEqual(set(codes), {(True, "OK"), (False, "UNAUTHENTICATED")})

    def test_a_bad_key_file_is_an_error_at_start(self) -> None:
        keys = self.folder / "keys"
        for text in ("", "\n\n", "hidden expires=never\n", "hidden words\n"):
            keys.write_text(text)
            result = subprocess.run(
                [arguments.server, f"--model={arguments.model}", "--listen=127.0.0.1:0", "--metrics_listen=",
                 f"--auth_token_file={keys}"], capture_output=True, text=True, timeout=60)
            self.assertEqual(result.returncode, 1, text)
            self.assertIn(str(keys), result.stderr)
            self.assertNotIn("hidden", result.stderr)


class TlsTest(CredentialsTest):
    def setUp(self) -> None:
        super().setUp()
        self.servers, self.clients, self.strangers = (
            Authority(self.folder, name) for name in ("servers-ca", "clients-ca", "strangers-ca"))
        self.server_key, self.server_cert = self.servers.sign("server")

    def tls_code(self, server: ServerProcess, ca: str | None, key: str | None = None, cert: str | None = None,
                 name: str = "localhost") -> set[str]:
        """The codes of a call on each port."""
        def read(path: str | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        codes = set()
        for port, rpc in (("grpc", "Generation/GetModelInfo"), ("control", "Control/GetLoad")):
            credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
            with Api(server.addresses[port], credentials, (("grpc.ssl_target_name_override", name),)) as api:
                codes.add(self.code(api, rpc, {})[0])
        return codes

    def test_the_servers_certificate(self) -> None:
        server = self.server(f"--tls_key={self.server_key}", f"--tls_cert={self.server_cert}")
        ca = str(self.servers.cert)
        self.assertEqual(self.tls_code(server, ca), {"OK"})
        self.assertEqual(self.tls_code(server, str(self.strangers.cert)), {"UNAVAILABLE"})
        self.assertEqual(self.tls_code(server, ca, name="example.org"), {"UNAVAILABLE"})
        with Api(server.grpc) as plain:
            self.assertEqual(self.code(plain, "Generation/GetModelInfo", {})[0], "UNAVAILABLE")
        self.assertEqual(self.tls_code(server, ca), {"OK"})

    def test_an_expired_or_future_server_is_not_trusted(self) -> None:
        for name, first_day, last_day in (("bygone", -10, -1), ("future", 1, 2)):
            key, cert = self.servers.sign(name, first_day=first_day, last_day=last_day)
            server = self.server(f"--tls_key={key}", f"--tls_cert={cert}")
            self.assertEqual(self.tls_code(server, str(self.servers.cert)), {"UNAVAILABLE"}, name)

    def test_clients_certificates(self) -> None:
        server = self.server(f"--tls_key={self.server_key}", f"--tls_cert={self.server_cert}",
                             f"--tls_client_ca={self.clients.cert}")
        ca = str(self.servers.cert)
        good = self.clients.sign("client", "client")
        refused = {"no certificate": (None, None), "of another authority": self.strangers.sign("stranger", "client"),
                   "expired": self.clients.sign("late", "client", -10, -1),
                   "not valid yet": self.clients.sign("early", "client", 1, 2),
                   "the server's own": (self.server_key, self.server_cert)}
        self.assertEqual(self.tls_code(server, ca, *good), {"OK"})
        for name, (key, cert) in refused.items():
            self.assertEqual(self.tls_code(server, ca, key, cert), {"UNAVAILABLE"}, name)
        self.assertEqual(self.tls_code(server, ca, *good), {"OK"})
        cli = run_cli(server, "info", "--tls-ca", ca, "--tls-server-name", "localhost", "--tls-key", good[0],
                      "--tls-cert", good[1])
        self.assertEqual(cli.returncode, 0, cli.stderr)
        late = refused["expired"]
        cli = run_cli(server, "info", "--tls-ca", ca, "--tls-server-name", "localhost", "--tls-key", late[0],
                      "--tls-cert", late[1])
        self.assertEqual(cli.returncode, 1)

    def test_a_certificate_does_not_replace_a_key(self) -> None:
        keys = self.folder / "keys"
        keys.write_text("key\n")
        server = self.server(f"--tls_key={self.server_key}", f"--tls_cert={self.server_cert}",
                             f"--tls_client_ca={self.clients.cert}", f"--auth_token_file={keys}")
        good = self.clients.sign("client", "client")
        self.assertEqual(self.tls_code(server, str(self.servers.cert), *good), {"UNAUTHENTICATED"})
        keys.with_name("mine").write_text("key\n")
        flags = ("info", "--tls-ca", str(self.servers.cert), "--tls-server-name", "localhost", "--tls-key", good[0],
                 "--tls-cert", good[1])
        self.assertEqual(run_cli(server, *flags, "--token-file", str(keys.with_name("mine"))).returncode, 0)

    def test_noise_instead_of_a_handshake(self) -> None:
        server = self.server(f"--tls_key={self.server_key}", f"--tls_cert={self.server_cert}",
                             f"--tls_client_ca={self.clients.cert}")
        own = random.Random(3)
        hello = bytes.fromhex("16030100f8010000f40303")  # the beginning of a ClientHello
        for i in range(300):
            with Http2(server.addresses[("grpc", "control")[i % 2]]) as client:
                client.send((hello if i % 3 else b"") + own.randbytes(own.choice((1, 20, 400, 20_000))))
        self.assertEqual(self.tls_code(server, str(self.servers.cert), *self.clients.sign("client", "client")), {"OK"})
        deadline = time.monotonic() + 60
        while server.open_files > 40:
            self.assertLess(time.monotonic(), deadline, f"{server.open_files} files are open")
            time.sleep(0.05)

    def test_files_that_do_not_fit_are_errors_at_start(self) -> None:
        other_key, _ = self.servers.sign("other")
        garbage = self.folder / "garbage"
        garbage.write_text("-----BEGIN CERTIFICATE-----\nnot\n-----END CERTIFICATE-----\n")
        for key, cert in ((other_key, self.server_cert), (self.server_key, str(garbage)),
                          (str(self.folder / "missing"), self.server_cert)):
            result = subprocess.run(
                [arguments.server, f"--model={arguments.model}", "--listen=127.0.0.1:0", "--metrics_listen=",
                 f"--tls_key={key}", f"--tls_cert={cert}"], capture_output=True, text=True, timeout=60)
            self.assertEqual(result.returncode, 1, (key, cert, result.stderr))
            self.assertRegex(result.stderr, "--tls_key, --tls_cert or --tls_client_ca are no PEM|missing: No such file")


if __name__ == "__main__":
    bst_process.main()
