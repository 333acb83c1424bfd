// CudaDevice: one stream, the memory on its device, and the arena through which operators hand host
// data to kernels.
//
// Arena       Blocks of memory, pinned and the same on the device: as a rule one, made at load. A
//             step that needs more goes on in further ones, which stay: so nothing that was staged
//             moves, steps that stage the same find the same places, and a step like one before
//             allocates nothing. Where there is no memory for another block, all that was enqueued
//             is waited for, and what finished operators had staged gives way.
// Ownership   Owns stream and arena; must outlive the buffers it gave.
// Threads     One.
// Errors      Allocations: kResourceExhausted. Others stick, among them an operator that needs more
//             than an arena that cannot grow: Sync(); nothing is enqueued after one.
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
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(size_t arena_bytes);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

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
  // All that needs what was staged so far has been enqueued.
  void EndOperator();

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

  absl::Status Sync();

 private:
  struct Block {
    std::byte* pinned() const { return static_cast<std::byte*>(host.data()); }
    std::byte* staged() const { return static_cast<std::byte*>(device.data()); }
    size_t bytes() const { return host.bytes(); }

    Buffer host, device;  // as large
    size_t end;           // of what may be used
    size_t used = 0;
    size_t kept = 0;        // where the present operator began
    bool is_split = false;  // it has more behind `end`
  };

  CudaDevice() = default;
  void EndStep();
  void EmptyArena();
  const void* StageBytes(const void* data, size_t bytes, size_t room);
  // Makes `current_` a block that has so much room, of those from it on.
  bool FindRoom(size_t bytes);
  absl::Status Grow(size_t bytes);
  absl::Status AddBlock(size_t bytes);
  // Waits; what finished operators had staged gives way to so many bytes of the present one, which
  // lie behind what it has in a block already, or else before that.
  void ReuseArena(size_t bytes);

  std::string name_;
  cuda::StreamPtr stream_;  // goes last, the memory before it and graphs, which name that, first
  std::vector<Block> arena_;
  size_t current_ = 0;  // the block that is filled
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
