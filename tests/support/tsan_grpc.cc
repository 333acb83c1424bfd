// Tells ThreadSanitizer that what a thread did before it handed gRPC an operation comes before what
// the thread does that takes the finished operation from the queue. Debian's gRPC is not
// instrumented, and between the two lie atomics of its own.
//
// Programs that are built for ThreadSanitizer and use gRPC define these functions of gRPC
// themselves; see tsan_abseil.cc.
#include <grpc/grpc.h>
#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>
#include <sanitizer/tsan_interface.h>

#include <functional>
#include <memory>
#include <utility>

#include "tests/support/real_function.h"

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t nops, void* tag,
                                      void* reserved) {
  static auto* const real =
      bst::RealFunction<decltype(grpc_call_start_batch)>("grpc_call_start_batch");
  __tsan_release(tag);
  return real(call, ops, nops, tag, reserved);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  static auto* const real =
      bst::RealFunction<decltype(grpc_completion_queue_next)>("grpc_completion_queue_next");
  const grpc_event event = real(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  static auto* const real =
      bst::RealFunction<decltype(grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  const grpc_event event = real(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

// A server that is gone comes after the last of its calls.
static char calls_are_over;

void grpc_call_unref(grpc_call* call) {
  static auto* const real = bst::RealFunction<decltype(grpc_call_unref)>("grpc_call_unref");
  __tsan_release(&calls_are_over);
  real(call);
}

void grpc_server_destroy(grpc_server* server) {
  static auto* const real = bst::RealFunction<decltype(grpc_server_destroy)>("grpc_server_destroy");
  real(server);
  __tsan_acquire(&calls_are_over);
}

}  // extern "C"

namespace {

// Every use of it, its end too, comes after those that were before.
class Ordered {
 public:
  Ordered() { __tsan_release(point_.get()); }
  Ordered(const Ordered& other) : point_(other.point_) { __tsan_release(point_.get()); }
  Ordered& operator=(const Ordered&) = delete;
  ~Ordered() { Use(); }
  void Use() const {
    __tsan_acquire(point_.get());
    __tsan_release(point_.get());
  }

 private:
  std::shared_ptr<char> point_ = std::make_shared<char>();
};

}  // namespace

void grpc::Alarm::SetInternal(gpr_timespec deadline, std::function<void(bool)> f) {
  using Function = void(Alarm*, gpr_timespec, std::function<void(bool)>);
  static auto* const real =
      bst::RealFunction<Function>("_ZN4grpc5Alarm11SetInternalE12gpr_timespecSt8functionIFvbEE");
  real(this, deadline, [f = std::move(f), order = Ordered()](bool ok) {
    order.Use();
    f(ok);
    order.Use();
  });
}

// The last to leave a call may be the library, whose count of those that are left TSan does not
// see.
void grpc::internal::ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  using Function = void(ServerCallbackCall*, bool);
  static auto* const real =
      bst::RealFunction<Function>("_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  __tsan_acquire(&callbacks_outstanding_);
  real(this, inline_ondone);
}
