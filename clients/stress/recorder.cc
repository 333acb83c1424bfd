#include "clients/stress/recorder.h"

#include <algorithm>
#include <utility>

#include "clients/common/connection.h"

namespace bst::stress {
namespace {

bool IsOk(const RequestRecord& record) {
  return record.code == grpc::StatusCode::OK && record.defect.empty();
}

bool WasPlannedCancel(const RequestRecord& record) {
  return record.was_cancelled && record.code == grpc::StatusCode::CANCELLED;
}

// Whether the request itself keeps the clause.
bool Keeps(const RequestRecord& record, const SloClause& clause) {
  switch (clause.metric) {
    case Metric::kTtft:
      return record.ttft_seconds.has_value() && *record.ttft_seconds <= clause.bound_seconds;
    case Metric::kTpot:
      return !record.tpot_seconds.has_value() || *record.tpot_seconds <= clause.bound_seconds;
    case Metric::kItl:
      return record.gaps == 0 || Holds(clause, record.gaps - record.slow_gaps, record.gaps);
    case Metric::kE2e:
      return record.e2e_seconds <= clause.bound_seconds;
  }
  return false;
}

}  // namespace

Recorder::Recorder(const Slo& slo, std::set<grpc::StatusCode> expected, double warmup_seconds)
    : expected_(std::move(expected)), warmup_seconds_(warmup_seconds) {
  for (const SloClause& clause : slo) {
    totals_.slo.push_back({clause});
    if (clause.metric == Metric::kItl) itl_bound_seconds_ = clause.bound_seconds;
  }
}

void Recorder::AddSend(double seconds) {
  absl::MutexLock lock(&mutex_);
  ++sent_;
  ++totals_.timeline.At(seconds).sent;
}

void Recorder::AddTokens(std::span<const TokenSample> samples, bool counts) {
  absl::MutexLock lock(&mutex_);
  for (const TokenSample& sample : samples) {
    Timeline::Bin& bin = totals_.timeline.At(sample.at_seconds);
    bin.output_tokens += sample.tokens;
    tokens_ += sample.tokens;
    if (sample.at_seconds >= warmup_seconds_) totals_.work.output_tokens += sample.tokens;
    if (sample.gap_seconds == TokenSample::kNoGap) continue;
    bin.itl.Add(sample.gap_seconds);
    if (!counts) continue;
    totals_.itl.Add(sample.gap_seconds);
    totals_.longest_stall_seconds =
        std::max(totals_.longest_stall_seconds, static_cast<double>(sample.gap_seconds));
  }
}

void Recorder::AddRequest(const RequestRecord& record) {
  absl::MutexLock lock(&mutex_);
  if (!IsExpected(record)) {
    if (totals_.unexpected++ == 0) {
      totals_.first_unexpected = (record.is_probe ? "probe " : "request ") +
                                 std::to_string(record.index) + ": " +
                                 client::CodeName(record.code) + ": " +
                                 (record.defect.empty() ? record.message : record.defect);
    }
  }
  if (record.is_probe) {
    ++totals_.probes;
    ++totals_.probe_codes[record.code];
    if (IsOk(record) && record.is_measured) totals_.probe_e2e.Add(record.e2e_seconds);
    return;
  }
  ++(IsOk(record) ? completed_ : other_);
  Timeline::Bin& bin = totals_.timeline.At(record.end_seconds);
  ++bin.ended;
  if (!IsOk(record) && !WasPlannedCancel(record)) ++bin.failed;
  if (IsOk(record) && !record.is_slow_reader && record.ttft_seconds.has_value())
    bin.ttft.Add(*record.ttft_seconds);
  AddWork(record);
  if (!record.is_measured) return;

  ++totals_.requests;
  ++totals_.codes[record.code];
  if (!record.message.empty()) totals_.first_message.try_emplace(record.code, record.message);
  if (record.finish_reason != v1::FINISH_REASON_UNSPECIFIED)
    ++totals_.finish_reasons[v1::FinishReason_Name(record.finish_reason)];
  totals_.output_tokens += record.output_tokens;
  totals_.retries += record.retries;
  totals_.refusals += record.refusals;
  totals_.refusals_with_retry_info += record.refusals_with_retry_info;
  totals_.refusals_with_pushback += record.refusals_with_pushback;
  totals_.send_lag.Add(record.sent_seconds - record.intended_seconds);
  if (IsOk(record)) {
    ++totals_.completed;
    totals_.prompt_tokens += record.prompt_tokens;
  } else if (!WasPlannedCancel(record)) {
    ++totals_.failed;
  }
  if (record.is_slow_reader) return;
  // No message ends the gap of a server that stopped: it is a stall all the same.
  totals_.longest_stall_seconds = std::max(totals_.longest_stall_seconds, record.silence_seconds);
  if (IsOk(record)) AddLatencies(record);
  if (!WasPlannedCancel(record)) JudgeBySlo(record);
}

void Recorder::AddLatencies(const RequestRecord& record) {
  if (record.ttft_seconds.has_value()) totals_.ttft.Add(*record.ttft_seconds);
  if (record.tpot_seconds.has_value()) totals_.tpot.Add(*record.tpot_seconds);
  totals_.e2e.Add(record.e2e_seconds);
}

void Recorder::AddWork(const RequestRecord& record) {
  totals_.last_end_seconds = std::max(totals_.last_end_seconds, record.end_seconds);
  if (!IsOk(record) || record.end_seconds < warmup_seconds_) return;
  ++totals_.work.completed;
  totals_.work.prompt_tokens += record.prompt_tokens;
  const auto keeps = [&record](const ClauseCount& count) { return Keeps(record, count.clause); };
  if (!record.is_slow_reader && std::all_of(totals_.slo.begin(), totals_.slo.end(), keeps))
    ++totals_.work.good;
}

void Recorder::JudgeBySlo(const RequestRecord& record) {
  for (ClauseCount& count : totals_.slo) {
    const SloClause& clause = count.clause;
    if (!IsOk(record)) {
      ++count.total;  // beyond the bound, whatever it is
      continue;
    }
    const bool keeps = Keeps(record, clause);
    // What came in one message has no gaps, and counts once.
    const bool counts_gaps = clause.metric == Metric::kItl && record.gaps > 0;
    count.within += counts_gaps ? record.gaps - record.slow_gaps : keeps ? 1u : 0u;
    count.total += counts_gaps ? record.gaps : 1u;
  }
}

bool Recorder::IsExpected(const RequestRecord& record) const {
  if (!record.defect.empty()) return false;
  if (expected_.count(record.code) > 0) return true;
  if (record.code == grpc::StatusCode::CANCELLED) return record.was_cancelled || record.was_cut;
  return record.code == grpc::StatusCode::DEADLINE_EXCEEDED && record.has_deadline;
}

RunTotals Recorder::Totals() const {
  absl::MutexLock lock(&mutex_);
  return totals_;
}

Recorder::Live Recorder::live() const {
  absl::MutexLock lock(&mutex_);
  return {
      sent_, completed_, other_, tokens_, totals_.ttft.Percentile(50), totals_.ttft.Percentile(99)};
}

}  // namespace bst::stress
