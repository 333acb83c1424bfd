// Tells ThreadSanitizer of Abseil's locks. Debian's Abseil is not instrumented, so every access
// that an absl::Mutex orders would be reported as a race.
//
// The linker sends our calls of the functions below here (--wrap, cmake/BstTargets.cmake; in builds
// for ThreadSanitizer only), and from here to the real ones. Calls that are not wrapped, such as
// ReaderLock or CondVar, would show as false reports: add them when they are used.
//
// Await polls. The real one lets other threads evaluate the condition inside their Unlock, after
// the sanitizer was told that they no longer hold the lock.
#include <sanitizer/tsan_interface.h>

#include <chrono>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

// BST_WRAP(result, name, symbol, parameters): the real function as Real<name>, ours as
// Wrapped<name>.
#define BST_WRAP(result, name, symbol, ...)                 \
  result Real##name(__VA_ARGS__) __asm__("__real_" symbol); \
  result Wrapped##name(__VA_ARGS__) __asm__("__wrap_" symbol)

namespace bst {
namespace {

constexpr std::chrono::microseconds kPoll(200);

}  // namespace

BST_WRAP(void, Lock, "_ZN4absl7debian35Mutex4LockEv", absl::Mutex* mutex);
BST_WRAP(void, Unlock, "_ZN4absl7debian35Mutex6UnlockEv", absl::Mutex* mutex);
BST_WRAP(void, Destroy, "_ZN4absl7debian35MutexD1Ev", absl::Mutex* mutex);
BST_WRAP(void, Await, "_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE", absl::Mutex* mutex,
         const absl::Condition& condition);
BST_WRAP(bool, AwaitWithTimeout,
         "_ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE",
         absl::Mutex* mutex, const absl::Condition& condition, absl::Duration timeout);
BST_WRAP(bool, AwaitWithDeadline,
         "_ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE",
         absl::Mutex* mutex, const absl::Condition& condition, absl::Time deadline);
BST_WRAP(void, Notify, "_ZN4absl7debian312Notification6NotifyEv", absl::Notification* notification);
BST_WRAP(void, WaitForNotification, "_ZNK4absl7debian312Notification19WaitForNotificationEv",
         const absl::Notification* notification);

void WrappedLock(absl::Mutex* mutex) {
  __tsan_mutex_pre_lock(mutex, 0);
  RealLock(mutex);
  __tsan_mutex_post_lock(mutex, 0, 0);
}

void WrappedUnlock(absl::Mutex* mutex) {
  __tsan_mutex_pre_unlock(mutex, 0);
  RealUnlock(mutex);
  __tsan_mutex_post_unlock(mutex, 0);
}

void WrappedDestroy(absl::Mutex* mutex) {
  __tsan_mutex_destroy(mutex, 0);
  RealDestroy(mutex);
}

void WrappedAwait(absl::Mutex* mutex, const absl::Condition& condition) {
  WrappedAwaitWithDeadline(mutex, condition, absl::InfiniteFuture());
}

bool WrappedAwaitWithTimeout(absl::Mutex* mutex, const absl::Condition& condition,
                             absl::Duration timeout) {
  return WrappedAwaitWithDeadline(mutex, condition, absl::Now() + timeout);
}

bool WrappedAwaitWithDeadline(absl::Mutex* mutex, const absl::Condition& condition,
                              absl::Time deadline) {
  while (!condition.Eval()) {
    if (absl::Now() >= deadline) return false;
    WrappedUnlock(mutex);
    std::this_thread::sleep_for(kPoll);
    WrappedLock(mutex);
  }
  return true;
}

void WrappedNotify(absl::Notification* notification) {
  __tsan_release(notification);
  RealNotify(notification);
}

void WrappedWaitForNotification(const absl::Notification* notification) {
  RealWaitForNotification(notification);
  __tsan_acquire(const_cast<absl::Notification*>(notification));
}

}  // namespace bst
