// The T5 position bias, one table per layer, by distance instead of by bucket.
//
// bucket(n) = n for n < half = buckets / 2, else
//             min(buckets - 1,
//                 half + floor(ln(n / half) / ln(max_distance / half) * (buckets - half)))
// (Raffel et al., arXiv 1910.10683, unidirectional). A distance on a boundary belongs to the upper
// bucket.
//
// Threads   Pure functions.
// Tested by tests/engine/model/position_bias_test.cc
#pragma once

#include <vector>

#include "engine/tensor/tensor_view.h"

namespace bst {

int PositionBucket(int distance, int num_buckets, int max_distance);

// table [H, num_buckets] -> [H, window + 1], entry n for distance n.
std::vector<float> BiasByDistance(TensorView table, int max_distance, int window);

}  // namespace bst
