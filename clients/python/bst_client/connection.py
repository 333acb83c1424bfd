"""How a client reaches its server: address, TLS, token, sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence, Union

import grpc

from .retry import Attempts, RetryPolicy

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Tls:
    """PEM files. Tls() trusts the certificate authorities that gRPC brings along."""

    ca_file: PathLike | None = None  # the authorities to trust
    cert_file: PathLike | None = None  # this client's certificate, for mutual TLS
    key_file: PathLike | None = None  # the key of cert_file
    server_name: str | None = None  # the name to expect in the server's certificate

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.server_name == "":
            raise ValueError("server_name is empty")  # gRPC crashes

    def credentials(self) -> grpc.ChannelCredentials:
        def read(path: PathLike | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca_file), read(self.key_file), read(self.cert_file))


class Connection:
    """What Client and AsyncClient share: their arguments."""

    def __init__(self, target: str = "127.0.0.1:50051", *, tls: Tls | None = None, token: str | None = None,
                 token_file: PathLike | None = None, timeout: float | None = None,
                 retry: RetryPolicy | None = None, max_send_message_bytes: int | None = None,
                 max_receive_message_bytes: int | None = None, keepalive_seconds: float | None = 30,
                 channel_options: Sequence[tuple[str, Any]] = ()) -> None:
        """
        target                     HOST:PORT, or another name that gRPC resolves ("dns:///bst-server.bst.svc:50051",
                                   "ipv4:10.0.0.1:50051,10.0.0.2:50051"); calls go round all its addresses
        tls                        None: an unencrypted connection
        token, token_file          the key to show to the server, or the file whose first line it is; the
                                   file is read at every call, so that it can be replaced. Use TLS with it
        timeout                    seconds after which a call ends with DeadlineExceededError, retries
                                   included, where the call does not say; None: never
        retry                      None: a failure is final
        max_send_message_bytes     None: no limit but the server's (model_info().limits.max_message_bytes)
        max_receive_message_bytes  None: no limit (gRPC's own default is 4 MB)
        keepalive_seconds          how often a silent connection is checked; the server permits 10 s and more
        channel_options            further gRPC channel arguments, as ("grpc.http_proxy", "...")

        Raises ValueError for what cannot be, OSError when a file cannot be read.
        """
        if token is not None and token_file is not None:
            raise ValueError("token or token_file, not both")
        self.target = target
        self.timeout = timeout
        self.retry = retry
        self._token = token
        self._token_file = token_file
        self._options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", -1 if max_send_message_bytes is None else max_send_message_bytes),
            ("grpc.max_receive_message_length",
             -1 if max_receive_message_bytes is None else max_receive_message_bytes),
            # By default gRPC stays with the first address that answers.
            ("grpc.lb_policy_name", "round_robin"),
            # gRPC's own limit is 120 s, for which calls would go on failing once a server is back.
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if keepalive_seconds is not None:
            self._options += [("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
                              ("grpc.http2.max_pings_without_data", 0)]  # gRPC's own limit is two
        if tls is not None and tls.server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", tls.server_name))
        self._options += channel_options
        self._message_limit: int | None = None  # the server's, once it was asked
        self._credentials = None if tls is None else tls.credentials()
        self._metadata()  # what is no token fails here, not at the first call
        self._connect()

    def _connect(self) -> None:
        """Called once all arguments are known and right."""

    def _open(self, module: Any) -> Any:
        """A channel of `module`: grpc or grpc.aio."""
        if self._credentials is None:
            return module.insecure_channel(self.target, options=self._options)
        return module.secure_channel(self.target, self._credentials, options=self._options)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call. Raises OSError or ValueError when there is no token in token_file."""
        token = self._token
        if self._token_file is not None:
            token = Path(self._token_file).read_text().partition("\n")[0].strip()
        if token is None:
            return ()
        if not (token.isascii() and token.isprintable() and token.strip()):
            raise ValueError(f"no token in the first line of {self._token_file}" if self._token_file is not None
                             else "token is empty or has characters that no header can have")
        return (("authorization", f"Bearer {token}"),)

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self.retry, self.timeout if timeout is None else timeout)
