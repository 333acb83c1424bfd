#include "engine/tensor/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace bst {
namespace {

constexpr size_t kCacheLineBytes = 64;
constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Of a cgroup's count of memory the page cache of files, which makes room when it is asked for.
size_t FilePageBytes() {
  std::ifstream statistics("/sys/fs/cgroup/memory.stat");
  size_t bytes = 0, count = 0;
  for (std::string key; statistics >> key >> count;) {
    if (key == "active_file" || key == "inactive_file") bytes += count;
  }
  return bytes;
}

void FreeHost(void* data, size_t /*bytes*/) { std::free(data); }

}  // namespace

size_t Buffer::AvailableBytes() {
  size_t available = SIZE_MAX;
  std::ifstream memory("/proc/meminfo");
  for (std::string key, unit; memory >> key;) {
    size_t kilobytes = 0;
    memory >> kilobytes;
    std::getline(memory, unit);
    if (key != "MemAvailable:") continue;
    available = kilobytes * 1024;
    break;
  }
  size_t limit = 0, used = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used) {
    used -= std::min(used, FilePageBytes());
    available = std::min(available, limit > used ? limit - used : 0);
  }
  return available;
}

absl::StatusOr<Buffer> Buffer::Allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : kCacheLineBytes;
  if (bytes >= kHugePageBytes && bytes > AvailableBytes()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot allocate ", bytes, " bytes of memory, ", AvailableBytes(), " are available"));
  }
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
