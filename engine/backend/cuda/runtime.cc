#include "engine/backend/cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/launch.h"
#include "engine/backend/cuda/runtime_stream.h"

namespace bst::cuda {
namespace {

// Keeps the first failure of a stream.
void Keep(Stream& stream, cudaError_t error, const char* what) {
  if (error == cudaSuccess || !stream.status.ok()) return;
  stream.status = absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

absl::Status OutOfMemory(size_t bytes, const char* where, cudaError_t error) {
  (void)cudaGetLastError();  // it would show up in later calls
  return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes of ", where,
                                                   ": ", cudaGetErrorString(error)));
}

}  // namespace

absl::StatusOr<std::string> OpenDevice() {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaErrorInsufficientDriver || found == cudaErrorStubLibrary) {
    return absl::UnavailableError(absl::StrCat("no CUDA driver: ", cudaGetErrorString(found)));
  }
  if (found != cudaSuccess || count == 0) {
    return absl::UnavailableError(absl::StrCat(
        "no CUDA device: ", found == cudaSuccess ? "none found" : cudaGetErrorString(found)));
  }
  cudaDeviceProp properties;
  cudaError_t error = cudaSetDevice(0);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, 0);
  if (error != cudaSuccess) {
    return absl::UnavailableError(
        absl::StrCat("the CUDA device cannot be used: ", cudaGetErrorString(error)));
  }
  if (properties.major < 8) {
    return absl::UnavailableError(absl::StrCat(properties.name, " has compute capability ",
                                               properties.major, ".", properties.minor,
                                               ", 8.0 is needed"));
  }
  return std::string(properties.name);
}

std::optional<DeviceMemory> MemoryOfDevice() {
  DeviceMemory memory;
  if (cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes) == cudaSuccess) return memory;
  (void)cudaGetLastError();
  return std::nullopt;
}

absl::StatusOr<void*> AllocateDevice(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes == 0 ? 1 : bytes);
  if (error != cudaSuccess) return OutOfMemory(bytes, "device memory", error);
  return data;
}
void FreeDevice(void* data) { (void)cudaFree(data); }
absl::StatusOr<void*> AllocatePinned(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error =
      cudaHostAlloc(&data, bytes == 0 ? 1 : bytes, cudaHostAllocPortable | cudaHostAllocMapped);
  if (error != cudaSuccess) return OutOfMemory(bytes, "pinned memory", error);
  return data;
}
void FreePinned(void* data) { (void)cudaFreeHost(data); }

absl::StatusOr<StreamPtr> CreateStream() {
  auto stream = std::make_unique<Stream>();
  const cudaError_t error = cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking);
  if (error != cudaSuccess) {
    return absl::UnavailableError(
        absl::StrCat("cannot make a CUDA stream: ", cudaGetErrorString(error)));
  }
  return StreamPtr(stream.release());
}
void StreamDeleter::operator()(Stream* stream) const {
  (void)cudaStreamSynchronize(stream->handle);
  (void)cudaStreamDestroy(stream->handle);
  delete stream;
}

namespace {

struct CopyCall {
  void* to;
  const void* from;
  size_t bytes;
};
void MakeCopy(Stream& stream, const CopyCall& call) {
  if (!stream.status.ok()) return;
  Keep(stream, cudaMemcpyAsync(call.to, call.from, call.bytes, cudaMemcpyDefault, stream.handle),
       "a copy");
}

struct FillCall {
  void* to;
  size_t bytes;
  int byte;
};
void MakeFill(Stream& stream, const FillCall& call) {
  if (!stream.status.ok()) return;
  Keep(stream, cudaMemsetAsync(call.to, call.byte, call.bytes, stream.handle), "a fill");
}

}  // namespace

