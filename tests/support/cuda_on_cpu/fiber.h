// Fiber: a stack with a function running on it, and the switch between it and whoever resumes it.
// Six registers change hands, which takes two nanoseconds; ucontext asks the kernel each time.
//
// The sanitizers are told of every switch where the build says BST_FIBERS_ASAN or BST_FIBERS_TSAN.
//
// Ownership   The fiber owns its stack; its function must not own anything when it is destroyed.
// Threads     The one that made it.
// Tested by   tests/support/cuda_on_cpu/emulator_test.cc
#pragma once

#include <cstddef>

namespace bst::cuda_on_cpu {

class Fiber {
 public:
  // `run(argument)` never returns: it suspends for good when it has nothing to do.
  Fiber(void (*run)(void* argument), void* argument);
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  void Resume();   // from outside; returns when the fiber suspends
  void Suspend();  // from inside

 private:
  static void Enter(Fiber* fiber);

  void (*run_)(void*);
  void* argument_;
  void* stack_;
  void* inside_;  // saved stack pointers
  void* outside_ = nullptr;
  // The sanitizers' own.
  void* inside_fake_stack_ = nullptr;
  void* outside_fake_stack_ = nullptr;
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
  void* inside_tsan_ = nullptr;
  void* outside_tsan_ = nullptr;
};

// Nothing unless the build is for ThreadSanitizer.
void Release(void* address);
void Acquire(void* address);

}  // namespace bst::cuda_on_cpu
