"""python -m bst_client "prompt": streams the continuation of a text to stdout."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from typing import TextIO

from . import BstError, Client, Finished, GenerateOptions, Tls, Tokens


class _OutputError(Exception):
    """Its cause, an OSError, kept apart from those of files that the flags name."""


def _write(text: str, stream: TextIO) -> None:
    try:
        print(text, end="", file=stream, flush=True)
    except OSError as error:
        # What is left in the buffer would fail again when Python flushes it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise _OutputError from error


def main() -> int:
    """0: success; 1: the request failed, or its output could not be written; 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m bst_client",
                                     description="Continues a text with a bst-server and streams it to stdout.",
                                     epilog="What is not given is left to the server. Ctrl-C cancels the request.")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--server", default="127.0.0.1:50051", help="HOST:PORT, or a name that gRPC resolves (%(default)s)")
    parser.add_argument("--timeout", type=float, help="seconds after which the call is given up")
    parser.add_argument("--token-file", help="file whose first line is the key to show to the server")
    parser.add_argument("--tls", action="store_true", help="use TLS")
    parser.add_argument("--tls-ca", help="PEM file with the authorities to trust; implies --tls")
    parser.add_argument("--tls-cert", help="PEM file with this client's certificate; implies --tls")
    parser.add_argument("--tls-key", help="PEM file with the key of --tls-cert; they go together")
    parser.add_argument("--tls-server-name", help="name to expect in the server's certificate; implies --tls")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--seed", type=int, help="same request, same seed: same text")
    parser.add_argument("--stop", action="append", help="stop before this text; may be repeated")
    arguments = parser.parse_args()

    options: GenerateOptions = {
        "max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature, "top_k": arguments.top_k,
        "top_p": arguments.top_p, "min_p": arguments.min_p, "seed": arguments.seed, "stop_strings": arguments.stop,
    }
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        tls = None
        parts = arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_server_name
        if arguments.tls or any(part is not None for part in parts):  # "" is a variable not set: no reason for plaintext
            tls = Tls(*parts)
        client = Client(arguments.server, tls=tls, token_file=arguments.token_file, timeout=arguments.timeout)
        with client, client.stream(arguments.prompt, **options) as events:
            for event in events:
                if isinstance(event, Tokens):
                    _write(event.text, sys.stdout)
                elif isinstance(event, Finished):
                    if sys.stdout.isatty():
                        _write("\n", sys.stdout)
                    speed = event.timings.tokens_per_second
                    rate = f"{speed:.3g} tokens/s, " if 0 < speed < 100 else f"{speed:.0f} tokens/s, " if speed else ""
                    _write(f"[{event.usage.generated_tokens} tokens (prompt {event.usage.prompt_tokens}), first after "
                           f"{event.timings.time_to_first_token_seconds:.3g} s, "
                           f"{rate}{event.reason.name}]\n", sys.stderr)
    except BstError as error:
        print(f"bst_client: {error}", file=sys.stderr)
        if error.retry_delay is not None:
            print(f"Try again in {error.retry_delay:g} s.", file=sys.stderr)
        return 1
    except _OutputError as error:
        if not isinstance(error.__cause__, BrokenPipeError):  # who read has seen enough, as `head` does
            print(f"bst_client: cannot write: {error.__cause__}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"bst_client: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bst_client: cancelled", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
