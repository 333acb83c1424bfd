// Tells ThreadSanitizer of Abseil's locks. Debian's Abseil and gRPC are not instrumented, so every
// access that an absl::Mutex orders would be reported as a race.
//
// Programs that are built for ThreadSanitizer (cmake/BstTargets.cmake) define these functions of
// Abseil themselves. The dynamic linker then sends our calls and those of gRPC's libraries here,
// and from here they go to the real ones. Functions that are not here, such as ReaderLock, would
// show as false reports: add them when they are used.
//
// Await polls. The real one lets other threads evaluate the condition inside their Unlock, after
// the sanitizer was told that they no longer hold the lock.
#include <sanitizer/tsan_interface.h>

#include <chrono>
#include <cstdint>
#include <thread>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/support/real_function.h"

#define BST_ABSEIL "_ZN4absl7debian3"
#define BST_ABSEIL_CONST "_ZNK4absl7debian3"

// Exported by TSan's runtime, but in no header of gcc 12.
extern "C" void __tsan_ignore_thread_begin();
extern "C" void __tsan_ignore_thread_end();

namespace {

constexpr std::chrono::microseconds kPoll(200);

// Its lifetime is a wait that unlocks the mutex and locks it again.
class ScopedWait {
 public:
  explicit ScopedWait(absl::Mutex* mutex) : mutex_(mutex) {
    __tsan_mutex_pre_unlock(mutex_, 0);
    __tsan_mutex_post_unlock(mutex_, 0);
  }
  ~ScopedWait() {
    __tsan_mutex_pre_lock(mutex_, 0);
    __tsan_mutex_post_lock(mutex_, 0, 0);
  }
  ScopedWait(const ScopedWait&) = delete;
  ScopedWait& operator=(const ScopedWait&) = delete;

 private:
  absl::Mutex* const mutex_;
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

Mutex::~Mutex() {
  static auto* const real = bst::RealFunction<void(Mutex*)>(BST_ABSEIL "5MutexD1Ev");
  __tsan_mutex_destroy(this, 0);
  real(this);
}

void Mutex::Lock() {
  static auto* const real = bst::RealFunction<void(Mutex*)>(BST_ABSEIL "5Mutex4LockEv");
  __tsan_mutex_pre_lock(this, 0);
  real(this);
  __tsan_mutex_post_lock(this, 0, 0);
}

bool Mutex::TryLock() {
  static auto* const real = bst::RealFunction<bool(Mutex*)>(BST_ABSEIL "5Mutex7TryLockEv");
  __tsan_mutex_pre_lock(this, __tsan_mutex_try_lock);
  const bool locked = real(this);
  __tsan_mutex_post_lock(this, __tsan_mutex_try_lock | (locked ? 0 : __tsan_mutex_try_lock_failed),
                         0);
  return locked;
}

void Mutex::Unlock() {
  static auto* const real = bst::RealFunction<void(Mutex*)>(BST_ABSEIL "5Mutex6UnlockEv");
  __tsan_mutex_pre_unlock(this, 0);
  real(this);
  __tsan_mutex_post_unlock(this, 0);
}

void Mutex::Await(const Condition& condition) { AwaitWithDeadline(condition, InfiniteFuture()); }

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  return AwaitWithDeadline(condition, Now() + timeout);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  while (!condition.Eval()) {
    if (Now() >= deadline) return false;
    Unlock();
    std::this_thread::sleep_for(kPoll);
    Lock();
  }
  return true;
}

void Mutex::LockWhen(const Condition& condition) {
  Lock();
  Await(condition);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  Lock();
  return AwaitWithTimeout(condition, timeout);
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  Lock();
  return AwaitWithDeadline(condition, deadline);
}

void CondVar::Wait(Mutex* mutex) { WaitWithDeadline(mutex, InfiniteFuture()); }

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  return WaitWithDeadline(mutex, Now() + timeout);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const real = bst::RealFunction<bool(CondVar*, Mutex*, Time)>(
      BST_ABSEIL "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
  const ScopedWait wait(mutex);
  return real(this, mutex, deadline);
}

void Notification::Notify() {
  static auto* const real =
      bst::RealFunction<void(Notification*)>(BST_ABSEIL "12Notification6NotifyEv");
  __tsan_release(this);
  real(this);
}

void Notification::WaitForNotification() const {
  static auto* const real = bst::RealFunction<void(const Notification*)>(
      BST_ABSEIL_CONST "12Notification19WaitForNotificationEv");
  real(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

// Copies of a status share its text, and the last of them deletes it. Our code raises the count,
// the library lowers it in an order that TSan cannot see, and deletes where TSan can.
void Status::UnrefNonInlined(uintptr_t rep) {
  static auto* const real =
      bst::RealFunction<void(uintptr_t)>(BST_ABSEIL "6Status15UnrefNonInlinedEm");
  __tsan_ignore_thread_begin();
  real(rep);
  __tsan_ignore_thread_end();
}

ABSL_NAMESPACE_END
}  // namespace absl

// Of Debian's libraries TSan sees no more than their calls of the C library, and not the spin locks
// and atomics that order them. With these, gRPC also hands objects with a mutex to other threads.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libabsl_graphcycles_internal.so\n"
         "called_from_lib:libabsl_random_internal_pool_urbg.so\n"
         "called_from_lib:libgpr.so\n"
         "called_from_lib:libgrpc.so\n"
         "called_from_lib:libgrpc++.so\n"
         "called_from_lib:libupb.so\n"
         "called_from_lib:libabsl_status.so\n"
         "called_from_lib:libabsl_cord.so\n"
         "called_from_lib:libabsl_strings.so\n"
         "called_from_lib:libabsl_time.so\n"
         "called_from_lib:libabsl_time_zone.so\n"
         "called_from_lib:libprotobuf.so\n"
         "race_top:gmtime$\n"  // Civetweb calls it from all of its threads
         // Texts of statuses, in strings whose functions the library takes from the program.
         "race:^absl::debian3::CopyCordToString\n"
         "race:^grpc::internal::CallOpClientRecvStatus::FinishOp\n"
         "called_from_lib:libssl.so\n"
         "called_from_lib:libcrypto.so\n"
         "thread:^grpc_core::Thread::Thread\n"  // its own, over but not joined at the exit
         // Calls are counted down in the library.
         "race:^grpc::internal::Callback*Handler<*>::ServerCallback*Impl::~\n"
         "mutex:^google::protobuf::internal::MapField\n"
         "race_top:^__tsan_mutex_\n";
}

// --version exits inside Abseil's parser of flags, which then destroys a mutex that it holds. Weak:
// a test may have options of its own.
extern "C" [[gnu::weak]] const char* __tsan_default_options() { return "report_destroy_locked=0"; }
