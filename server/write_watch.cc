#include "server/write_watch.h"

#include <grpcpp/server_context.h>

namespace bst {

void WriteWatch::Begin() {
  absl::MutexLock lock(&mutex_);
  begun_ = Clock::now();
  if (!alarm_is_set_) SetAlarm(limit_);
}

void WriteWatch::End() {
  absl::MutexLock lock(&mutex_);
  begun_.reset();
}

void WriteWatch::Close() {
  absl::MutexLock lock(&mutex_);
  is_over_ = true;
  begun_.reset();
  alarm_.reset();
}

void WriteWatch::Cut() {
  absl::MutexLock lock(&mutex_);
  if (!is_over_) EndCall(Stall::kOutput);
}

void WriteWatch::SetAlarm(Clock::duration delay) {
  alarm_is_set_ = true;
  // A new one each time: the old one may still be returning from the callback that led here.
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(std::chrono::system_clock::now() + delay, [watch = weak_from_this()](bool expired) {
    if (!expired) return;
    if (const auto self = watch.lock(); self != nullptr) self->OnAlarm();
  });
}

void WriteWatch::OnAlarm() {
  absl::MutexLock lock(&mutex_);
  alarm_is_set_ = false;
  if (!begun_.has_value()) return;
  const Clock::duration elapsed = Clock::now() - *begun_;
  if (elapsed < limit_) return SetAlarm(limit_ - elapsed);
  if (!is_over_) EndCall(Stall::kMessage);
}

void WriteWatch::EndCall(Stall why) {
  is_over_ = true;
  begun_.reset();
  // Under the lock, or the RPC could be done meanwhile: reactions come on other threads.
  on_stall_(why);
  context_.TryCancel();
}

}  // namespace bst
