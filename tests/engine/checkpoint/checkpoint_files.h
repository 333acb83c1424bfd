// Files for the checkpoint tests: a directory that goes with the test, and a small sound checkpoint
// to be spoiled in one way at a time.
//
// Errors    A file that cannot be written fails a BST_CHECK: the test cannot go on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/tensor/tensor_view.h"

namespace bst {

// The code of every refusal of a checkpoint.
inline constexpr auto kBad = absl::StatusCode::kFailedPrecondition;

// A temporary directory; removed with what it holds.
class TestDirectory {
 public:
  TestDirectory();
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;
  ~TestDirectory();

  const std::string& path() const { return path_; }
  std::string File(std::string_view name) const { return path_ + "/" + std::string(name); }
  void Write(std::string_view name, std::string_view contents) const;
  std::string Read(std::string_view name) const;

 private:
  std::string path_;
};

// A transformer layer and a bst layer, every optional tensor present: T5 bias, attention scales,
// gated feed-forward, an untied output matrix.
extern const std::string_view kSmallConfig;

// The same sizes with every type of layer, context and kernel, every optional key present:
//   0 transformer                      4 bst single_head s5 N=6 bilinear
//   1 bst single_head s4d N=6 zoh      5 bst multi_filter S=2 explicit T=7
//   2 bst multi_head s4 N=4            6 brect S=4
//   3 bst multi_filter S=3 dss N=5     7 gss F=10 E=9 dss N=3
extern const std::string_view kFamilyConfig;

// One tensor held in memory.
struct StoredTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  float* floats() { return reinterpret_cast<float*>(bytes.data()); }
  uint16_t* halves() { return reinterpret_cast<uint16_t*>(bytes.data()); }
};
using StoredTensors = std::map<std::string, StoredTensor>;

StoredTensor MakeTensor(DType dtype, std::vector<int64_t> shape);

// The tensors that a configuration asks for: matrices in BF16, filled with small numbers; modes
// decay.
StoredTensors TensorsOf(std::string_view config);

void WriteTensors(const std::string& path, StoredTensors& tensors);

// A .safetensors file from a header text and data, whatever they say.
std::string RawSafetensors(std::string_view header, size_t data_bytes);

}  // namespace bst
