#include "engine/backend/cuda/cuda_device.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kFirstArenaBytes = size_t{1} << 20;
constexpr int kMaxCounts = kAlignment / sizeof(int32_t);  // different ones of a step
constexpr int kExactSizes = 4;                            // up to which every size is its own

void ReleaseDevice(void* data, size_t /*bytes*/) { cuda::FreeDevice(data); }
void ReleasePinned(void* data, size_t /*bytes*/) { cuda::FreePinned(data); }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open() {
  auto device = std::unique_ptr<CudaDevice>(new CudaDevice());
  BST_ASSIGN_OR_RETURN(device->name_, cuda::OpenDevice());
  BST_ASSIGN_OR_RETURN(device->stream_, cuda::CreateStream());
  BST_RETURN_IF_ERROR(device->AddBlock(kFirstArenaBytes));
  return device;
}

CudaDevice::~CudaDevice() {
  scratch_ = Buffer();
  FreeBlocks(0, arena_.size());
  if (stream_ != nullptr) cuda::DestroyStream(stream_);
}

absl::StatusOr<Buffer> CudaDevice::Allocate(size_t bytes) {
  graphs_.Clear();  // somebody loads
  BST_ASSIGN_OR_RETURN(void* const data, cuda::AllocateDevice(bytes));
  Buffer buffer(data, bytes, ReleaseDevice);
  cuda::Fill(stream(), data, 0, bytes);
  BST_RETURN_IF_ERROR(Sync());
  return buffer;
}

absl::StatusOr<Buffer> CudaDevice::AllocateHostReadable(size_t bytes) {
  BST_ASSIGN_OR_RETURN(void* const data, cuda::AllocatePinned(bytes));
  std::memset(data, 0, bytes);
  return Buffer(data, bytes, ReleasePinned);
}

absl::StatusOr<Buffer> CudaDevice::Upload(const void* data, size_t bytes) {
  BST_ASSIGN_OR_RETURN(void* const copy, cuda::AllocateDevice(bytes));
  Buffer buffer(copy, bytes, ReleaseDevice);
  cuda::Copy(stream(), copy, data, bytes);
  BST_RETURN_IF_ERROR(Sync());
  return buffer;
}

const void* CudaDevice::StageBytes(const void* data, size_t bytes, size_t room) {
  const size_t rounded = (room + kAlignment - 1) / kAlignment * kAlignment;
  if (arena_.back().used + rounded > arena_.back().bytes) {
    const absl::Status added = AddBlock(std::max(rounded, arena_.back().bytes));
    if (!added.ok()) {
      cuda::Fail(stream(), added);
      return arena_.back().staged;
    }
  }
  Block& block = arena_.back();
  std::byte* const pinned = block.pinned + block.used;
  std::byte* const staged = block.staged + block.used;
  block.used += rounded;
  step_bytes_ += rounded;
  if (bytes > 0) {
    std::memcpy(pinned, data, bytes);
    if (!in_step_) cuda::Copy(stream(), staged, pinned, bytes);  // a step's go all at once
  }
  return staged;
}

void CudaDevice::Download(const void* staged, void* to, size_t bytes) {
  EndStep();
  const auto* const from = static_cast<const std::byte*>(staged);
  const auto block = std::find_if(arena_.begin(), arena_.end(), [&](const Block& b) {
    return std::less_equal<>()(b.staged, from) && std::less<>()(from, b.staged + b.bytes);
  });
  BST_CHECK(block != arena_.end(), "not a place that Stage gave");
  std::byte* const pinned = block->pinned + (from - block->staged);
  cuda::Copy(stream(), pinned, staged, bytes);
  if (cuda::Synchronize(stream()).ok()) std::memcpy(to, pinned, bytes);
  EmptyArena();
}

absl::Status CudaDevice::AddBlock(size_t bytes) {
  BST_ASSIGN_OR_RETURN(void* const pinned, cuda::AllocatePinned(bytes));
  absl::StatusOr<void*> staged = cuda::AllocateDevice(bytes);
  if (!staged.ok()) {
    cuda::FreePinned(pinned);
    return staged.status();
  }
  arena_.push_back({.pinned = static_cast<std::byte*>(pinned),
                    .staged = static_cast<std::byte*>(*staged),
                    .bytes = bytes,
                    .used = 0});
  return absl::OkStatus();
}

void CudaDevice::FreeBlocks(size_t first, size_t end) {
  if (first == end) return;
  graphs_.Clear();  // they name them
  for (size_t i = first; i < end; ++i) {
    cuda::FreePinned(arena_[i].pinned);
    cuda::FreeDevice(arena_[i].staged);
  }
  arena_.erase(arena_.begin() + static_cast<std::ptrdiff_t>(first),
               arena_.begin() + static_cast<std::ptrdiff_t>(end));
}

absl::Status CudaDevice::ReserveScratch(size_t bytes) {
  if (bytes <= scratch_.bytes()) return absl::OkStatus();
  BST_ASSIGN_OR_RETURN(scratch_, Allocate(bytes));
  return absl::OkStatus();
}

void CudaDevice::BeginStep() {
  EndStep();
  (void)Sync();  // the arena must lie as it did in the step like this one
  in_step_ = true;
  cuda::StartRecording(stream(), &step_);
  Block& block = arena_.back();
  counts_ = reinterpret_cast<int32_t*>(block.pinned);
  staged_counts_ = reinterpret_cast<const int32_t*>(block.staged);
  num_counts_ = 0;
  block.used = kAlignment;
  step_bytes_ = kAlignment;
}

size_t CudaDevice::GraphSize(size_t n) {
  const size_t above = std::bit_ceil(n), between = above / 4 * 3;
  return n <= between ? between : above;
}

cuda::RowCount CudaDevice::Count(int rows) {
  const auto size = static_cast<int>(GraphSize(static_cast<size_t>(rows)));
  if (!in_step_ || size <= kExactSizes) return {rows, nullptr};
  const auto known = std::find(counts_, counts_ + num_counts_, rows);
  if (known == counts_ + num_counts_) {
    if (num_counts_ == kMaxCounts) return {rows, nullptr};
    counts_[num_counts_++] = rows;
  }
  return {size, staged_counts_ + (known - counts_)};
}

void CudaDevice::EndStep() {
  if (!in_step_) return;
  in_step_ = false;
  cuda::StopRecording(stream());
  for (const Block& block : arena_) {
    if (block.used > 0) cuda::Copy(stream(), block.staged, block.pinned, block.used);
  }
  graphs_.Run(stream(), step_);
  step_.clear();
}

absl::Status CudaDevice::Flush() {
  EndStep();
  const absl::Status status = cuda::Synchronize(stream());
  EmptyArena();
  return status;
}

void CudaDevice::EmptyArena() {
  FreeBlocks(0, arena_.size() - 1);
  arena_.back().used = 0;
}

absl::Status CudaDevice::Sync() {
  absl::Status status = Flush();
  const size_t bytes = std::exchange(step_bytes_, 0);
  // The next step of this size stays in one block; if there is no memory for it, it will not.
  const size_t block_bytes = arena_.back().bytes;
  if (bytes > block_bytes && status.ok() && AddBlock(std::max(bytes, 2 * block_bytes)).ok())
    FreeBlocks(0, 1);
  return status;
}

}  // namespace bst
