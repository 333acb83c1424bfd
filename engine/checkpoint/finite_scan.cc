#include "engine/checkpoint/finite_scan.h"

#include <algorithm>
#include <cstddef>

#include "engine/base/check.h"

namespace bst {
namespace {

// 4096 elements stay in the first-level cache, so that the second look at a bad block is free.
constexpr int64_t kBlock = 4096;

template <typename Bits>
Bits AnyNonFinite(const Bits* data, int64_t count, Bits exponent_mask) {
  Bits found = 0;
  for (int64_t i = 0; i < count; ++i) {
    found = static_cast<Bits>(found | ((data[i] & exponent_mask) == exponent_mask));
  }
  return found;
}

template <typename Bits>
std::optional<int64_t> Scan(const Bits* data, int64_t count, Bits exponent_mask) {
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    // The constant length of whole blocks lets the compiler vectorise without a remainder loop.
    const bool bad = count - begin >= kBlock
                         ? AnyNonFinite(data + begin, kBlock, exponent_mask) != 0
                         : AnyNonFinite(data + begin, count - begin, exponent_mask) != 0;
    if (!bad) continue;
    const int64_t end = std::min(begin + kBlock, count);
    for (int64_t i = begin; i < end; ++i) {
      if ((data[i] & exponent_mask) == exponent_mask) return i;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> FirstNonFinite(const TensorView& tensor) {
  const int64_t count = tensor.shape().num_elements();
  switch (tensor.dtype()) {
    case DType::kF32:
      return Scan<uint32_t>(tensor.as<uint32_t>(), count, 0x7f800000u);
    case DType::kF16:
      return Scan<uint16_t>(tensor.as<uint16_t>(), count, 0x7c00u);
    case DType::kBF16:
      return Scan<uint16_t>(tensor.as<uint16_t>(), count, 0x7f80u);
    case DType::kU8:
    case DType::kI8:
      break;
  }
  BST_CHECK(false, "not a floating type: ", std::string(Name(tensor.dtype())));
}

}  // namespace bst
