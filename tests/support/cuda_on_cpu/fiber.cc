#include "tests/support/cuda_on_cpu/fiber.h"

#include <sys/mman.h>

#include <cstdint>

#include "engine/base/check.h"
#ifdef BST_FIBERS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef BST_FIBERS_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// void bst_switch_stack(void** save, void* load): what the System V ABI keeps across a call goes to
// the old stack and comes from the new one. The floating-point control words are nobody's to
// change.
__asm__(R"(
    .text
    .globl bst_switch_stack
    .type bst_switch_stack, @function
bst_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size bst_switch_stack, .-bst_switch_stack

    .globl bst_enter_fiber
    .type bst_enter_fiber, @function
bst_enter_fiber:
    movq %r12, %rdi
    callq *%r13
    ud2
    .size bst_enter_fiber, .-bst_enter_fiber
)");
extern "C" void bst_switch_stack(void** save, void* load);
extern "C" void bst_enter_fiber();

namespace bst::cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kGuardBytes = 4096;
constexpr size_t kLineBytes = 64;
constexpr size_t kNumLines = 64;

// Stacks begin at different lines of their pages. Otherwise the same frame of all fibers would lie
// in one set of the first-level cache.
size_t NextColour() {
  static size_t colour = 0;
  return colour = (colour + 5) % kNumLines;
}

}  // namespace

Fiber::Fiber(void (*run)(void*), void* argument) : run_(run), argument_(argument) {
  stack_ = ::mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  BST_CHECK(stack_ != MAP_FAILED, "no memory for a stack");
  BST_CHECK(::mprotect(stack_, kGuardBytes, PROT_NONE) == 0, "no guard page");
  // What the first switch pops: r15 r14 r13 r12 rbx rbp, then the address it returns to, where the
  // stack is aligned to 16 bytes for the call.
  auto* top = reinterpret_cast<uint64_t*>(static_cast<std::byte*>(stack_) + kGuardBytes +
                                          kStackBytes - NextColour() * kLineBytes);
  top -= 9;
  top[0] = top[1] = top[4] = top[5] = top[7] = top[8] = 0;
  top[2] = reinterpret_cast<uint64_t>(&Fiber::Enter);  // r13
  top[3] = reinterpret_cast<uint64_t>(this);           // r12
  top[6] = reinterpret_cast<uint64_t>(&bst_enter_fiber);
  inside_ = top;
#ifdef BST_FIBERS_TSAN
  inside_tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef BST_FIBERS_TSAN
  __tsan_destroy_fiber(inside_tsan_);
#endif
#ifdef BST_FIBERS_ASAN
  // Frames that were left where they stood; the next stack may lie at this address.
  __asan_unpoison_memory_region(static_cast<std::byte*>(stack_) + kGuardBytes, kStackBytes);
#endif
  ::munmap(stack_, kGuardBytes + kStackBytes);
}

void Fiber::Enter(Fiber* fiber) {
#ifdef BST_FIBERS_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &fiber->outside_stack_, &fiber->outside_bytes_);
#endif
  fiber->run_(fiber->argument_);
}

void Fiber::Resume() {
#ifdef BST_FIBERS_ASAN
  __sanitizer_start_switch_fiber(&outside_fake_stack_,
                                 static_cast<std::byte*>(stack_) + kGuardBytes, kStackBytes);
#endif
#ifdef BST_FIBERS_TSAN
  outside_tsan_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(inside_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  bst_switch_stack(&outside_, inside_);
#ifdef BST_FIBERS_ASAN
  __sanitizer_finish_switch_fiber(outside_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::Suspend() {
#ifdef BST_FIBERS_ASAN
  __sanitizer_start_switch_fiber(&inside_fake_stack_, outside_stack_, outside_bytes_);
#endif
#ifdef BST_FIBERS_TSAN
  __tsan_switch_to_fiber(outside_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  bst_switch_stack(&inside_, outside_);
#ifdef BST_FIBERS_ASAN
  __sanitizer_finish_switch_fiber(inside_fake_stack_, &outside_stack_, &outside_bytes_);
#endif
}

#ifdef BST_FIBERS_TSAN
void Release(void* address) { __tsan_release(address); }
void Acquire(void* address) { __tsan_acquire(address); }
#else
void Release(void*) {}
void Acquire(void*) {}
#endif

}  // namespace bst::cuda_on_cpu
