#include "tests/support/cuda_on_cpu/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/base/check.h"
#include "tests/support/cuda_on_cpu/device.h"
#include "tests/support/cuda_on_cpu/fiber.h"
#ifdef BST_FIBERS_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace bst::cuda_on_cpu {
namespace {

constexpr int kLanes = 32;
// What any device takes: CUDA C++ Programming Guide, "Technical Specifications per Compute
// Capability". Not taken from launch.h, which is under test.
constexpr int kMostGridRows = 65535;  // in y and in z
constexpr int kMostThreads = 1024;
constexpr size_t kGuardBytes = 64;
constexpr int kGuard = 0xa5;
constexpr int kPoison = 0xff;  // as float32: NaN; as an index: out of any bounds
// Shared memory of one block. ThreadSanitizer must not see a later block's use as a race with this
// one's, so there each block of a launch gets addresses of its own.
constexpr size_t kSharedBytes = size_t{227} << 10;
constexpr int kUnaskedSharedBytes = 48 << 10;
#ifdef BST_FIBERS_TSAN
constexpr size_t kArenaBytes = size_t{1} << 32;
constexpr bool kFreshSharedMemory = true;
#else
constexpr size_t kArenaBytes = 2 * kSharedBytes;
constexpr bool kFreshSharedMemory = false;
#endif

struct Place {
  const char* file = nullptr;
  unsigned line = 0;
  bool operator==(const Place& other) const { return file == other.file && line == other.line; }
  std::string ToString() const {
    const char* slash = std::strrchr(file, '/');
    return absl::StrCat(slash == nullptr ? file : slash + 1, ":", line);
  }
};

enum class State { kReady, kAtBarrier, kAtWarpOperation, kReturned };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  State state = State::kReturned;
  Place place;
  Copies copies;
};

// The lanes' words of one operation; the next one uses the other set, since a slow lane may still
// read this one.
struct Warp {
  int arrived = 0;
  unsigned operation = 0;
  Place place;
  std::array<WarpWords, 2> words = {};
};

struct Array {
  const void* tag;
  const char* name;
  std::byte* data;
  size_t bytes;
};

class Multiprocessor {
 public:
  std::string Run(const char* kernel, const cuda::LaunchShape& shape,
                  const std::function<void()>& thread);

  void SetOrder(Order order, uint32_t seed) {
    order_ = order;
    random_.seed(seed);
  }
  const std::set<std::string>& launched() const { return launched_; }

  int thread() const { return thread_; }
  int block_x() const { return block_x_; }
  int block_y() const { return block_y_; }
  int num_threads() const { return num_threads_; }

  void Barrier(const Place& place);
  // `combine`: by the last lane, before any goes on.
  const WarpWords& WarpOperation(absl::Span<const uint64_t> words, const Place& place,
                                 void (*combine)(WarpWords&) = nullptr);
  void* Shared(const void* tag, const char* name, size_t bytes);
  void* DynamicShared(const void* tag, const char* name) {
    return Shared(tag, name, dynamic_bytes_);
  }
  int AllowShared(const char* kernel, int bytes) {
    return allowed_[kernel] = std::min(bytes, most_shared_);
  }
  void SetMostShared(int bytes) { most_shared_ = bytes; }
  Copies& copies() { return threads_[static_cast<size_t>(thread_)].copies; }
  void NoteMisaligned() { misaligned_ = true; }

 private:
  static void RunThreads(void* self);
  std::string RunBlock();
  std::vector<int> InOrder(int n);
  void Wait(State state, const Place& place);
  std::string Divergence() const;
  void CheckGuards();
  void Fail(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
  }

  Order order_ = Order::kForward;
  std::mt19937 random_;
  std::set<std::string> launched_;
  std::map<std::string, int> allowed_;  // dynamic shared memory, by kernel
  int most_shared_ = static_cast<int>(kSharedBytes);

  // The launch.
  const std::function<void()>* body_ = nullptr;
  int num_threads_ = 0;
  size_t dynamic_bytes_ = 0;
  bool misaligned_ = false;
  std::string problem_;
  // Places that threads met at but that differ. Fibers note it, the host makes the message of it.
  const char* mismatch_ = nullptr;
  std::array<Place, 2> mismatched_;
  std::vector<Thread> threads_;
  std::byte* arena_ = nullptr;
  size_t arena_used_ = 0;

  // The block, and the thread that runs.
  int block_x_ = 0, block_y_ = 0, thread_ = 0;
  int at_barrier_ = 0;
  Place barrier_;
  unsigned barriers_ = 0;
  std::array<char, 2> barrier_sync_ = {};  // addresses for ThreadSanitizer, in turn
  char launch_sync_ = 0;                   // from the host to the fibers
  char host_sync_ = 0;                     // and back
  std::vector<Warp> warps_;
  std::vector<Array> arrays_;
};

