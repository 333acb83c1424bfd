#include "engine/inbox.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace bst {

absl::StatusOr<SequenceId> Inbox::Submit(std::unique_ptr<ActiveRequest> request) {
  absl::MutexLock lock(&mutex_);
  if (!failure_.ok()) {
    return absl::UnavailableError(absl::StrCat("the engine has failed: ", failure_.message()));
  }
  if (pending_.closed) return absl::UnavailableError("the engine is shut down");
  if (draining_) return absl::UnavailableError("the engine is draining and takes no more requests");
  if (!request->request_id.empty() && request_ids_.contains(request->request_id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request_id \"", request->request_id, "\" is in flight"));
  }
  // Running ones count too: whether a request of the inbox will wait or start at once is not known
  // here, and the answer must not depend on how fast the engine thread takes it. In sequences, for
  // each of them holds a slot: in requests, more than the queue has room for might wait. The last
  // one may go beyond the limit: where it is full of requests for one, one for several would never
  // find as many places free.
  const auto sequences =
      std::max<int64_t>(1, static_cast<int64_t>(request->continuations.size()));  // 1: a score
  if (sequences_ >= limits_.max_in_flight) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "queue is full: ", sequences_, " sequences run and wait, limit ", limits_.max_in_flight));
  }
  BST_RETURN_IF_ERROR(CheckRoom(request->prompt_tokens, /*own=*/0));
  const SequenceId id(++last_id_);
  request->id = id;
  if (!request->request_id.empty()) request_ids_.insert(request->request_id);
  in_flight_.emplace(id, InFlight{.sequences = sequences,
                                  .prompt_tokens = request->prompt_tokens,
                                  .prompt_open = request->prompt_open,
                                  .sampler_looks_at_prompt = request->sampler != nullptr &&
                                                             request->sampler->looks_at_prompt(),
                                  .stopped = std::vector<bool>(request->continuations.size())});
  sequences_ += sequences;
  ++num_waiting_;
  waiting_tokens_ += request->prompt_tokens;
  pending_.requests.push_back(std::move(request));
  asleep_ = false;
  return id;
}

absl::Status Inbox::AppendPrompt(PromptPart part) {
  absl::MutexLock lock(&mutex_);
  const auto it = in_flight_.find(part.id);
  if (it == in_flight_.end()) {
    return absl::NotFoundError(absl::StrCat("request ", part.id.value(), " is not in flight"));
  }
  InFlight& request = it->second;
  if (!request.prompt_open) {
    return absl::FailedPreconditionError("the prompt is complete already");
  }
  const auto more = static_cast<int64_t>(part.tokens.size());
  if (more > limits_.max_prompt_tokens - request.prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("prompt has ", request.prompt_tokens + more,
                                                   " tokens, limit ", limits_.max_prompt_tokens));
  }
  if (part.end == PromptEnd::kComplete && request.prompt_tokens + more == 0) {
    return absl::InvalidArgumentError("prompt is empty");
  }
  if (request.waits) {
    BST_RETURN_IF_ERROR(CheckRoom(more, request.prompt_tokens));
    waiting_tokens_ += more;
  }
  request.prompt_tokens += more;
  request.prompt_open = part.end == PromptEnd::kMoreFollows;
  pending_.prompt_parts.push_back(std::move(part));
  asleep_ = false;
  return absl::OkStatus();
}

bool Inbox::SamplerLooksAtPrompt(SequenceId id) const {
  absl::MutexLock lock(&mutex_);
  const auto it = in_flight_.find(id);
  return it != in_flight_.end() && it->second.sampler_looks_at_prompt;
}

void Inbox::StopSequence(SequenceId id, int sequence_index) {
  absl::MutexLock lock(&mutex_);
  const auto it = in_flight_.find(id);
  if (it == in_flight_.end() || sequence_index < 0) return;
  const auto index = static_cast<size_t>(sequence_index);
  std::vector<bool>& stopped = it->second.stopped;
  if (index >= stopped.size() || stopped[index]) return;
  stopped[index] = true;
  pending_.stopped.push_back({id, sequence_index});
  asleep_ = false;
}

void Inbox::Cancel(SequenceId id) {
  absl::MutexLock lock(&mutex_);
  const auto it = in_flight_.find(id);
  if (it == in_flight_.end() || it->second.cancelled) return;
  it->second.cancelled = true;
  pending_.cancelled.push_back(id);
  asleep_ = false;
}

void Inbox::Drain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

void Inbox::Close() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  pending_.closed = true;
}

bool Inbox::WaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(&asleep_), deadline);
}

int64_t Inbox::num_in_flight() const {
  absl::MutexLock lock(&mutex_);
  return sequences_;
}

int Inbox::num_waiting() const {
  absl::MutexLock lock(&mutex_);
  return num_waiting_;
}

int64_t Inbox::waiting_tokens() const {
  absl::MutexLock lock(&mutex_);
  return waiting_tokens_;
}

bool Inbox::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

void Inbox::Take(absl::Duration patience, Delivery& delivery) {
  delivery.requests.clear();
  delivery.prompt_parts.clear();
  delivery.stopped.clear();
  delivery.cancelled.clear();
  absl::MutexLock lock(&mutex_);
  if (patience == absl::InfiniteDuration()) asleep_ = !HasWork();
  if (patience > absl::ZeroDuration()) {
    mutex_.AwaitWithTimeout(absl::Condition(this, &Inbox::HasWork), patience);
  }
  delivery.closed = pending_.closed;
  std::swap(delivery, pending_);
  pending_.closed = delivery.closed;
}

void Inbox::Started(const ActiveRequest& request) {
  absl::MutexLock lock(&mutex_);
  StopWaiting(in_flight_.at(request.id));
}

void Inbox::SequenceEnded(const ActiveRequest& request) {
  absl::MutexLock lock(&mutex_);
  --in_flight_.at(request.id).sequences;
  --sequences_;
}

void Inbox::Finished(const ActiveRequest& request) {
  absl::MutexLock lock(&mutex_);
  const auto it = in_flight_.find(request.id);
  BST_CHECK(it != in_flight_.end(), "request ", request.id.value(), " is not in flight");
  if (it->second.waits) StopWaiting(it->second);
  sequences_ -= it->second.sequences;
  in_flight_.erase(it);
  request_ids_.erase(request.request_id);
}

void Inbox::Retire() {
  absl::MutexLock lock(&mutex_);
  asleep_ = true;
}

void Inbox::Fail(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  failure_ = why;
}

absl::Status Inbox::CheckRoom(int64_t more, int64_t own) const {
  if (more == 0 || waiting_tokens_ == own || more <= limits_.max_waiting_tokens - waiting_tokens_) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("queue is full: ", waiting_tokens_, " prompt tokens wait, ", more,
                   " more exceed the limit of ", limits_.max_waiting_tokens));
}

void Inbox::StopWaiting(InFlight& request) {
  request.waits = false;
  --num_waiting_;
  waiting_tokens_ -= request.prompt_tokens;
}

}  // namespace bst
