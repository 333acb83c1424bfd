#include "engine/inbox.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace bst {

absl::StatusOr<SequenceId> Inbox::Submit(std::unique_ptr<ActiveRequest> request) {
  absl::MutexLock lock(&mutex_);
  if (!failure_.ok()) {
    return absl::UnavailableError(absl::StrCat("the engine has failed: ", failure_.message()));
  }
  if (closed_) return absl::UnavailableError("the engine is shut down");
  if (draining_) return absl::UnavailableError("the engine is draining and takes no more requests");
  if (!request->request_id.empty() && request_ids_.contains(request->request_id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request_id \"", request->request_id, "\" is in flight"));
  }
  // Running ones count too: whether a request of the inbox will wait or start at once is not known
  // here, and the answer must not depend on how fast the engine thread takes it.
  if (static_cast<int64_t>(in_flight_.size()) >= limits_.max_in_flight) {
    return absl::ResourceExhaustedError(absl::StrCat("queue is full: ", in_flight_.size(),
                                                     " requests run and wait, limit ",
                                                     limits_.max_in_flight));
  }
  if (waiting_tokens_ > 0 &&
      request->prompt_tokens > limits_.max_waiting_tokens - waiting_tokens_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "queue is full: ", waiting_tokens_, " prompt tokens wait, ", request->prompt_tokens,
        " more exceed the limit of ", limits_.max_waiting_tokens));
  }
  const SequenceId id(++last_id_);
  request->id = id;
  if (!request->request_id.empty()) request_ids_.insert(request->request_id);
  in_flight_.emplace(id, InFlight());
  ++num_waiting_;
  waiting_tokens_ += request->prompt_tokens;
  requests_.push_back(std::move(request));
  asleep_ = false;
  return id;
}

void Inbox::Cancel(SequenceId id) {
  absl::MutexLock lock(&mutex_);
  const auto it = in_flight_.find(id);
  if (it == in_flight_.end() || it->second.cancelled) return;
  it->second.cancelled = true;
  cancelled_.push_back(id);
  asleep_ = false;
}

void Inbox::Drain() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

void Inbox::Close() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  closed_ = true;
}

bool Inbox::WaitIdle(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(&asleep_), deadline);
}

int64_t Inbox::num_in_flight() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(in_flight_.size());
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

void Inbox::Take(Patience patience, Delivery& delivery) {
  delivery.requests.clear();
  delivery.cancelled.clear();
  absl::MutexLock lock(&mutex_);
  if (patience == Patience::kWaitForWork) {
    asleep_ = !HasWork();
    mutex_.Await(absl::Condition(this, &Inbox::HasWork));
  }
  delivery.requests.swap(requests_);
  delivery.cancelled.swap(cancelled_);
  delivery.closed = closed_;
}

void Inbox::Started(const ActiveRequest& request) {
  absl::MutexLock lock(&mutex_);
  --num_waiting_;
  waiting_tokens_ -= request.prompt_tokens;
}

void Inbox::Finished(const ActiveRequest& request) {
  absl::MutexLock lock(&mutex_);
  const size_t erased = in_flight_.erase(request.id);
  BST_CHECK(erased == 1, "request ", request.id.value(), " is not in flight");
  request_ids_.erase(request.request_id);
  if (!request.has_started()) {
    --num_waiting_;
    waiting_tokens_ -= request.prompt_tokens;
  }
}

void Inbox::Retire() {
  absl::MutexLock lock(&mutex_);
  asleep_ = true;
}

void Inbox::Fail(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  failure_ = why;
}

}  // namespace bst
