// Recorder: takes in what every stream of a run sees and keeps totals, in constant memory.
//
// What counts where:
//   ttft, tpot, e2e   measured requests that ended with OK, without slow readers and probes
//   itl, stall        every gap of the measured streams, without slow readers and probes; a stall
//                     is also the silence at the end of a stream without Finished
//   SLO               the same, and every failed request as beyond all bounds; what this client
//                     cancelled by itself counts nowhere
//   codes, tokens     every measured request, without probes
//   throughput        what came after the warm-up, whenever it was asked for: tokens by their
//                     arrival, requests by their end; without probes
//   probes            their e2e apart from the rest; their codes in `probe_codes`
//   timeline          everything but probes, warm-up included
//
// Threads     Thread-safe.
// Tested by   tests/clients/stress/recorder_test.cc
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "clients/stress/histogram.h"
#include "clients/stress/request_record.h"
#include "clients/stress/slo.h"
#include "clients/stress/timeline.h"

namespace bst::stress {

// One message with tokens.
struct TokenSample {
  static constexpr float kNoGap = -1;
  double at_seconds = 0;
  float gap_seconds = kNoGap;  // since the stream's last message with tokens; none for the first
  uint32_t tokens = 0;
};

struct ClauseCount {
  SloClause clause;
  uint64_t within = 0, total = 0;
};

// What a run has come to.
struct RunTotals {
  Histogram ttft, tpot, itl, e2e;
  Histogram probe_e2e;
  Histogram send_lag;  // actual minus intended send, of measured requests
  std::vector<ClauseCount> slo;

  uint64_t requests = 0;   // measured, ended
  uint64_t completed = 0;  // with OK
  uint64_t failed = 0;     // neither OK nor cancelled by this client as planned
  uint64_t probes = 0;
  uint64_t prompt_tokens = 0;  // of completed requests
  uint64_t output_tokens = 0;  // of all measured requests
  std::map<grpc::StatusCode, uint64_t> codes, probe_codes;
  std::map<grpc::StatusCode, std::string> first_message;
  std::map<std::string, uint64_t> finish_reasons;

  uint64_t unexpected = 0;  // ended as nobody wanted; probes and warm-up included
  std::string first_unexpected;
  uint64_t retries = 0, refusals = 0, refusals_with_retry_info = 0, refusals_with_pushback = 0;

  // Of the throughput.
  struct Work {
    uint64_t completed = 0, good = 0;  // good: completed and within the SLO
    uint64_t prompt_tokens = 0;        // of completed requests
    uint64_t output_tokens = 0;
  } work;
  double last_end_seconds = 0;  // of a request

  double longest_stall_seconds = 0;
  Timeline timeline;
};

class Recorder {
 public:
  // `expected`: status codes that are fine, besides CANCELLED for what this client cancelled and
  // DEADLINE_EXCEEDED for what it gave a deadline.
  Recorder(const Slo& slo, std::set<grpc::StatusCode> expected, double warmup_seconds = 0);

  // The bound of the SLO's itl clause, or infinity.
  double itl_bound_seconds() const { return itl_bound_seconds_; }

  void AddSend(double seconds);
  // Of one stream. Its latencies count only if `counts`.
  void AddTokens(std::span<const TokenSample> samples, bool counts);
  void AddRequest(const RequestRecord& record);

  RunTotals Totals() const;

  // For the line of progress.
  struct Live {
    uint64_t sent = 0, completed = 0, other = 0, output_tokens = 0;
    double ttft_p50 = 0, ttft_p99 = 0;
  };
  Live live() const;

 private:
  bool IsExpected(const RequestRecord& record) const;
  void AddLatencies(const RequestRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddWork(const RequestRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void JudgeBySlo(const RequestRecord& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::set<grpc::StatusCode> expected_;
  const double warmup_seconds_;
  double itl_bound_seconds_ = std::numeric_limits<double>::infinity();
  mutable absl::Mutex mutex_;
  RunTotals totals_ ABSL_GUARDED_BY(mutex_);
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0, completed_ ABSL_GUARDED_BY(mutex_) = 0,
                 other_ ABSL_GUARDED_BY(mutex_) = 0, tokens_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace bst::stress
