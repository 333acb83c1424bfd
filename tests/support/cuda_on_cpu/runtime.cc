// engine/backend/cuda/runtime.h on the emulated device. A stream is a queue that runs when somebody
// waits for it, and then whatever other streams hold may run as well, in between, in an order that
// a seed decides; device memory is host memory that begins as NaN.
#include "engine/backend/cuda/runtime.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/launch.h"
#include "tests/support/cuda_on_cpu/emulator.h"
#include "tests/support/cuda_on_cpu/libraries.h"

namespace bst::cuda {

using Task = std::function<absl::Status()>;

namespace {
bool discards = false;
}

class Stream {
 public:
  void Push(Task task) {
    if (!discards) (capturing_ ? captured_ : tasks_).push_back(std::move(task));
  }
  bool is_empty() const { return tasks_.empty(); }
  // After an error nothing runs any more, as on a device.
  void RunOne() {
    const Task task = std::move(tasks_.front());
    tasks_.pop_front();
    if (status_.ok()) status_ = task();
  }
  void BeginCapture() { capturing_ = true; }
  bool is_capturing() const { return capturing_; }
  std::deque<Task> EndCapture() {
    capturing_ = false;
    return std::exchange(captured_, {});
  }
  const absl::Status& status() const { return status_; }

  CallList* recording = nullptr;

