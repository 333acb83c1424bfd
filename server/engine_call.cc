#include "server/engine_call.h"

#include <grpcpp/server_context.h>

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/grpc_status.h"
#include "server/message_readers.h"
#include "server/request_validation.h"
#include "server/wire_message.h"

namespace bst {
namespace {

double Milliseconds(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

}  // namespace

EngineCall::EngineCall(Frontend& frontend, grpc::CallbackServerContext& context, const char* rpc)
    : frontend_(frontend),
      context_(context),
      rpc_(rpc),
      watch_(std::make_shared<WriteWatch>(context, frontend.config().write_timeout,
                                          [this](Stall why) { EndForStall(why); })) {
  frontend.active().OpenRpc();
}

void EngineCall::Push(SequenceEvent event) {
  {
    absl::MutexLock lock(&mutex_);
    outbox_.push_back(std::move(event));
    if (posted_) return;
    posted_ = true;
  }
  frontend_.delivery().Post(shared_from_this());
}

CancelCause EngineCall::cancel_cause() const {
  absl::MutexLock lock(&mutex_);
  return cause_;
}

void EngineCall::Cancel(CancelCause cause) {
  std::optional<SequenceId> id;
  {
    absl::MutexLock lock(&mutex_);
    if (cause_ != CancelCause::kNone) return;
    cause_ = cause;
    id = id_;
  }
  if (id.has_value()) engine_->Cancel(*id);
}

void EngineCall::ReadRequest(
    const grpc::ByteBuffer& message,
    std::function<void(const ServedModel&, const grpc::ByteBuffer&)> read) {
  came_at_start_ = true;
  // Of a stream that was reset, or ended without a message.
  if (!message.Valid()) return Reject(LeftBefore("its request came"));
  const grpc::ByteBuffer bytes = TakeBytes(message);
  const absl::StatusOr<const ServedModel*> model = frontend_.Admit(context_);
  if (!model.ok()) return Reject(model.status());
  // Of a small one CheckBeforeReading asks at once.
  const bool waits = bytes.Length() > MessageReaders::kSmallBytes;
  absl::Status may_wait = waits ? frontend_.CheckQueue() : absl::OkStatus();
  if (may_wait.ok()) may_wait = frontend_.CheckReaders(bytes.Length());
  if (!may_wait.ok()) return Reject(may_wait);
  frontend_.readers().Read(bytes.Length(), [this, self = shared_from_this(), model = *model, bytes,
                                            read = std::move(read)] {
    const absl::Status admitted = CheckBeforeReading();
    if (!admitted.ok()) return Reject(admitted);
    read(*model, bytes);
  });
}

void EngineCall::NoteRequestId(const std::string& id) {
  if (!id.empty() && ValidateRequestId(id).ok()) request_id_ = id;
}

template <typename Request>
absl::Status EngineCall::Submit(const ServedModel& model, Request request) {
  if (came_at_start_) request.age = absl::FromChrono(std::chrono::steady_clock::now() - start_);
  request_id_ = request.request_id;
  engine_ = model.engine.get();
  if (!frontend_.active().Add(request_id_, weak_from_this())) {
    return absl::AlreadyExistsError(
        absl::StrCat("a request with request_id ", request_id_, " is in flight"));
  }
  const absl::StatusOr<SequenceId> id = engine_->Submit(std::move(request), shared_from_this());
  if (!id.ok()) {
    frontend_.active().Remove(request_id_);
    return id.status();
  }
  bool cancelled_meanwhile;
  std::vector<int> stopped_meanwhile;
  {
    absl::MutexLock lock(&mutex_);
    id_ = *id;
    cancelled_meanwhile = cause_ != CancelCause::kNone;
    stopped_meanwhile.swap(stop_early_);
  }
  for (const int index : stopped_meanwhile) engine_->StopSequence(*id, index);
  if (cancelled_meanwhile) engine_->Cancel(*id);
  return absl::OkStatus();
}

absl::Status EngineCall::AppendPrompt(std::vector<TokenId> tokens, PromptEnd end) {
  SequenceId id;
  {
    absl::MutexLock lock(&mutex_);
    id = *id_;
  }
  return engine_->AppendPrompt(id, std::move(tokens), end);
}

void EngineCall::StopSequence(int sequence_index) {
  SequenceId id;
  {
    absl::MutexLock lock(&mutex_);
    if (!id_.has_value()) {
      stop_early_.push_back(sequence_index);
      return;
    }
    id = *id_;
  }
  engine_->StopSequence(id, sequence_index);
}

bool EngineCall::Refuse(absl::Status why) {
  bool is_first;
  {
    absl::MutexLock lock(&mutex_);
    is_first = !ended_ && cause_ == CancelCause::kNone;
    if (is_first) refusal_ = std::move(why);
  }
  if (is_first) Cancel(CancelCause::kRefused);
  return is_first;
}

template absl::Status EngineCall::Submit(const ServedModel& model, GenerateRequest request);
template absl::Status EngineCall::Submit(const ServedModel& model, ScoreRequest request);

std::vector<SequenceEvent> EngineCall::TakeEvents() {
  std::vector<SequenceEvent> events;
  {
    absl::MutexLock lock(&mutex_);
    events.swap(outbox_);
    posted_ = false;
    if (events.empty() || !std::holds_alternative<FinishedEvent>(events.back())) return events;
    ended_ = true;
  }
  frontend_.active().EnterUnread(watch_);
  frontend_.active().Remove(request_id_);
  return events;
}

void EngineCall::AccountUnread(size_t bytes, Readable readable) {
  {
    absl::MutexLock lock(&mutex_);
    if (!ended_ || closed_) return;
  }
  frontend_.active().SetUnreadBytes(*watch_, static_cast<int64_t>(bytes), readable);
}

void EngineCall::CloseRpc() {
  {  // The lock also shows ThreadSanitizer that reactions are over, which gRPC counts unseen by it.
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  watch_->Close();
  frontend_.active().LeaveUnread(*watch_);
  frontend_.active().CloseRpc();
}

bool EngineCall::BoundOutbox(size_t bytes) {
  if (bytes <= kMaxOutboxBytes) return false;
  {
    absl::MutexLock lock(&mutex_);
    if (ended_ || dropped_) return false;
    dropped_ = true;
  }
  Cancel(CancelCause::kOutboxFull);
  return true;
}

void EngineCall::EndForStall(Stall why) {
  frontend_.LogCut(rpc_, request_id_, context_, why);
  Cancel(CancelCause::kWriteTimeout);
}

CancelCause EngineCall::CauseOfCancellation() const {
  // A client resets the stream at its own deadline, often before the server's copy of it is over:
  // that starts when the call arrives, and gRPC sends the timeout rounded up by as much as 1 %.
  constexpr std::chrono::milliseconds kTravel(50);
  const std::chrono::nanoseconds left = context_.deadline() - std::chrono::system_clock::now();
  const std::chrono::nanoseconds elapsed = std::chrono::steady_clock::now() - start_;
  return left <= elapsed / 50 + kTravel ? CancelCause::kDeadline : CancelCause::kClient;
}

absl::Status EngineCall::LeftBefore(const char* event) const {
  return CauseOfCancellation() == CancelCause::kDeadline
             ? absl::DeadlineExceededError(
                   absl::StrCat("the call's deadline passed before ", event))
             : absl::CancelledError(absl::StrCat("the client left before ", event));
}

absl::Status EngineCall::CheckBeforeReading() const {
  BST_RETURN_IF_ERROR(frontend_.CheckQueue());
  return CheckWanted();
}

absl::Status EngineCall::CheckWanted() const {
  return context_.IsCancelled() ? LeftBefore("its request was read") : absl::OkStatus();
}

Ending EngineCall::EndingOf(const FinishedEvent& finished, Completeness completeness) const {
  absl::MutexLock lock(&mutex_);
  const bool is_whole = completeness == Completeness::kComplete || finished.status.ok();
  if (is_whole && !dropped_) return {WireReason(finished.reason), absl::OkStatus()};
  if (!is_whole && !absl::IsCancelled(finished.status)) return {v1::ERROR, finished.status};
  switch (is_whole ? CancelCause::kOutboxFull : cause_) {
    case CancelCause::kRefused:
      return {v1::ERROR, refusal_};
    case CancelCause::kDeadline:
      return {v1::CANCELLED, absl::DeadlineExceededError("the call's deadline passed")};
    case CancelCause::kAbort:
      return {v1::CANCELLED, absl::CancelledError("aborted by the operator")};
    case CancelCause::kOutboxFull:
      return {v1::ERROR, WithoutRetry(absl::ResourceExhaustedError(absl::StrCat(
                             "the reader is too slow: more than ", kMaxOutboxBytes >> 20,
                             " MB of output waited for it; read faster, stream, or ask for fewer "
                             "top_logprobs")))};
    case CancelCause::kWriteTimeout:
      return {v1::ERROR, WithoutRetry(absl::ResourceExhaustedError(absl::StrCat(
                             "the reader is too slow: a message waited ",
                             absl::FormatDuration(frontend_.config().write_timeout), " for it")))};
    default:
      return {v1::CANCELLED, finished.status};
  }
}

void EngineCall::AccountRejected(const absl::Status& status) {
  frontend_.CountRejected(status);
  frontend_.CutOverdueReaders();
  frontend_.AccountCall(rpc_, request_id_, status, start_);
}

void EngineCall::AccountFinished(const Ending& ending, const FinishedEvent& finished,
                                 int64_t generated_tokens) {
  frontend_.metrics().CountRequest(rpc_, ending.status.code(),
                                   v1::FinishReason_Name(ending.reason));
  const std::chrono::duration<double, std::milli> total = std::chrono::steady_clock::now() - start_;
  Log(ending.status.ok() || absl::IsCancelled(ending.status) ? LogLevel::kInfo : LogLevel::kWarning,
      "request",
      {{"id", request_id_},
       {"rpc", rpc_},
       {"prompt_tokens", finished.prompt_tokens},
       {"generated_tokens", generated_tokens},
       {"queue_ms", Milliseconds(finished.timings.queue)},
       {"first_token_ms", Milliseconds(finished.timings.time_to_first_token)},
       {"total_ms", total.count()},
       {"outcome", v1::FinishReason_Name(ending.reason)},
       {"code", CodeName(ending.status.code())}});
}

v1::FinishReason WireReason(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return v1::EOS;
    case FinishReason::kStopToken:
      return v1::STOP_TOKEN;
    case FinishReason::kMaxTokens:
      return v1::MAX_TOKENS;
    case FinishReason::kTimeLimit:
      return v1::TIME_LIMIT;
    case FinishReason::kStopped:  // by this server: for a stop string
      return v1::STOP_STRING;
    case FinishReason::kCancelled:
      return v1::CANCELLED;
    case FinishReason::kError:
      return v1::ERROR;
  }
  return v1::ERROR;
}

v1::Usage UsageOf(const FinishedEvent& finished, int64_t generated_tokens) {
  v1::Usage usage;
  usage.set_prompt_tokens(static_cast<uint64_t>(finished.prompt_tokens));
  usage.set_generated_tokens(static_cast<uint64_t>(generated_tokens));
  return usage;
}

v1::Timings TimingsOf(const FinishedEvent& finished, const Continuations& continuations) {
  v1::Timings timings;
  timings.set_queue_seconds(absl::ToDoubleSeconds(finished.timings.queue));
  timings.set_prefill_seconds(absl::ToDoubleSeconds(finished.timings.prefill));
  timings.set_time_to_first_token_seconds(
      absl::ToDoubleSeconds(finished.timings.time_to_first_token));
  const double decode_seconds = absl::ToDoubleSeconds(finished.timings.decode);
  if (continuations.longest > 1 && decode_seconds > 0) {
    // The longest continuation decodes from the first token to the last of all.
    timings.set_mean_inter_token_seconds(decode_seconds /
                                         static_cast<double>(continuations.longest - 1));
    timings.set_tokens_per_second(
        static_cast<double>(finished.generated_tokens - continuations.count) / decode_seconds);
  }
  return timings;
}

v1::Accepted AcceptedOf(const AcceptedEvent& accepted, const std::string& request_id) {
  v1::Accepted message;
  message.set_request_id(request_id);
  message.set_prompt_tokens(static_cast<uint64_t>(accepted.prompt_tokens));
  message.set_queue_position(static_cast<uint64_t>(accepted.queue_position));
  return message;
}

v1::PrefillProgress ProgressOf(const PrefillProgressEvent& progress) {
  v1::PrefillProgress message;
  message.set_processed_tokens(static_cast<uint64_t>(progress.processed_tokens));
  message.set_total_tokens(static_cast<uint64_t>(progress.total_tokens));
  return message;
}

}  // namespace bst
