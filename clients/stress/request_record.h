// RequestRecord: what became of one request. Seconds count from the start of the run; latencies
// count from the intended send.
//
// Threads     A value.
// Tested by   tests/clients/stress/recorder_test.cc
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bst/v1/generation.pb.h"

namespace bst::stress {

struct RequestRecord {
  uint64_t index = 0;
  std::string request_id;   // as the server accepted it; empty: it did not
  bool is_measured = true;  // false: sent during the warm-up
  bool is_probe = false;
  bool is_slow_reader = false;  // its own pace is in its latencies
  bool has_deadline = false;
  bool was_cancelled = false;  // by this client, as planned
  bool was_cut = false;        // by this client, because the run was over

  double intended_seconds = 0, sent_seconds = 0, end_seconds = 0;  // sent: the first attempt
  std::optional<double> ttft_seconds;                              // unset: no token came
  std::optional<double> tpot_seconds;  // unset: fewer than two tokens, or all in one message
  double e2e_seconds = 0;
  double longest_gap_seconds = 0;  // between two messages with tokens
  // From the last message, or the send, to the end of a stream without Finished.
  double silence_seconds = 0;
  uint32_t gaps = 0;
  uint32_t slow_gaps = 0;  // beyond the SLO's bound for itl

  uint64_t prompt_tokens = 0, output_tokens = 0;
  grpc::StatusCode code = grpc::StatusCode::OK;
  std::string message;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  // What was wrong with a stream that ended with OK, or that was cut; empty: nothing.
  std::string defect;

  // Of the last attempt.
  bool has_retry_info = false;
  std::optional<int64_t> pushback_ms;  // grpc-retry-pushback-ms
  double retry_delay_seconds = 0;      // of RetryInfo
  // Over all attempts.
  uint32_t retries = 0;
  uint32_t refusals = 0;  // attempts that ended with RESOURCE_EXHAUSTED
  uint32_t refusals_with_retry_info = 0, refusals_with_pushback = 0;

  // The output, where it was to be kept.
  std::vector<uint32_t> token_ids, logprob_bits;
};

}  // namespace bst::stress
