#include "clients/stress/stream_call.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <utility>

#include "clients/common/connection.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace bst::stress {
namespace {

// A lock per token would be felt at 20,000 of them a second; a line of progress that lags by this
// much is not.
constexpr size_t kSamplesPerFlush = 64;
constexpr double kFlushSeconds = 0.2;
constexpr size_t kLongestMessage = 300;

}  // namespace

StreamCall::StreamCall(Host& host, std::shared_ptr<const RequestPlan> plan, RequestRecord record,
                       bool keep_output)
    : host_(host), plan_(std::move(plan)), keep_output_(keep_output), record_(std::move(record)) {
  record_.is_slow_reader = plan_->read_delay_seconds > 0;
  record_.has_deadline = plan_->deadline_seconds.has_value();
}

void StreamCall::Start(v1::Generation::Stub& stub, const std::string& key) {
  self_ = shared_from_this();
  client::AddKey(key, context_);
  if (plan_->deadline_seconds.has_value()) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(
                              std::chrono::duration<double>(*plan_->deadline_seconds)));
  }
  const double now = host_.clock().Now();
  last_flush_seconds_ = last_message_seconds_ = now;
  if (record_.retries == 0) record_.sent_seconds = now;
  if (plan_->cancel_after_seconds.has_value()) {
    host_.At(now + *plan_->cancel_after_seconds, [weak = weak_from_this()] {
      if (const auto call = weak.lock()) call->CancelAsPlanned();
    });
  }
  stub.async()->Generate(&context_, &plan_->request, this);
  // A delayed read is started from outside the callbacks, when the stream may be over already.
  if (record_.is_slow_reader) AddHold();
  StartRead(&event_);
  StartCall();
}

void StreamCall::Cut() {
  cut_seconds_ = host_.clock().Now();
  was_cut_ = true;
  context_.TryCancel();
}

void StreamCall::CancelAsPlanned() {
  if (was_cut_) return;  // timers of a run that is over run at once
  was_cancelled_ = true;
  context_.TryCancel();
}

void StreamCall::OnReadDone(bool ok) {
  if (!ok) {
    if (record_.is_slow_reader) RemoveHold();
    return;
  }
  last_message_seconds_ = host_.clock().Now();
  if (has_finished_) record_.defect = "an event after Finished";
  if (event_.has_accepted()) {
    record_.request_id = event_.accepted().request_id();
    record_.prompt_tokens = event_.accepted().prompt_tokens();
  } else if (event_.has_tokens()) {
    TakeTokens(event_.tokens());
  } else if (event_.has_finished()) {
    TakeFinished(event_.finished());
  }
  if (plan_->cancel_after_tokens.has_value() &&
      record_.output_tokens >= *plan_->cancel_after_tokens && !was_cancelled_) {
    CancelAsPlanned();
  }
  if (record_.is_slow_reader && !was_cut_) {
    host_.At(host_.clock().Now() + plan_->read_delay_seconds,
             [call = shared_from_this()] { call->StartRead(&call->event_); });
  } else {
    StartRead(&event_);
  }
}

void StreamCall::TakeTokens(const v1::Tokens& tokens) {
  if (tokens.is_prompt() || tokens.token_ids_size() == 0) return;
  const double now = host_.clock().Now();
  const auto count = static_cast<uint32_t>(tokens.token_ids_size());
  TokenSample sample{now, TokenSample::kNoGap, count};
  if (record_.output_tokens == 0) {
    first_token_seconds_ = now;
    record_.ttft_seconds = now - record_.intended_seconds;
  } else {
    const double gap = now - last_token_seconds_;
    sample.gap_seconds = static_cast<float>(gap);
    record_.longest_gap_seconds = std::max(record_.longest_gap_seconds, gap);
    ++record_.gaps;
    if (gap > host_.recorder().itl_bound_seconds()) ++record_.slow_gaps;
  }
  last_token_seconds_ = now;
  record_.output_tokens += count;
  if (keep_output_) {
    record_.token_ids.insert(record_.token_ids.end(), tokens.token_ids().begin(),
                             tokens.token_ids().end());
    for (const v1::TokenLogprob& logprob : tokens.logprobs())
      record_.logprob_bits.push_back(std::bit_cast<uint32_t>(logprob.logprob()));
  }
  samples_.push_back(sample);
  if (samples_.size() >= kSamplesPerFlush || now - last_flush_seconds_ > kFlushSeconds)
    FlushSamples();
}

void StreamCall::TakeFinished(const v1::Finished& finished) {
  has_finished_ = true;
  record_.finish_reason = finished.reason();
  usage_tokens_ = finished.usage().generated_tokens();
}

void StreamCall::OnDone(const grpc::Status& status) {
  record_.end_seconds = host_.clock().Now();
  record_.e2e_seconds = record_.end_seconds - record_.intended_seconds;
  record_.was_cancelled = was_cancelled_;
  record_.was_cut = was_cut_;
  // How long gRPC takes to end a call is nobody's silence.
  const double until = was_cut_ ? cut_seconds_.load() : record_.end_seconds;
  record_.silence_seconds = has_finished_ ? 0 : std::max(0.0, until - last_message_seconds_);
  // What came in one message has no time per token.
  if (record_.gaps > 0) {
    record_.tpot_seconds = (last_token_seconds_ - first_token_seconds_) /
                           static_cast<double>(record_.output_tokens - 1);
  }
  TakeStatus(status);
  FlushSamples();
  host_.Done(std::move(self_));  // may free this
}

void StreamCall::TakeStatus(const grpc::Status& status) {
  record_.code = client::CodeOf(status);
  record_.message = status.error_message().substr(0, kLongestMessage);
  if (status.ok()) {
    if (!has_finished_) {
      record_.defect = "OK without a Finished event";
    } else if (usage_tokens_ != record_.output_tokens) {
      record_.defect = "usage says " + std::to_string(usage_tokens_) + " tokens, the stream held " +
                       std::to_string(record_.output_tokens);
    }
    return;
  }
  google::rpc::Status details;
  record_.has_retry_info = false;
  if (details.ParseFromString(status.error_details())) {
    for (const google::protobuf::Any& detail : details.details()) {
      google::rpc::RetryInfo retry;
      if (!detail.UnpackTo(&retry)) continue;
      record_.has_retry_info = true;
      record_.retry_delay_seconds =
          static_cast<double>(retry.retry_delay().seconds()) + 1e-9 * retry.retry_delay().nanos();
    }
  }
  record_.pushback_ms.reset();
  const auto& trailers = context_.GetServerTrailingMetadata();
  if (const auto trailer = trailers.find("grpc-retry-pushback-ms"); trailer != trailers.end()) {
    int64_t milliseconds = 0;
    const char* const end = trailer->second.data() + trailer->second.size();
    if (std::from_chars(trailer->second.data(), end, milliseconds).ec == std::errc())
      record_.pushback_ms = milliseconds;
  }
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    ++record_.refusals;
    record_.refusals_with_retry_info += record_.has_retry_info ? 1u : 0u;
    record_.refusals_with_pushback += record_.pushback_ms.has_value() ? 1u : 0u;
  }
}

void StreamCall::FlushSamples() {
  if (samples_.empty()) return;
  if (!record_.is_probe) {
    host_.recorder().AddTokens(samples_, record_.is_measured && !record_.is_slow_reader);
  }
  samples_.clear();
  last_flush_seconds_ = host_.clock().Now();
}

}  // namespace bst::stress
