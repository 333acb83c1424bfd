"""Every metric of bst-server: name, type, labels, buckets. Dashboards and alerts are built on this table."""

from __future__ import annotations

import re

FIRST_TOKEN = ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
INTER_TOKEN = ".0005 .001 .002 .003 .005 .0075 .01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 10"
REQUEST = ".001 .01 .05 .1 .3 .5 1 2.5 5 10 30 60 120 240 480 960 1920 7680"
TOKENS = " ".join(str(step * 10**decade) for decade in range(7) for step in (1, 2, 5))
POWERS = " ".join(str(2**power) for power in range(17))
PHASES = {"phase": {"prefill", "decode", "mixed"}}
STATES = {"state": {"used", "cached", "free"}, "tier": {"device"}}
ANY = None  # values of a label that are not a fixed set

# name -> (type, labels and their values, buckets)
METRICS: dict[str, tuple[str, dict[str, set[str] | None], str]] = {
    "bst_requests_total": ("counter", {"rpc": ANY, "code": ANY, "finish_reason": ANY}, ""),
    "bst_requests_rejected_total": (
        "counter", {"reason": {"queue_requests", "queue_tokens", "too_long", "draining", "invalid"}}, ""),
    "bst_requests_cancelled_total": (
        "counter", {"stage": {"queued", "prefill", "decode"}, "cause": {"client", "deadline", "abort"}}, ""),
    "bst_requests_running": ("gauge", {}, ""),
    "bst_requests_waiting": ("gauge", {}, ""),
    "bst_awaiting_input": ("gauge", {}, ""),
    "bst_draining": ("gauge", {}, ""),
    "bst_engine_healthy": ("gauge", {}, ""),
    "bst_messages_to_read": ("gauge", {}, ""),
    "bst_messages_to_read_bytes": ("gauge", {}, ""),
    "bst_queue_tokens": ("gauge", {}, ""),
    "bst_time_to_first_token_seconds": ("histogram", {}, FIRST_TOKEN),
    "bst_inter_token_latency_seconds": ("histogram", {}, INTER_TOKEN),
    "bst_time_per_output_token_seconds": ("histogram", {}, INTER_TOKEN),
    "bst_request_queue_seconds": ("histogram", {}, REQUEST),
    "bst_request_prefill_seconds": ("histogram", {}, REQUEST),
    "bst_request_decode_seconds": ("histogram", {}, REQUEST),
    "bst_e2e_request_latency_seconds": ("histogram", {}, REQUEST),
    "bst_prompt_tokens_total": ("counter", {}, ""),
    "bst_generation_tokens_total": ("counter", {}, ""),
    "bst_request_prompt_tokens": ("histogram", {}, TOKENS),
    "bst_request_generation_tokens": ("histogram", {}, TOKENS),
    "bst_batch_sequences": ("histogram", PHASES, POWERS),
    "bst_iteration_tokens": ("histogram", PHASES, POWERS),
    "bst_step_seconds": ("histogram", PHASES, INTER_TOKEN),
    "bst_decode_stall_seconds": ("histogram", {}, INTER_TOKEN),
    "bst_state_slots": ("gauge", STATES, ""),
    "bst_state_bytes": ("gauge", STATES, ""),
    "bst_last_step_timestamp_seconds": ("gauge", {}, ""),
    "bst_model_load_seconds": ("gauge", {}, ""),
    "bst_build_info": ("gauge", {"version": ANY}, ""),
    "bst_model_info": ("gauge", {"name": ANY, "backend": ANY, "weights": ANY, "kv": ANY, "parameters": ANY}, ""),
    "process_resident_memory_bytes": ("gauge", {}, ""),
    "process_virtual_memory_bytes": ("gauge", {}, ""),
    "process_cpu_seconds_total": ("counter", {}, ""),
    "process_open_fds": ("gauge", {}, ""),
    "process_max_fds": ("gauge", {}, ""),
    "process_start_time_seconds": ("gauge", {}, ""),
}
# What the HTTP server says about itself.
EXPOSER = {"exposer_request_latencies", "exposer_scrapes_total", "exposer_transferred_bytes_total"}


def check_sample(sample: str) -> None:
    """Raises AssertionError for a sample that the server never writes, `name` or `name{label="value",...}`.

    Without it a mistyped one would count as zero for ever.
    """
    name, _, inside = sample.partition("{")
    family = name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name)
    if family not in METRICS:
        raise AssertionError(f"there is no metric {name}")
    _, values, buckets = METRICS[family]
    # As the server writes them: le comes last.
    labels = dict(sorted(values.items())) | ({"le": {*buckets.split(), "+Inf"}} if name.endswith("_bucket") else {})
    given = dict(re.findall(r'(\w+)="([^"]*)"', inside))
    if list(given) != list(labels):
        raise AssertionError(f"{sample}: the labels of {name} are {list(labels)}, in this order")
    for label, value in given.items():
        if labels[label] is not ANY and value not in labels[label]:
            raise AssertionError(f"{sample}: {label} is never {value}")
