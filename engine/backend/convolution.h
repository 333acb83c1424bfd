// The causal convolution with explicit taps, the third form of SsmWeights (see ssm.h).
//
//   y[t, c, i] = sum_{s < taps} K[s, c, i] u[t - s, i] + d[c, i] u[t, i]
//
// with u = 0 before the document.
//
// kEveryToken  Blocks of W. At a block's start the past's contribution to all its W outputs is made
//              in one pass (partitioned FFT convolution: a finished block of inputs meets the taps
//              (p - 1) W .. (p + 1) W - 1 of partition p) and kept in the slot; inside the block
//              the newest taps are applied directly. So time per token is the same for every block,
//              though a block's first token carries more of it; prompt and decode do the same
//              arithmetic, and where a row is cut is invisible.
// kBlockEnds   One dot product over all taps per block, feature and filter: cheaper than any FFT.
// Precision    A backend may count taps below 2^-96 as zero.
// State        The inputs that can still be reached, taps - 1 rows rounded up to whole blocks
//              (kBlockEnds: `taps` rows), and with kEveryToken the W pending outputs per feature.
// Threads      Values.
// Tested by    tests/engine/backend/convolution_test.cc
#pragma once

#include "engine/backend/ssm.h"

namespace bst {

struct ConvolutionParameters {
  SsmSpec spec;
  TensorView taps;  // [C D, num_taps] F32, tap 0 first
  TensorView d;     // [C D]           F32
};

}  // namespace bst
