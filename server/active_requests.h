// ActiveRequests: the RPCs that are open: by request id those that the engine works for, those
// whose client has not sent its request yet, and those whose client has not taken all of the
// answer.
//
// Ownership   Knows calls weakly; each is owned by its RPC.
// Threads     Thread-safe. No lock is held while a call is used.
// Tested by   tests/server/active_requests_test.cc
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace bst {

// Why a request was ended before its time.
enum class CancelCause {
  kNone,
  kClient,
  kDeadline,
  kAbort,
  kRefused /* a later part of it */,
  kOutboxFull,
  kWriteTimeout
};

// A request in flight, as an operator can see and end it.
class Abortable {
 public:
  virtual ~Abortable() = default;
  virtual void Abort() = 0;
  virtual CancelCause cancel_cause() const = 0;
};

// A call whose request is still to come from its client.
class AwaitsRequest {
 public:
  virtual ~AwaitsRequest() = default;
  // Ends the call with `why` unless the request has come.
  virtual void GiveUp(const absl::Status& why) = 0;
};

// A call whose request is over: nobody but its client, which takes what was written, keeps it.
class UnreadCall {
 public:
  virtual ~UnreadCall() = default;
  // Ends the call; what was not taken is lost. No-op if it is over.
  virtual void Cut() = 0;
};

// Whether the client can take what it has not taken, or the server is still at work on it.
enum class Readable { kNotYet, kYes };

class ActiveRequests {
 public:
  // False if a request of this id is in flight.
  bool Add(const std::string& request_id, std::weak_ptr<Abortable> call)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The id is free again. No-op if it is unknown.
  void Remove(const std::string& request_id) ABSL_LOCKS_EXCLUDED(mutex_);

  // False if no request of this id is in flight.
  bool Abort(const std::string& request_id) ABSL_LOCKS_EXCLUDED(mutex_);
  // kNone too if no request of this id is in flight.
  CancelCause CauseOf(const std::string& request_id) const ABSL_LOCKS_EXCLUDED(mutex_);

  void AddAwaiting(const std::shared_ptr<AwaitsRequest>& call) ABSL_LOCKS_EXCLUDED(mutex_);
  // No-op if it is unknown.
  void RemoveAwaiting(const AwaitsRequest& call) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives up all that were added and not removed.
  void GiveUpAwaiting(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);

  // RPCs that a drain waits for, from their first to their last moment (longer than a request).
  void OpenRpc() ABSL_LOCKS_EXCLUDED(mutex_);
  void CloseRpc() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until none is open. False: `timeout` passed first.
  bool WaitUntilNoneOpen(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  void EnterUnread(const std::shared_ptr<UnreadCall>& call) ABSL_LOCKS_EXCLUDED(mutex_);
  // What the client has still to take of the call. No-op if it is unknown.
  void SetUnreadBytes(const UnreadCall& call, int64_t bytes, Readable readable)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // No-op if it is unknown.
  void LeaveUnread(const UnreadCall& call) ABSL_LOCKS_EXCLUDED(mutex_);
  // Cuts calls that were readable for longer than `time`, of those the ones with the most to take,
  // until the others hold at most `max_bytes` or nothing is left that would free any.
  void CutUnread(absl::Duration time, int64_t max_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  int unread() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Requests in flight and those unread calls, together: no request is missed on its way from one
  // to the other.
  int unfinished() const ABSL_LOCKS_EXCLUDED(mutex_);
  // What the clients of all unread calls have still to take.
  int64_t unread_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Clock = std::chrono::steady_clock;

  struct Unread {
    std::weak_ptr<UnreadCall> call;
    std::optional<Clock::time_point> readable_since;
    int64_t bytes = 0;
  };

  std::shared_ptr<Abortable> Find(const std::string& request_id) const ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::weak_ptr<Abortable>> calls_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<const AwaitsRequest*, std::weak_ptr<AwaitsRequest>> awaiting_
      ABSL_GUARDED_BY(mutex_);
  int open_rpcs_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<const UnreadCall*, Unread> unread_ ABSL_GUARDED_BY(mutex_);
  int64_t unread_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // the sum of them
};

}  // namespace bst
