#include "engine/tensor/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/status/status.h"

namespace bst {
namespace {

constexpr size_t kCacheLineBytes = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void FreeHost(void* data, size_t /*bytes*/) { std::free(data); }

}  // namespace

absl::StatusOr<Buffer> Buffer::Allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : kCacheLineBytes;
  const size_t rounded = RoundUp(bytes == 0 ? 1 : bytes, alignment);
  void* data = rounded >= bytes ? std::aligned_alloc(alignment, rounded) : nullptr;
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", bytes, " bytes of memory"));
  }
  // Advice only: fewer TLB misses on weights and state.
  if (alignment == kHugePageBytes) ::madvise(data, rounded, MADV_HUGEPAGE);
  std::memset(data, 0, rounded);
  return Buffer(data, bytes, FreeHost);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      release_(other.release_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(release_, other.release_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) release_(data_, bytes_);
}

TensorView Buffer::View(DType dtype, Shape shape) const {
  BST_CHECK(static_cast<size_t>(shape.num_elements()) * SizeOf(dtype) <= bytes_, "a ",
            shape.ToString(), " view of a buffer of ", bytes_, " bytes");
  return {data_, dtype, shape};
}

}  // namespace bst
