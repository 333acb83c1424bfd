// Buffer: memory that somebody owns, aligned to a cache line (large ones to 2 MiB, with huge pages
// where the system grants them), filled with zeros.
//
// Ownership   Move-only; frees on destruction. A backend whose memory is elsewhere passes its own
//             release function.
// Threads     Thread-compatible; any thread may call the static functions.
// Errors      Allocate: kResourceExhausted, with the size.
// Tested by   tests/engine/tensor/buffer_test.cc
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

class Buffer {
 public:
  using Release = void (*)(void* data, size_t bytes);

  // Host memory.
  static absl::StatusOr<Buffer> Allocate(size_t bytes);
  // What the machine, or the container this process runs in, can still give; SIZE_MAX where it does
  // not say. Linux grants more than it has, and kills the process that touches it. `root` is where
  // /proc and /sys are.
  static size_t AvailableBytes(const std::string& root = "/");

  Buffer() = default;
  Buffer(void* data, size_t bytes, Release release)
      : data_(data), bytes_(bytes), release_(release) {}
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // The start of the buffer seen as a tensor. REQUIRES: it fits.
  TensorView View(DType dtype, Shape shape) const;

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Release release_ = nullptr;
};

}  // namespace bst
