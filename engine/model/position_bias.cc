#include "engine/model/position_bias.h"

#include <algorithm>
#include <cmath>

#include "engine/tensor/host_convert.h"

namespace bst {

int PositionBucket(int distance, int num_buckets, int max_distance) {
  const int half = num_buckets / 2;
  if (distance < half) return distance;
  // In exact arithmetic the boundaries are integers; 1e-9 keeps rounding from losing one.
  const double ratio = std::log(static_cast<double>(distance) / half) /
                       std::log(static_cast<double>(max_distance) / half);
  return std::min(num_buckets - 1,
                  half + static_cast<int>(std::floor(ratio * (num_buckets - half) + 1e-9)));
}

std::vector<float> BiasByDistance(TensorView table, int max_distance, int window) {
  const auto num_buckets = static_cast<int>(table.dim(1));
  std::vector<float> bias;
  bias.reserve(static_cast<size_t>(table.dim(0)) * static_cast<size_t>(window + 1));
  for (int64_t h = 0; h < table.dim(0); ++h) {
    for (int n = 0; n <= window; ++n) {
      bias.push_back(
          ElementAsFloat(table, h * num_buckets + PositionBucket(n, num_buckets, max_distance)));
    }
  }
  return bias;
}

}  // namespace bst
