// The activations of linear layers and gates, in float32.
//
// Threads   Runs on the device.
// Tested by tests/engine/backend/agreement_test.cc
#pragma once

#include "engine/backend/cuda/device.h"
#include "engine/backend/cuda/kernels.h"

namespace bst::cuda {

BST_DEVICE float Apply(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
  }
  return x;
}

}  // namespace bst::cuda
