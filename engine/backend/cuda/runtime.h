// The part of the CUDA runtime that the backend uses: memory, one kind of copy, streams. There are
// two implementations: runtime.cc over cudart, and the emulation in tests/support/cuda_on_cpu,
// where a stream runs nothing before somebody waits for it, so that a missing Synchronize shows.
//
// Errors    Open, the Allocate functions and CreateStream say what the driver says. Later ones
//           stick to the stream: Synchronize returns the first, with what failed.
// Threads   One, but for MemoryOfDevice.
// Tested by tests/support/cuda_on_cpu/emulator_test.cc, tests/engine/backend/cuda
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/device_memory.h"

namespace bst::cuda {

class CallList;
class Stream;

// Makes device 0 the one that all else here means. Returns its name, "NVIDIA H100 80GB HBM3".
// Errors: kUnavailable, "no CUDA driver: ...", "no CUDA device: ...".
absl::StatusOr<std::string> OpenDevice();

// nullopt where the driver does not say. Any thread.
std::optional<DeviceMemory> MemoryOfDevice();

// Device memory, uninitialised. Free waits for what uses it.
absl::StatusOr<void*> AllocateDevice(size_t bytes);
void FreeDevice(void* data);
// Host memory that copies reach without a stop, and that kernels may address.
absl::StatusOr<void*> AllocatePinned(size_t bytes);
void FreePinned(void* data);

// Waits for what the stream was given.
struct StreamDeleter {
  void operator()(Stream* stream) const;
};
using StreamPtr = std::unique_ptr<Stream, StreamDeleter>;
absl::StatusOr<StreamPtr> CreateStream();

// Enqueued; host memory among the two is pinned and stays as it is until the stream was waited for.
void Copy(Stream& stream, void* to, const void* from, size_t bytes);
void Fill(Stream& stream, void* to, int byte, size_t bytes);

// Between the two, what the stream is given goes to `list` instead (call_list.h); whoever has it
// makes the calls.
void StartRecording(Stream& stream, CallList* list);
void StopRecording(Stream& stream);

// A CUDA graph of what the stream was given between BeginCapture and EndCapture, which does not run
// by itself. False or null where that cannot be; the stream then is as before. So it is where
// LaunchGraph says false: it enqueued nothing.
class Graph;
struct GraphDeleter {
  void operator()(Graph* graph) const;
};
using GraphPtr = std::unique_ptr<Graph, GraphDeleter>;
bool BeginCapture(Stream& stream);
GraphPtr EndCapture(Stream& stream);
bool LaunchGraph(Stream& stream, const Graph& graph);

// The stream has failed: nothing that is enqueued from now on runs, Synchronize says why.
void Fail(Stream& stream, const absl::Status& status);

absl::Status Synchronize(Stream& stream);

// Microseconds that the device takes for what `enqueue` gives the stream; waits for it. The
// emulation says 0, so that what is chosen by it is always the same.
double Measure(Stream& stream, const std::function<void()>& enqueue);

}  // namespace bst::cuda