void Copy(Stream& stream, void* to, const void* from, size_t bytes) {
  CallOrKeep<MakeCopy>(stream, CopyCall{to, from, bytes});
}
void Fill(Stream& stream, void* to, int byte, size_t bytes) {
  CallOrKeep<MakeFill>(stream, FillCall{to, bytes, byte});
}
void LaunchRaw(const void* kernel, const char* name, const LaunchShape& shape, Stream& stream,
               void** arguments) {
  if (!stream.status.ok()) return;
  const Grid grid = GridOf(shape);
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.rows),
                    static_cast<unsigned>(grid.layers));
  const dim3 threads(static_cast<unsigned>(shape.threads));
  Keep(stream,
       cudaLaunchKernel(kernel, blocks, threads, arguments, static_cast<size_t>(shape.shared_bytes),
                        stream.handle),
       name);
}
// Of a kernel that is allowed much, as many blocks as fit share a multiprocessor: by itself the
// driver may leave more of the memory to the first-level cache.
int AllowShared(const void* kernel, const char* name, int bytes, Stream& stream) {
  int most = 0;
  Keep(stream, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), name);
  if (bytes > most) bytes = most;
  Keep(stream, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
       name);
  Keep(stream,
       cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                            cudaSharedmemCarveoutMaxShared),
       name);
  return bytes;
}

void StartRecording(Stream& stream, CallList* list) { stream.recording = list; }
void StopRecording(Stream& stream) { stream.recording = nullptr; }
CallList* Recording(const Stream& stream) { return stream.recording; }

class Graph {
 public:
  cudaGraphExec_t handle = nullptr;
};

bool BeginCapture(Stream& stream) {
  if (!stream.status.ok()) return false;
  if (cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeThreadLocal) == cudaSuccess)
    return true;
  (void)cudaGetLastError();  // it would show up in later calls
  return false;
}
GraphPtr EndCapture(Stream& stream) {
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t handle = nullptr;
  const bool ended =
      cudaStreamEndCapture(stream.handle, &captured) == cudaSuccess && captured != nullptr;
  const bool made =
      ended && stream.status.ok() && cudaGraphInstantiate(&handle, captured, 0) == cudaSuccess;
  if (captured != nullptr) (void)cudaGraphDestroy(captured);
  (void)cudaGetLastError();  // what kept it from being captured is no error of the stream
  stream.status = absl::OkStatus();
  return GraphPtr(made ? new Graph{.handle = handle} : nullptr);
}
bool LaunchGraph(Stream& stream, const Graph& graph) {
  if (!stream.status.ok()) return true;  // nothing runs any more
  if (cudaGraphLaunch(graph.handle, stream.handle) == cudaSuccess) return true;
  (void)cudaGetLastError();  // a fault of the device stays, and the calls tell of it
  return false;
}
void GraphDeleter::operator()(Graph* graph) const {
  (void)cudaGraphExecDestroy(graph->handle);
  delete graph;
}

void Fail(Stream& stream, const absl::Status& status) {
  if (stream.status.ok()) stream.status = status;
}

absl::Status Synchronize(Stream& stream) {
  Keep(stream, cudaStreamSynchronize(stream.handle), "the device");
  return stream.status;
}

double Measure(Stream& stream, const std::function<void()>& enqueue) {
  cudaEvent_t begin = nullptr, end = nullptr;
  float milliseconds = 0.0f;
  Keep(stream, cudaEventCreate(&begin), "an event");
  Keep(stream, cudaEventCreate(&end), "an event");
  if (stream.status.ok()) {
    Keep(stream, cudaEventRecord(begin, stream.handle), "an event");
    enqueue();
    Keep(stream, cudaEventRecord(end, stream.handle), "an event");
    if (Synchronize(stream).ok())
      Keep(stream, cudaEventElapsedTime(&milliseconds, begin, end), "an event");
  }
  if (begin != nullptr) (void)cudaEventDestroy(begin);
  if (end != nullptr) (void)cudaEventDestroy(end);
  return 1e3 * static_cast<double>(milliseconds);
}

}  // namespace bst::cuda
