// engine/backend/cuda/runtime.h on the emulated device. A stream is a queue that runs when somebody
// waits for it; device memory is host memory that begins as NaN.
#include "engine/backend/cuda/runtime.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/launch.h"
#include "tests/support/cuda_on_cpu/emulator.h"
#include "tests/support/cuda_on_cpu/libraries.h"

namespace bst::cuda {

class Stream {
 public:
  void Push(std::function<absl::Status()> task) { tasks_.push_back(std::move(task)); }
  // Runs what was enqueued. After an error nothing runs any more, as on a device.
  void Drain() {
    while (!tasks_.empty()) {
      const std::function<absl::Status()> task = std::move(tasks_.front());
      tasks_.pop_front();
      if (status_.ok()) status_ = task();
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  std::deque<std::function<absl::Status()>> tasks_;
  absl::Status status_;
};

namespace {

std::set<Stream*>& Streams() {
  static auto* const streams = new std::set<Stream*>();
  return *streams;
}

absl::StatusOr<void*> AllocateHost(size_t bytes) {
  void* data = std::malloc(bytes == 0 ? 1 : bytes);
  if (data == nullptr) return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes"));
  std::memset(data, 0xff, bytes);
  return data;
}

void FreeHost(void* data) {
  for (Stream* stream : Streams()) stream->Drain();
  std::free(data);
}

}  // namespace

absl::StatusOr<std::string> OpenDevice() { return "emulated"; }

absl::StatusOr<void*> AllocateDevice(size_t bytes) { return AllocateHost(bytes); }
void FreeDevice(void* data) { FreeHost(data); }
absl::StatusOr<void*> AllocatePinned(size_t bytes) { return AllocateHost(bytes); }
void FreePinned(void* data) { FreeHost(data); }

absl::StatusOr<Stream*> CreateStream() {
  auto* stream = new Stream();
  Streams().insert(stream);
  return stream;
}
void DestroyStream(Stream* stream) {
  stream->Drain();
  Streams().erase(stream);
  delete stream;
}

void Copy(Stream& stream, void* to, const void* from, size_t bytes) {
  stream.Push([=] {
    std::memmove(to, from, bytes);
    return absl::OkStatus();
  });
}
void Fill(Stream& stream, void* to, int byte, size_t bytes) {
  stream.Push([=] {
    std::memset(to, byte, bytes);
    return absl::OkStatus();
  });
}
void Enqueue(Stream& stream, const char* kernel, const LaunchShape& shape,
             std::function<void()> thread) {
  stream.Push([=] {
    const std::string problem = cuda_on_cpu::RunKernel(kernel, shape, thread);
    return problem.empty() ? absl::OkStatus() : absl::InternalError(problem);
  });
}

void Fail(Stream& stream, const absl::Status& status) {
  stream.Push([=] { return status; });
}

absl::Status Synchronize(Stream& stream) {
  stream.Drain();
  return stream.status();
}

}  // namespace bst::cuda

namespace bst::cuda_on_cpu {

void EnqueueOnHost(cuda::Stream& stream, std::function<void()> task) {
  stream.Push([task = std::move(task)] {
    task();
    return absl::OkStatus();
  });
}

}  // namespace bst::cuda_on_cpu
