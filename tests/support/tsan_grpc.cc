// Tells ThreadSanitizer that what a thread did before it handed gRPC an operation comes before what
// the thread does that takes the finished operation from the queue. Debian's gRPC is not
// instrumented, and between the two lie atomics of its own.
//
// Programs that are built for ThreadSanitizer and use gRPC define these functions of gRPC
// themselves; see tsan_abseil.cc.
#include <grpc/grpc.h>
#include <grpcpp/alarm.h>
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

}  // extern "C"

void grpc::Alarm::SetInternal(gpr_timespec deadline, std::function<void(bool)> f) {
  using Function = void(Alarm*, gpr_timespec, std::function<void(bool)>);
  static auto* const real =
      bst::RealFunction<Function>("_ZN4grpc5Alarm11SetInternalE12gpr_timespecSt8functionIFvbEE");
  auto order = std::make_shared<char>();
  __tsan_release(order.get());
  real(this, deadline, [order, f = std::move(f)](bool ok) {
    __tsan_acquire(order.get());
    f(ok);
  });
}