// No local static, whose guard would be asked at every step of every thread.
Multiprocessor& g_device = *new Multiprocessor();
Multiprocessor& Device() { return g_device; }

std::string Multiprocessor::Run(const char* kernel, const cuda::LaunchShape& shape,
                                const std::function<void()>& thread) {
  constexpr const char* kOrderNames[] = {"forward", "reversed", "shuffled"};
  launched_.insert(absl::StrCat(kernel, " ", kOrderNames[static_cast<int>(order_)]));
  const cuda::Grid grid = cuda::GridOf(shape);
  if (grid.x < 1 || grid.rows < 1 || grid.rows > kMostGridRows || grid.layers < 1 ||
      grid.layers > kMostGridRows || shape.threads < 1 || shape.threads > kMostThreads ||
      shape.threads % kLanes != 0) {
    return absl::StrCat(kernel, ": a launch of ", grid.x, " x ", grid.rows, " x ", grid.layers,
                        " blocks of ", shape.threads, " threads");
  }
  const auto allowed = allowed_.find(kernel);
  if (shape.shared_bytes > (allowed == allowed_.end() ? kUnaskedSharedBytes : allowed->second))
    return absl::StrCat(kernel, ": a launch with ", shape.shared_bytes, " bytes of shared memory");
  if (arena_ == nullptr) {
    void* arena = ::mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    BST_CHECK(arena != MAP_FAILED, "no memory for shared arrays");
    arena_ = static_cast<std::byte*>(arena);
  }
  body_ = &thread;
  num_threads_ = shape.threads;
  dynamic_bytes_ = static_cast<size_t>(shape.shared_bytes);
  misaligned_ = false;
  problem_.clear();
  mismatch_ = nullptr;
  arena_used_ = 0;
  if (threads_.size() < static_cast<size_t>(num_threads_))
    threads_.resize(static_cast<size_t>(num_threads_));
  for (Thread& t : threads_) {
    if (t.fiber == nullptr) t.fiber = std::make_unique<Fiber>(&RunThreads, this);
  }
  warps_.resize(static_cast<size_t>(num_threads_ / kLanes));  // before the release: fibers read it
  Release(&launch_sync_);
  // Blocks in the order of the mode; the columns first.
  for (const int y : InOrder(grid.rows * grid.layers)) {
    for (const int x : InOrder(grid.x)) {
      block_x_ = x;
      block_y_ = y;
      const std::string problem = RunBlock();
      if (mismatch_ != nullptr) {
        Fail(absl::StrCat(mismatch_, ", ", mismatched_[0].ToString(), " and ",
                          mismatched_[1].ToString()));
      }
      if (misaligned_) Fail("a copy that is not aligned");
      Fail(problem);
      Acquire(&host_sync_);
      if (!problem_.empty()) return absl::StrCat(kernel, ", block (", x, ", ", y, "): ", problem_);
    }
  }
  return "";
}

void Multiprocessor::RunThreads(void* self) {
  auto& device = *static_cast<Multiprocessor*>(self);
  for (;;) {
    Acquire(&device.launch_sync_);
    (*device.body_)();
    device.Wait(State::kReturned, {});
  }
}

