#include "server/active_requests.h"

#include <algorithm>
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

void ActiveRequests::EnterUnread(const std::shared_ptr<UnreadCall>& call) {
  absl::MutexLock lock(&mutex_);
  unread_.emplace(call.get(), Unread{call, std::nullopt, 0});
}

void ActiveRequests::SetUnreadBytes(const UnreadCall& call, int64_t bytes, Readable readable) {
  absl::MutexLock lock(&mutex_);
  const auto found = unread_.find(&call);
  if (found == unread_.end()) return;
  Unread& unread = found->second;
  unread_bytes_ += bytes - std::exchange(unread.bytes, bytes);
  if (readable == Readable::kYes && !unread.readable_since.has_value()) {
    unread.readable_since = Clock::now();
  }
}

void ActiveRequests::LeaveUnread(const UnreadCall& call) {
  absl::MutexLock lock(&mutex_);
  const auto found = unread_.find(&call);
  if (found == unread_.end()) return;
  unread_bytes_ -= found->second.bytes;
  unread_.erase(found);
}

void ActiveRequests::CutUnread(absl::Duration time, int64_t max_bytes) {
  std::vector<Unread> overdue;
  int64_t rest;
  {
    absl::MutexLock lock(&mutex_);
    const Clock::time_point limit = Clock::now() - absl::ToChronoNanoseconds(time);
    for (const auto& [call, unread] : unread_) {
      if (unread.bytes > 0 && unread.readable_since.value_or(limit) < limit) {
        overdue.push_back(unread);
      }
    }
    rest = unread_bytes_;
  }
  std::sort(overdue.begin(), overdue.end(),
            [](const Unread& a, const Unread& b) { return a.bytes > b.bytes; });
  for (const Unread& unread : overdue) {
    if (rest <= max_bytes) return;
    rest -= unread.bytes;
    if (const std::shared_ptr<UnreadCall> call = unread.call.lock()) call->Cut();
  }
}

int ActiveRequests::unread() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(unread_.size());
}

int ActiveRequests::unfinished() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int>(calls_.size() + unread_.size());
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
