#include "server/active_requests.h"

#include <utility>
#include <vector>

namespace bst {

bool ActiveRequests::Add(const std::string& request_id, std::weak_ptr<Abortable> call) {
  absl::MutexLock lock(&mutex_);
  return calls_.try_emplace(request_id, std::move(call)).second;
}

void ActiveRequests::Remove(const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  calls_.erase(request_id);
}

std::shared_ptr<Abortable> ActiveRequests::Find(const std::string& request_id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = calls_.find(request_id);
  return found == calls_.end() ? nullptr : found->second.lock();
}

bool ActiveRequests::Abort(const std::string& request_id) {
  const std::shared_ptr<Abortable> call = Find(request_id);
  if (call == nullptr) return false;
  call->Abort();
  return true;
}

CancelCause ActiveRequests::CauseOf(const std::string& request_id) const {
  const std::shared_ptr<Abortable> call = Find(request_id);
  return call == nullptr ? CancelCause::kNone : call->cancel_cause();
}

void ActiveRequests::AddAwaiting(const std::shared_ptr<AwaitsRequest>& call) {
  absl::MutexLock lock(&mutex_);
  awaiting_.emplace(call.get(), call);
}

void ActiveRequests::RemoveAwaiting(const AwaitsRequest& call) {
  absl::MutexLock lock(&mutex_);
  awaiting_.erase(&call);
}

void ActiveRequests::GiveUpAwaiting(const absl::Status& why) {
  std::vector<std::weak_ptr<AwaitsRequest>> awaiting;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [call, weak] : awaiting_) awaiting.push_back(weak);
  }
  for (const auto& weak : awaiting) {
    if (const std::shared_ptr<AwaitsRequest> call = weak.lock()) call->GiveUp(why);
  }
}

void ActiveRequests::OpenRpc() {
  absl::MutexLock lock(&mutex_);
  ++open_rpcs_;
}

void ActiveRequests::CloseRpc() {
  absl::MutexLock lock(&mutex_);
  --open_rpcs_;
}

void ActiveRequests::EnterUnread() {
  absl::MutexLock lock(&mutex_);
  ++unread_;
}

void ActiveRequests::LeaveUnread() {
  absl::MutexLock lock(&mutex_);
  --unread_;
}

int ActiveRequests::unread() const {
  absl::MutexLock lock(&mutex_);
  return unread_;
}

int ActiveRequests::unfinished() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(calls_.size()) + unread_;
}

void ActiveRequests::AddUnreadBytes(int64_t difference) {
  absl::MutexLock lock(&mutex_);
  unread_bytes_ += difference;
}

int64_t ActiveRequests::unread_bytes() const {
  absl::MutexLock lock(&mutex_);
  return unread_bytes_;
}

bool ActiveRequests::WaitUntilNoneOpen(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto none_open = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open_rpcs_ == 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&none_open), timeout);
}

}  // namespace bst
