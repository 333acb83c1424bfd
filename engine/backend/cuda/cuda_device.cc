#include "engine/backend/cuda/cuda_device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kFirstArenaBytes = size_t{1} << 20;

void ReleaseDevice(void* data, size_t /*bytes*/) { cuda::FreeDevice(data); }
void ReleasePinned(void* data, size_t /*bytes*/) { cuda::FreePinned(data); }

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open() {
  auto device = std::unique_ptr<CudaDevice>(new CudaDevice());
  BST_ASSIGN_OR_RETURN(device->name_, cuda::OpenDevice());
  BST_ASSIGN_OR_RETURN(device->stream_, cuda::CreateStream());
  BST_RETURN_IF_ERROR(device->GrowArena(kFirstArenaBytes));
  return device;
}

CudaDevice::~CudaDevice() {
  scratch_ = Buffer();
  if (pinned_ != nullptr) cuda::FreePinned(pinned_);
  if (staged_ != nullptr) cuda::FreeDevice(staged_);
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

const void* CudaDevice::StageBytes(const void* data, size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (arena_used_ + rounded > arena_bytes_) {
    (void)Flush();  // kernels may still read what lies there; the stream keeps the status
    if (rounded > arena_bytes_) {
      const absl::Status grown = GrowArena(rounded);
      if (!grown.ok()) {
        cuda::Fail(stream(), grown);
        return staged_;
      }
    }
  }
  const size_t offset = arena_used_;
  arena_used_ += rounded;
  step_bytes_ += rounded;
  void* const pinned = static_cast<std::byte*>(pinned_) + offset;
  void* const staged = static_cast<std::byte*>(staged_) + offset;
  if (bytes > 0) {
    std::memcpy(pinned, data, bytes);
    if (!in_step_) cuda::Copy(stream(), staged, pinned, bytes);  // a step's go all at once
  }
  return staged;
}

void CudaDevice::Download(const void* staged, void* to, size_t bytes) {
  EndStep();
  const auto offset = static_cast<const std::byte*>(staged) - static_cast<std::byte*>(staged_);
  void* const pinned = static_cast<std::byte*>(pinned_) + offset;
  cuda::Copy(stream(), pinned, staged, bytes);
  if (Flush().ok()) std::memcpy(to, pinned, bytes);
}

absl::Status CudaDevice::GrowArena(size_t bytes) {
  const size_t grown = std::max(bytes, 2 * arena_bytes_);
  BST_ASSIGN_OR_RETURN(void* const pinned, cuda::AllocatePinned(grown));
  absl::StatusOr<void*> staged = cuda::AllocateDevice(grown);
  if (!staged.ok()) {
    cuda::FreePinned(pinned);
    return staged.status();
  }
  graphs_.Clear();  // they name the old one
  if (pinned_ != nullptr) cuda::FreePinned(pinned_);
  if (staged_ != nullptr) cuda::FreeDevice(staged_);
  pinned_ = pinned;
  staged_ = *staged;
  arena_bytes_ = grown;
  arena_used_ = 0;
  return absl::OkStatus();
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
}

void CudaDevice::EndStep() {
  if (!in_step_) return;
  in_step_ = false;
  cuda::StopRecording(stream());
  if (arena_used_ > 0) cuda::Copy(stream(), staged_, pinned_, arena_used_);
  graphs_.Run(stream(), step_);
  step_.clear();
}

absl::Status CudaDevice::Flush() {
  EndStep();
  arena_used_ = 0;
  return cuda::Synchronize(stream());
}

absl::Status CudaDevice::Sync() {
  absl::Status status = Flush();
  const size_t bytes = std::exchange(step_bytes_, 0);
  // The next step of this size need not wait in its middle; if there is no memory, it will.
  if (status.ok() && bytes > arena_bytes_) (void)GrowArena(bytes);
  return status;
}

}  // namespace bst
