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
constexpr int kMaxCounts = kAlignment / sizeof(int32_t);  // different ones of a step
constexpr int kExactSizes = 4;                            // up to which every size is its own

// Uninitialised.
absl::StatusOr<Buffer> DeviceBuffer(size_t bytes) {
  BST_ASSIGN_OR_RETURN(void* const data, cuda::AllocateDevice(bytes));
  return Buffer(data, bytes, [](void* memory, size_t /*bytes*/) { cuda::FreeDevice(memory); });
}
absl::StatusOr<Buffer> PinnedBuffer(size_t bytes) {
  BST_ASSIGN_OR_RETURN(void* const data, cuda::AllocatePinned(bytes));
  return Buffer(data, bytes, [](void* memory, size_t /*bytes*/) { cuda::FreePinned(memory); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(size_t arena_bytes) {
  auto device = std::unique_ptr<CudaDevice>(new CudaDevice());
  BST_ASSIGN_OR_RETURN(device->name_, cuda::OpenDevice());
  BST_ASSIGN_OR_RETURN(device->stream_, cuda::CreateStream());
  BST_RETURN_IF_ERROR(device->AddBlock(std::max(arena_bytes, kAlignment)));
  return device;
}

absl::StatusOr<Buffer> CudaDevice::Allocate(size_t bytes) {
  graphs_.Clear();  // somebody loads
  BST_ASSIGN_OR_RETURN(Buffer buffer, DeviceBuffer(bytes));
  cuda::Fill(stream(), buffer.data(), 0, bytes);
  BST_RETURN_IF_ERROR(Sync());
  return buffer;
}

absl::StatusOr<Buffer> CudaDevice::AllocateHostReadable(size_t bytes) {
  BST_ASSIGN_OR_RETURN(Buffer buffer, PinnedBuffer(bytes));
  std::memset(buffer.data(), 0, bytes);
  return buffer;
}

absl::StatusOr<Buffer> CudaDevice::Upload(const void* data, size_t bytes) {
  BST_ASSIGN_OR_RETURN(Buffer buffer, DeviceBuffer(bytes));
  cuda::Copy(stream(), buffer.data(), data, bytes);
  BST_RETURN_IF_ERROR(Sync());
  return buffer;
}

const void* CudaDevice::StageBytes(const void* data, size_t bytes, size_t room) {
  // Nothing has a place too, of its own and within a block.
  const size_t rounded = (std::max<size_t>(room, 1) + kAlignment - 1) / kAlignment * kAlignment;
  if (!FindRoom(rounded)) {
    const absl::Status grown = Grow(rounded);
    if (!grown.ok()) ReuseArena(rounded);
    if (!FindRoom(rounded)) {
      cuda::Fail(stream(), grown);
      return arena_.front().staged();
    }
  }
  Block& block = arena_[current_];
  std::byte* const pinned = block.pinned() + block.used;
  std::byte* const staged = block.staged() + block.used;
  block.used += rounded;
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
    return std::less_equal<>()(b.staged(), from) && std::less<>()(from, b.staged() + b.bytes());
  });
  BST_CHECK(block != arena_.end(), "not a place that Stage gave");
  std::byte* const pinned = block->pinned() + (from - block->staged());
  cuda::Copy(stream(), pinned, staged, bytes);
  if (cuda::Synchronize(stream()).ok()) std::memcpy(to, pinned, bytes);
  EmptyArena();
}

bool CudaDevice::FindRoom(size_t bytes) {
  for (size_t i = current_; i < arena_.size(); ++i) {
    if (arena_[i].end - arena_[i].used < bytes) continue;
    current_ = i;
    return true;
  }
  return false;
}

// By as much as there is, so that blocks are few; where that cannot be had, by what is needed.
absl::Status CudaDevice::Grow(size_t bytes) {
  size_t all = 0;
  for (const Block& block : arena_) all += block.bytes();
  if (bytes < all && AddBlock(all).ok()) return absl::OkStatus();
  return AddBlock(bytes);
}

absl::Status CudaDevice::AddBlock(size_t bytes) {
  BST_ASSIGN_OR_RETURN(Buffer staged, DeviceBuffer(bytes));
  BST_ASSIGN_OR_RETURN(Buffer pinned, PinnedBuffer(bytes));
  arena_.push_back({.host = std::move(pinned), .device = std::move(staged), .end = bytes});
  return absl::OkStatus();
}

void CudaDevice::EndOperator() {
  for (Block& block : arena_) {
    block.kept = block.used;
    block.is_split = false;
  }
}

void CudaDevice::ReuseArena(size_t bytes) {
  EndStep();
  (void)cuda::Synchronize(stream());  // its status sticks
  for (Block& block : arena_) {
    if (block.is_split) continue;
    if (block.kept < block.used && block.bytes() - block.used >= bytes) {
      block.end = block.bytes();
      continue;
    }
    block.is_split = block.kept < block.used;
    block.end = block.is_split ? block.kept : block.bytes();
    // The first has the operator's counts.
    block.used = block.kept = &block == &arena_.front() ? std::min(kAlignment, block.end) : 0;
  }
  current_ = 0;
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
  Block& block = arena_.front();
  counts_ = reinterpret_cast<int32_t*>(block.pinned());
  staged_counts_ = reinterpret_cast<const int32_t*>(block.staged());
  num_counts_ = 0;
  block.used = block.kept = kAlignment;
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
    if (block.used > 0) cuda::Copy(stream(), block.staged(), block.pinned(), block.used);
  }
  graphs_.Run(stream(), step_);
  step_.clear();
}

void CudaDevice::EmptyArena() {
  for (Block& block : arena_) {
    block.used = block.kept = 0;
    block.end = block.bytes();
    block.is_split = false;
  }
  current_ = 0;
}

absl::Status CudaDevice::Sync() {
  EndStep();
  const absl::Status status = cuda::Synchronize(stream());
  EmptyArena();
  return status;
}

}  // namespace bst
