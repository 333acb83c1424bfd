#include "engine/backend/cpu/self_check.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>

#include "engine/base/status_macros.h"

namespace bst {
namespace {

std::vector<float> Random(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

TensorView Matrix(std::vector<float>& values, int64_t columns) {
  return {values.data(), DType::kF32,
          Shape({static_cast<int64_t>(values.size()) / columns, columns})};
}

absl::Status AddLinear(Backend& backend, DType type, std::vector<float>& values) {
  constexpr int kIn = 1060, kOut = 80;  // padded and in several blocks along K, in both types
  std::vector<float> weights = Random(kIn * kOut, 1);
  for (float& weight : weights) weight *= 0.1f;
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<LinearWeights> packed,
                       backend.PackLinear({Matrix(weights, kIn)}, type));
  for (const int rows : {1, 37, 300}) {
    std::vector<float> x = Random(rows * kIn, 2), out(static_cast<size_t>(rows * kOut));
    backend.Linear(Matrix(x, kIn), *packed, {}, Matrix(out, kOut));
    values.insert(values.end(), out.begin(), out.end());
  }
  // So many rows go through both layers together.
  constexpr int kRows = 300;
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<LinearWeights> down,
                       backend.PackLinear({Matrix(weights, kOut)}, type));
  std::vector<float> x = Random(kRows * kIn, 6), gain(kIn, 0.3f), normed(x.size()),
                     hidden(kRows * kOut);
  backend.FeedForward(Matrix(x, kIn), {gain.data(), DType::kF32, Shape({kIn})}, 1e-6f, *packed,
                      LinearEpilogue::kRelu, *down, Matrix(normed, kIn), Matrix(hidden, kOut));
  values.insert(values.end(), x.begin(), x.end());
  return absl::OkStatus();
}

absl::Status AddAttention(Backend& backend, int head_dim, DType type, std::vector<float>& values) {
  constexpr int kHeads = 2, kWindow = 144, kTokens = 2 * kWindow + 2, kAtOnce = 2 * kWindow - 3;
  const int width = kHeads * head_dim;
  std::vector<float> scale(kHeads, 0.5f);
  const AttentionParameters parameters = {
      .spec = {.num_heads = kHeads, .head_dim = head_dim, .window = kWindow, .kv_type = type},
      .scale = {scale.data(), DType::kF32, Shape({kHeads})},
      .bias = {}};
  BST_ASSIGN_OR_RETURN(const std::unique_ptr<AttentionWeights> packed,
                       backend.PackAttention(parameters));
  const size_t ring_bytes = backend.RingBytes(parameters.spec);
  BST_ASSIGN_OR_RETURN(Buffer memory, backend.Allocate(ring_bytes));
  const PoolView ring = {static_cast<std::byte*>(memory.data()), ring_bytes};
  std::vector<float> q = Random(kTokens * width, 3), k = Random(kTokens * width, 4),
                     v = Random(kTokens * width, 5), out(q.size());
  for (int begin = 0, end = kAtOnce; begin < kTokens; begin = end++) {
    const auto part = [&](std::vector<float>& m) { return Matrix(m, width).Rows(begin, end); };
    backend.Attention(*packed, part(q), part(k), part(v),
                      {{.slot = SlotId(0), .begin = 0, .end = end - begin, .position = begin}},
                      ring, part(out));
  }
  values.insert(values.end(), out.begin(), out.end());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<float>> SelfCheckValues(Backend& backend) {
  std::vector<float> values;
  for (const DType type : {DType::kBF16, DType::kI8}) {
    BST_RETURN_IF_ERROR(AddLinear(backend, type, values));
    for (const int head_dim : {56, 72})  // BF16 rows' tiles stay in registers, or do not
      BST_RETURN_IF_ERROR(AddAttention(backend, head_dim, type, values));
  }
  return values;
}

bool AreAlike(absl::Span<const float> values, absl::Span<const float> expected) {
  if (values.size() != expected.size()) return false;
  // Values are of the order of one. A weight's BF16 may fall to the other side where its sum was
  // rounded otherwise: 2^-9 of a product.
  constexpr float kTolerance = 0.01f;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(std::fabs(values[i] - expected[i]) <= kTolerance)) return false;
  }
  return true;
}

}  // namespace bst
