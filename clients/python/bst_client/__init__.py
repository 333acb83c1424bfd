"""Client of bst, an inference server for Block-State Transformers.

    from bst_client import Client, Tokens

    with Client("127.0.0.1:50051") as client:
        for event in client.stream("Once upon a time", max_new_tokens=100, temperature=0.8):
            if isinstance(event, Tokens):
                print(event.text, end="", flush=True)

AsyncClient is the same for asyncio. Failures are subclasses of BstError.
"""

from .aio import AsyncClient, AsyncEventStream
from .client import Client, EventStream
from .connection import Tls
from .errors import (AlreadyExistsError, BstError, CancelledError, DeadlineExceededError, FieldViolation,
                     InternalError, InvalidArgumentError, MessageTooLargeError, NotFoundError,
                     PermissionDeniedError, ResourceExhaustedError, UnauthenticatedError, UnavailableError,
                     UnimplementedError)
from .options import GenerateOptions, OutputOptions, Prompt, SamplingOptions, StoppingOptions
from .retry import RetryPolicy
from .types import (Accepted, Continuation, Finished, FinishReason, GenerateEvent, GenerateResult, HealthStatus,
                    Limits, ModelInfo, PrefillProgress, Priority, ScoreResult, SequenceFinished, Timings,
                    TokenLogprob, Tokens, TopToken, Usage)

__all__ = [
    "Accepted", "AlreadyExistsError", "AsyncClient", "AsyncEventStream", "BstError", "CancelledError", "Client",
    "Continuation", "DeadlineExceededError", "EventStream", "FieldViolation", "FinishReason", "Finished", "GenerateEvent",
    "GenerateOptions", "GenerateResult", "HealthStatus", "InternalError", "InvalidArgumentError", "Limits",
    "MessageTooLargeError", "ModelInfo", "NotFoundError", "OutputOptions", "PermissionDeniedError",
    "PrefillProgress", "Priority", "Prompt", "ResourceExhaustedError", "RetryPolicy", "SamplingOptions", "ScoreResult",
    "SequenceFinished", "StoppingOptions", "Timings", "Tls", "TokenLogprob", "Tokens", "TopToken", "UnauthenticatedError",
    "UnavailableError", "UnimplementedError", "Usage",
]
