// CudaDevice: one stream, the memory on its device, and the arena through which operators hand host
// data to kernels.
//
// Arena       One block of memory, pinned and the same on the device, that was large enough for the
//             largest step so far. A step that finds it too small goes on in further blocks, which
//             the next Sync replaces by one: nothing that was staged moves or is overwritten
//             before.
// Ownership   Owns stream and arena; must outlive the buffers it gave.
// Threads     One.
// Errors      Allocations: kResourceExhausted. Others stick, an arena that cannot grow among them:
//             Sync(); nothing is enqueued after one.
// Tested by   tests/engine/backend/cuda
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/cuda/call_list.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/backend/cuda/runtime.h"
#include "engine/backend/cuda/step_graphs.h"
#include "engine/tensor/buffer.h"

namespace bst {

class CudaDevice {
 public:
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open();
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice();

  const std::string& name() const { return name_; }
  cuda::Stream& stream() { return *stream_; }

  absl::StatusOr<Buffer> Allocate(size_t bytes);  // zeroed
  absl::StatusOr<Buffer> AllocateHostReadable(size_t bytes);
  // Device memory with a copy of host memory, complete on return.
  absl::StatusOr<Buffer> Upload(const void* data, size_t bytes);

  // A copy of `values` for the kernels enqueued until the next Sync or Download.
  template <typename T>
  const T* Stage(absl::Span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t room = in_step_ ? GraphSize(values.size()) : values.size();
    return static_cast<const T*>(
        StageBytes(values.data(), values.size() * sizeof(T), room * sizeof(T)));
  }
  // What kernels have written to a place that Stage gave since the last Sync, complete on return.
  void Download(const void* staged, void* to, size_t bytes);

  // Memory for one operator at a time, of at least what was reserved: at load, so that a step
  // allocates nothing.
  absl::Status ReserveScratch(size_t bytes);
  std::byte* scratch() const { return static_cast<std::byte*>(scratch_.data()); }

  // What follows until Sync is a step that may be like an earlier one, and then runs as a graph
  // (step_graphs.h). Before that nothing of it runs.
  void BeginStep();
  bool in_step() const { return in_step_; }
  // So that steps of nearly as many rows are one graph, the kernels of a step are launched for the
  // next of a few sizes and find the number itself in the arena; what is staged has as much room.
  cuda::RowCount Count(int rows);
  // 1, 2, 3, 4, 6, 8, 12, 16, 24 ..
  static size_t GraphSize(size_t n);

  // Also makes the arena as large as what was staged since the last one.
  absl::Status Sync();

 private:
  struct Block {
    std::byte* pinned;
    std::byte* staged;  // on the device
    size_t bytes;
    size_t used;
  };

  CudaDevice() = default;
  void EndStep();
  absl::Status Flush();  // waits, and empties the arena
  void EmptyArena();
  const void* StageBytes(const void* data, size_t bytes, size_t room);
  absl::Status AddBlock(size_t bytes);
  void FreeBlocks(size_t first, size_t end);

  std::string name_;
  cuda::Stream* stream_ = nullptr;
  std::vector<Block> arena_;  // the last one is filled; between steps there is one
  size_t step_bytes_ = 0;     // staged since the last Sync
  Buffer scratch_;

  bool in_step_ = false;
  // What Count gave in this step, in the arena's first bytes.
  int32_t* counts_ = nullptr;
  const int32_t* staged_counts_ = nullptr;
  int num_counts_ = 0;
  cuda::CallList step_;
  StepGraphs graphs_{/*capacity=*/64};
};

}  // namespace bst
