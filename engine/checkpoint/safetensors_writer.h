// SafetensorsWriter: writes a .safetensors file piece by piece, for checkpoints larger than memory.
//
// The header needs the names and shapes only, so they come first; the data follow in order(), in
// pieces of any size. The file appears under its name only when Finish succeeds.
//
// Order     Types of 4 bytes first, then those of 2, then 1, each in the order given: every tensor
//           then lies aligned for its type and can be mapped.
// Ownership Owns the open file; without Finish the destructor removes what was written.
// Threads   Thread-compatible.
// Errors    kInvalidArgument (tensors: a name twice or not UTF-8); kInternal (file system, with its
//           message).
// Tested by tests/engine/checkpoint/safetensors_test.cc
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype = DType::kF32;
    Shape shape;
  };

  // Writes the header.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  std::vector<Entry> tensors);
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  ~SafetensorsWriter();

  // The tensors in the order in which their data must be appended.
  const std::vector<Entry>& order() const { return order_; }
  absl::Status Append(const void* data, size_t bytes);
  // REQUIRES: exactly the bytes of all tensors were appended.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, std::vector<Entry> order);

  absl::Status FileError(std::string_view action) const;

  std::string path_;
  std::string unfinished_path_;  // empty once the file is finished or moved from
  std::vector<Entry> order_;
  uint64_t missing_bytes_ = 0;  // data still to be appended
  int file_ = -1;
};

}  // namespace bst