 private:
  std::deque<Task> tasks_, captured_;
  bool capturing_ = false;
  absl::Status status_;
};

class Graph {
 public:
  std::deque<Task> tasks;
};

namespace {

std::vector<Stream*>& Streams() {
  static auto* const streams = new std::vector<Stream*>();
  return *streams;
}

std::mt19937& StreamOrder() {
  static auto* const order = new std::mt19937(1);
  return *order;
}

int graph_launches = 0;
int single_kernels = 0;
cuda_on_cpu::CaptureFails capture_fails = cuda_on_cpu::CaptureFails::kNever;
bool kernels_unknown = false;
std::atomic<size_t> device_bytes{0};
size_t largest_allocation = std::numeric_limits<size_t>::max();

// Until `stream` has run what it was given; null: until all have.
void Drain(const Stream* stream) {
  for (;;) {
    std::vector<Stream*> ready;
    for (Stream* s : Streams()) {
      if (!s->is_empty()) ready.push_back(s);
    }
    if (stream == nullptr ? ready.empty() : stream->is_empty()) return;
    ready[StreamOrder()() % ready.size()]->RunOne();
  }
}

absl::StatusOr<void*> AllocateHost(size_t bytes) {
  constexpr size_t kAlignment = 256;  // as cudaMalloc's
  void* data = nullptr;
  if (bytes > largest_allocation || posix_memalign(&data, kAlignment, bytes == 0 ? 1 : bytes) != 0)
    return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes"));
  std::memset(data, 0xff, bytes);
  return data;
}

void FreeHost(void* data) {
  Drain(nullptr);
  std::free(data);
}

}  // namespace

absl::StatusOr<std::string> OpenDevice() { return "emulated"; }

std::optional<DeviceMemory> MemoryOfDevice() {
  constexpr size_t kTotal = size_t{64} << 30;
  return DeviceMemory{.total_bytes = kTotal, .free_bytes = kTotal - device_bytes};
}

absl::StatusOr<void*> AllocateDevice(size_t bytes) {
  absl::StatusOr<void*> data = AllocateHost(bytes);
  if (data.ok()) device_bytes += malloc_usable_size(*data);
  return data;
}
void FreeDevice(void* data) {
  device_bytes -= malloc_usable_size(data);
  FreeHost(data);
}
absl::StatusOr<void*> AllocatePinned(size_t bytes) { return AllocateHost(bytes); }
void FreePinned(void* data) { FreeHost(data); }

absl::StatusOr<StreamPtr> CreateStream() {
  StreamPtr stream(new Stream());
  Streams().push_back(stream.get());
  return stream;
}
void StreamDeleter::operator()(Stream* stream) const {
  Drain(stream);
  Streams().erase(std::find(Streams().begin(), Streams().end(), stream));
  delete stream;
}

namespace {

struct CopyCall {
  void* to;
  const void* from;
  size_t bytes;
};
void MakeCopy(Stream& stream, const CopyCall& call) {
  if (discards) return;  // a task is on the heap already
  stream.Push([=] {
    std::memmove(call.to, call.from, call.bytes);
    return absl::OkStatus();
  });
}

struct FillCall {
  void* to;
  size_t bytes;
  int byte;
};
void MakeFill(Stream& stream, const FillCall& call) {
  stream.Push([=] {
    std::memset(call.to, call.byte, call.bytes);
    return absl::OkStatus();
  });
}

}  // namespace

void Copy(Stream& stream, void* to, const void* from, size_t bytes) {
  CallOrKeep<MakeCopy>(stream, CopyCall{to, from, bytes});
}
void Fill(Stream& stream, void* to, int byte, size_t bytes) {
  CallOrKeep<MakeFill>(stream, FillCall{to, bytes, byte});
}
void Enqueue(Stream& stream, const char* kernel, const LaunchShape& shape,
             std::function<void()> thread) {
  if (!stream.is_capturing()) ++single_kernels;
  stream.Push([=] {
    const std::string problem = cuda_on_cpu::RunKernel(kernel, shape, thread);
    return problem.empty() ? absl::OkStatus() : absl::InternalError(problem);
  });
}

int AllowShared(const void* /*kernel*/, const char* name, int bytes, Stream& stream) {
  if (kernels_unknown) {
    stream.Push([name] { return absl::InternalError(absl::StrCat(name, ": unknown")); });
  }
  return cuda_on_cpu::AllowShared(name, bytes);
}

void StartRecording(Stream& stream, CallList* list) { stream.recording = list; }
void StopRecording(Stream& stream) { stream.recording = nullptr; }
CallList* Recording(const Stream& stream) { return stream.recording; }

bool BeginCapture(Stream& stream) {
  if (capture_fails == cuda_on_cpu::CaptureFails::kAtBegin) return false;
  stream.BeginCapture();
  return true;
}
GraphPtr EndCapture(Stream& stream) {
  std::deque<Task> tasks = stream.EndCapture();
  if (capture_fails == cuda_on_cpu::CaptureFails::kAtEnd) return nullptr;
  return GraphPtr(new Graph{.tasks = std::move(tasks)});
}
bool LaunchGraph(Stream& stream, const Graph& graph) {
  if (capture_fails == cuda_on_cpu::CaptureFails::kAtLaunch) return false;
  ++graph_launches;
  if (discards) return true;
  for (const Task& task : graph.tasks) stream.Push(task);
  return true;
}
void GraphDeleter::operator()(Graph* graph) const { delete graph; }

void Fail(Stream& stream, const absl::Status& status) {
  stream.Push([=] { return status; });
}

absl::Status Synchronize(Stream& stream) {
  Drain(&stream);
  return stream.status();
}
double Measure(Stream& stream, const std::function<void()>& enqueue) {
  enqueue();
  Drain(&stream);
  return 0.0;
}

}  // namespace bst::cuda

namespace bst::cuda_on_cpu {

void SetStreamOrder(uint32_t seed) { cuda::StreamOrder().seed(seed); }
int NumGraphLaunches() { return cuda::graph_launches; }
int NumSingleKernels() { return cuda::single_kernels; }
void SetCaptureFails(CaptureFails fails) { cuda::capture_fails = fails; }
void SetKernelsUnknown(bool unknown) { cuda::kernels_unknown = unknown; }
void SetLargestAllocation(size_t bytes) { cuda::largest_allocation = bytes; }
void SetDiscards(bool discards) { cuda::discards = discards; }

void EnqueueOnHost(cuda::Stream& stream, std::function<void()> task) {
  stream.Push([task = std::move(task)] {
    task();
    return absl::OkStatus();
  });
}

}  // namespace bst::cuda_on_cpu