std::vector<int> Multiprocessor::InOrder(int n) {
  std::vector<int> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  if (order_ == Order::kReversed) std::reverse(order.begin(), order.end());
  if (order_ == Order::kShuffled) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

std::string Multiprocessor::RunBlock() {
  at_barrier_ = 0;
  for (Warp& warp : warps_) warp.arrived = 0;
  arrays_.clear();
  if (!kFreshSharedMemory) arena_used_ = 0;
  for (int i = 0; i < num_threads_; ++i) threads_[static_cast<size_t>(i)].state = State::kReady;
  std::vector<int> order = InOrder(num_threads_);
  // A warp runs until all its lanes wait for others, which keeps its stacks in the cache; shuffled,
  // every thread is on its own.
  const int group = order_ == Order::kShuffled ? num_threads_ : kLanes;
  for (int returned = 0; returned < num_threads_;) {
    bool progress = false;
    for (int first = 0; first < num_threads_; first += group) {
      for (bool ran = true; ran;) {
        ran = false;
        for (int at = first; at < first + group; ++at) {
          const int i = order[static_cast<size_t>(at)];
          Thread& thread = threads_[static_cast<size_t>(i)];
          if (thread.state != State::kReady) continue;
          ran = true;
          thread_ = i;
          thread.fiber->Resume();
          if (thread.state == State::kReturned) ++returned;
        }
        progress = progress || ran;
        if (order_ == Order::kShuffled) break;
      }
    }
    if (!progress) {
      const std::string problem = Divergence();
      // Their stacks cannot be unwound; kernels own nothing.
      for (Thread& thread : threads_) {
        thread.fiber = nullptr;
        thread.state = State::kReturned;
        thread.copies = {};
      }
      return problem;
    }
    if (order_ == Order::kShuffled) std::shuffle(order.begin(), order.end(), random_);
  }
  CheckGuards();
  for (int i = 0; i < num_threads_; ++i) {
    Copies& copies = threads_[static_cast<size_t>(i)].copies;
    if (!copies.started.empty()) Fail("a copy that its thread has not waited for");
    copies.started.clear();
    copies.groups.clear();
  }
  return "";
}

void Multiprocessor::Wait(State state, const Place& place) {
  Release(&host_sync_);  // of a launch that ends here
  Thread& thread = threads_[static_cast<size_t>(thread_)];
  thread.state = state;
  thread.place = place;
  thread.fiber->Suspend();
}

void Multiprocessor::Barrier(const Place& place) {
  const unsigned number = barriers_;
  if (at_barrier_ == 0) barrier_ = place;
  if (!(barrier_ == place) && mismatch_ == nullptr) {
    mismatch_ = "threads meet at two barriers";
    mismatched_ = {barrier_, place};
  }
  // Two addresses in turn: a thread that has gone on and arrives at the next barrier must not give
  // what it did in between to one that has not yet left this one.
  Release(&barrier_sync_[number % 2]);
  if (++at_barrier_ == num_threads_) {
    at_barrier_ = 0;
    ++barriers_;
    for (int i = 0; i < num_threads_; ++i) threads_[static_cast<size_t>(i)].state = State::kReady;
  } else {
    Wait(State::kAtBarrier, place);
  }
  Acquire(&barrier_sync_[number % 2]);
}

// A warp's operations order nothing in memory, so the sanitizer is told nothing.
const WarpWords& Multiprocessor::WarpOperation(absl::Span<const uint64_t> given, const Place& place,
                                               void (*combine)(WarpWords&)) {
  const int first = thread_ / kLanes * kLanes;
  Warp& warp = warps_[static_cast<size_t>(thread_ / kLanes)];
  if (warp.arrived == 0) warp.place = place;
  if (!(warp.place == place) && mismatch_ == nullptr) {
    mismatch_ = "lanes of a warp meet in two operations";
    mismatched_ = {warp.place, place};
  }
  WarpWords& words = warp.words[warp.operation % 2];
  for (size_t i = 0; i < given.size(); ++i)
    words[i][static_cast<size_t>(thread_ - first)] = given[i];
  if (++warp.arrived == kLanes) {
    if (combine != nullptr) combine(words);
    warp.arrived = 0;
    ++warp.operation;
    for (int i = first; i < first + kLanes; ++i)
      threads_[static_cast<size_t>(i)].state = State::kReady;
  } else {
    Wait(State::kAtWarpOperation, place);
  }
  return words;
}

void* Multiprocessor::Shared(const void* tag, const char* name, size_t bytes) {
  for (const Array& array : arrays_) {
    if (array.tag == tag) return array.data;
  }
  const size_t rounded = (bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes;
  size_t total = rounded;
  for (const Array& array : arrays_) total += array.bytes;
  BST_CHECK(total <= kSharedBytes, "shared arrays of ", total, " bytes");
  BST_CHECK(arena_used_ + rounded + 2 * kGuardBytes <= kArenaBytes, "too many blocks");
  std::byte* const before = arena_ + arena_used_;
  std::byte* const data = before + kGuardBytes;
  arena_used_ += rounded + 2 * kGuardBytes;
#ifdef BST_FIBERS_ASAN
  __asan_unpoison_memory_region(before, rounded + 2 * kGuardBytes);
#endif
#ifndef BST_FIBERS_TSAN  // whose memset would be this thread's write
  std::memset(before, kGuard, rounded + 2 * kGuardBytes);
  std::memset(data, kPoison, bytes);
#endif
#ifdef BST_FIBERS_ASAN
  __asan_poison_memory_region(before, kGuardBytes);
  __asan_poison_memory_region(data + bytes, rounded - bytes + kGuardBytes);
#endif
  arrays_.push_back({tag, name, data, bytes});
  return data;
}

void Multiprocessor::CheckGuards() {
#ifndef BST_FIBERS_TSAN
  const auto intact = [](const std::byte* begin, const std::byte* end) {
    return std::all_of(begin, end, [](std::byte b) { return b == std::byte{kGuard}; });
  };
  for (const Array& array : arrays_) {
    const size_t rounded = (array.bytes + kGuardBytes - 1) / kGuardBytes * kGuardBytes;
#ifdef BST_FIBERS_ASAN
    __asan_unpoison_memory_region(array.data - kGuardBytes, rounded + 2 * kGuardBytes);
#endif
    if (!intact(array.data - kGuardBytes, array.data) ||
        !intact(array.data + array.bytes, array.data + rounded + kGuardBytes)) {
      Fail(absl::StrCat("a write beyond the shared array ", array.name));
    }
  }
#endif
}

std::string Multiprocessor::Divergence() const {
  int returned = 0, barrier = 0, warp = 0;
  Place place;
  for (int i = 0; i < num_threads_; ++i) {
    const Thread& thread = threads_[static_cast<size_t>(i)];
    returned += thread.state == State::kReturned;
    barrier += thread.state == State::kAtBarrier;
    warp += thread.state == State::kAtWarpOperation;
    if (thread.state != State::kReturned) place = thread.place;
  }
  return absl::StrCat("of ", num_threads_, " threads ", barrier, " wait at a barrier, ", warp,
                      " in a warp operation, and ", returned, " have returned; one waits at ",
                      place.ToString());
}

// Of mma.sync.aligned.m16n8k16 with BF16 factors ("Matrix Fragments" in the PTX manual), every sum
// in the order of k.
void MultiplyTilesOfWarp(WarpWords& words) {
  constexpr size_t kRows = 16, kColumns = 8, kDepth = 16;
  const auto number = [](uint64_t word, size_t quarter) {  // BF16
    return std::bit_cast<float>(static_cast<uint32_t>(word >> (16 * quarter) & 0xffff) << 16);
  };
  float a[kRows][kDepth], b[kDepth][kColumns], c[kRows][kColumns];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t g = lane / 4, t = lane % 4 * 2;
    for (size_t i = 0; i < 2; ++i) {
      for (size_t half = 0; half < 2; ++half) {
        a[g + 8 * half][t + i] = number(words[0][lane], 2 * half + i);
        a[g + 8 * half][t + i + 8] = number(words[1][lane], 2 * half + i);
        b[t + i + 8 * half][g] = number(words[2][lane], 2 * half + i);
      }
    }
    std::memcpy(&c[g][t], &words[3][lane], sizeof(uint64_t));
    std::memcpy(&c[g + 8][t], &words[4][lane], sizeof(uint64_t));
  }
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t k = 0; k < kDepth; ++k) {
      for (size_t j = 0; j < kColumns; ++j) c[i][j] = std::fmaf(a[i][k], b[k][j], c[i][j]);
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t g = lane / 4, t = lane % 4 * 2;
    std::memcpy(&words[3][lane], &c[g][t], sizeof(uint64_t));
    std::memcpy(&words[4][lane], &c[g + 8][t], sizeof(uint64_t));
  }
}

}  // namespace

