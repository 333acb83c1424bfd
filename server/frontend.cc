#include "server/frontend.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/grpc_status.h"
#include "server/request_validation.h"

namespace bst {

namespace {

// Of so many tokens in memory, as far as that is a number.
int64_t BytesOf(int64_t tokens) {
  constexpr int64_t kTokenBytes = sizeof(TokenId);
  return std::min(tokens, std::numeric_limits<int64_t>::max() / kTokenBytes) * kTokenBytes;
}

// Of messages that wait to be read: as much as a few of the largest.
size_t ReadersLimit(const ServerConfig& config) {
  return 4 * static_cast<size_t>(config.max_message_bytes);
}

absl::Status Draining() {
  return absl::UnavailableError("the engine is draining and takes no more requests");
}

}  // namespace

Frontend::Frontend(ServerConfig config, AuthTokens auth)
    : config_(std::move(config)),
      auth_(std::move(auth)),
      held_text_(BytesOf(config_.engine.max_queue_tokens)),
      metrics_(active_),
      readers_(MessageReaders::DefaultThreads(), ReadersLimit(config_),
               [this](MessageReaders::Load load) { metrics_.SetReadersLoad(load); }) {}

// The metrics outlive the engine, which reports to them to its end, but must not read it any more.
Frontend::~Frontend() { metrics_.Unpublish(); }

void Frontend::Publish(ServedModel model) {
  model_ = std::move(model);
  published_.store(&model_, std::memory_order_release);
}

absl::Status Frontend::CheckCredentials(const grpc::CallbackServerContext& context) const {
  const auto& metadata = context.client_metadata();
  std::optional<std::string_view> authorization;
  if (const auto found = metadata.find("authorization"); found != metadata.end()) {
    authorization.emplace(found->second.data(), found->second.size());
  }
  return auth_.Check(authorization, absl::Now());
}

absl::StatusOr<const ServedModel*> Frontend::Admit(
    const grpc::CallbackServerContext& context) const {
  BST_RETURN_IF_ERROR(CheckCredentials(context));
  const ServedModel* const model = this->model();
  if (model == nullptr) return absl::UnavailableError("the model is loading");
  return model;
}

absl::StatusOr<const ServedModel*> Frontend::AdmitToQueue(
    const grpc::CallbackServerContext& context) const {
  BST_ASSIGN_OR_RETURN(const ServedModel* const model, Admit(context));
  BST_RETURN_IF_ERROR(CheckQueue());
  return model;
}

absl::Status Frontend::CheckReaders(size_t bytes) const {
  if (bytes <= MessageReaders::kSmallBytes || readers_.MayTakeMore()) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "queue is full: more than ", ReadersLimit(config_) >> 10, " KB of messages wait to be read"));
}

absl::Status Frontend::CheckUnread() const {
  if (!UnreadIsFull()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("readers are behind: ", active_.unread_bytes() >> 20,
                   " MB of the output of finished requests wait for them"));
}

absl::Status Frontend::CheckAnswer() const {
  if (model()->engine->load().draining) return Draining();
  return CheckUnread();
}

void Frontend::CutOverdueReaders() {
  if (UnreadIsFull()) active_.CutUnread(config_.write_timeout, config_.max_unread_bytes);
}

absl::Status Frontend::CheckQueue() const {
  const EngineLoad load = model()->engine->load();
  if (load.draining) return Draining();
  BST_RETURN_IF_ERROR(CheckUnread());
  if (RequestsAreFull(load)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("queue is full: ", load.in_flight, " sequences run and wait"));
  }
  if (load.queue_tokens > 0 && load.queue_tokens >= config_.engine.max_queue_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("queue is full: ", load.queue_tokens, " prompt tokens wait"));
  }
  return absl::OkStatus();
}

void Frontend::Drain() {
  // In this order: who comes to wait in between finds the engine draining.
  model()->engine->Drain();
  active_.GiveUpAwaiting(Draining());
}

bool Frontend::QueueIsFilling() const {
  return model()->engine->load().queue_tokens > config_.engine.max_queue_tokens / 2;
}

bool Frontend::UnreadIsFull() const { return active_.unread_bytes() > config_.max_unread_bytes; }

bool Frontend::RequestsAreFull(const EngineLoad& load) const {
  return load.in_flight >= int64_t{config_.engine.max_sequences} + config_.engine.max_queue;
}

void Frontend::CountRejected(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      metrics_.CountRejected(IsTooLong(status) ? RejectReason::kTooLong : RejectReason::kInvalid);
      break;
    case absl::StatusCode::kAlreadyExists:
      metrics_.CountRejected(RejectReason::kInvalid);
      break;
    case absl::StatusCode::kUnavailable:
      metrics_.CountRejected(RejectReason::kDraining);
      break;
    case absl::StatusCode::kResourceExhausted: {
      // The engine does not say which limit it was: the queue of requests is full or it is not.
      const bool requests_full = RequestsAreFull(model()->engine->load()) || UnreadIsFull();
      metrics_.CountRejected(requests_full ? RejectReason::kQueueRequests
                                           : RejectReason::kQueueTokens);
      break;
    }
    default:
      break;  // not for want of room, nor for what it asks
  }
}

void Frontend::AccountCall(const char* rpc, const std::string& request_id,
                           const absl::Status& status,
                           std::chrono::steady_clock::time_point start) {
  metrics_.CountRequest(rpc, status.code(), "");
  const std::chrono::duration<double, std::milli> total = std::chrono::steady_clock::now() - start;
  Log(LogLevel::kInfo, "request",
      {{"id", request_id},
       {"rpc", rpc},
       {"total_ms", total.count()},
       {"code", CodeName(status.code())}});
}

void Frontend::LogCut(const char* rpc, const std::string& request_id,
                      const grpc::CallbackServerContext& context, Stall why) const {
  Log(LogLevel::kWarning, "write_timeout",
      {{"id", request_id},
       {"rpc", rpc},
       {"peer", context.peer()},
       {"cause", why == Stall::kMessage ? "message" : "output"},
       {"write_timeout_ms", absl::ToDoubleMilliseconds(config_.write_timeout)}});
}

void Frontend::set_addresses(Addresses addresses) {
  absl::MutexLock lock(&mutex_);
  addresses_ = std::move(addresses);
}

Addresses Frontend::addresses() const {
  absl::MutexLock lock(&mutex_);
  return addresses_;
}

}  // namespace bst