void SetOrder(Order order, uint32_t seed) { Device().SetOrder(order, seed); }
std::set<std::string> LaunchedKernels() { return Device().launched(); }

int AllowShared(const char* kernel, int bytes) { return Device().AllowShared(kernel, bytes); }
void SetMostShared(int bytes) { Device().SetMostShared(bytes); }

std::string RunKernel(const char* kernel, const cuda::LaunchShape& shape,
                      const std::function<void()>& thread) {
  return Device().Run(kernel, shape, thread);
}

int ThreadX() { return Device().thread(); }
int BlockX() { return Device().block_x(); }
int BlockY() { return Device().block_y(); }
int NumThreads() { return Device().num_threads(); }
int Lane() { return Device().thread() % kLanes; }
void* SharedArray(const void* tag, const char* name, size_t bytes) {
  return Device().Shared(tag, name, bytes);
}
void* DynamicSharedArray(const void* tag, const char* name) {
  return Device().DynamicShared(tag, name);
}
Copies& CopiesOfThread() { return Device().copies(); }
void NoteMisaligned() { Device().NoteMisaligned(); }
void SyncThreads(const char* file, unsigned line) { Device().Barrier({file, line}); }
const WarpWords& MultiplyTiles(const std::array<uint64_t, 5>& words, const char* file,
                               unsigned line) {
  return Device().WarpOperation(words, {file, line}, &MultiplyTilesOfWarp);
}
uint64_t Exchange(uint64_t value, int from_lane, const char* file, unsigned line) {
  return Device().WarpOperation({&value, 1}, {file, line})[0][static_cast<size_t>(from_lane)];
}
uint32_t Ballot(bool value, const char* file, unsigned line) {
  const uint64_t word = value ? 1 : 0;
  const auto& words = Device().WarpOperation({&word, 1}, {file, line})[0];
  uint32_t ballot = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    ballot |= static_cast<uint32_t>(words[static_cast<size_t>(lane)]) << lane;
  return ballot;
}

}  // namespace bst::cuda_on_cpu
