// WriteRandomCheckpoint: a directory that the server can load, with random weights.
//
// For tests, load tests and as a trainer's starting point; the text it generates means nothing. The
// initialisation is the one known to train stably, so that activations and logits have the size
// they have in a real model:
//
//   embedding, lm_head     N(0, 0.02^2)
//   matrices               N(0, 1 / fan_in); those writing to the residual stream / sqrt(2 layers)
//   norm gains             1; the final one such that logits have a standard deviation of about 1,
//                          whatever logit_scale is: a nearly uniform model would hide errors
//   attention scale        8           position bias  N(0, 0.05^2)
//   context and state ids  N(0, 0.5^2)   initial contexts and states  N(0, 1)
//   state gate bias        N(1, 1): a block keeps about sigmoid(1) = 0.73 of a state
//
// State spaces: log_dt uniform in [ln 1e-3, ln 1e-1], real part of a -1/2, c (dss: w) complex
// normal of variance 1, d N(0, 1), and with mode number m
//
//   s4d, dss               a_imag pi m (S4D-Lin, arXiv 2206.11893), b 1
//   s5                     a_imag pi m, b complex normal of variance 1 / D
//   s4                     like HiPPO-LegS without its eigenvalue problem: a_imag of S4D-Inv,
//                          (N / pi) (N / (2 m + 1) - 1), which approximates LegS; p =
//                          sqrt(2 a_imag / pi), the size it has there; b = sqrt(2) p, which holds
//                          there exactly and bounds the state by the largest input for any p
//   explicit               N(0, 1) e^{-l / tau} over taps l, scaled to an expected energy of 1; tau
//                          log-uniform over the features from 1 to a quarter of the filter
//
// Every tensor has its own random stream, derived from the seed and its name: the same on every
// machine whose C library rounds log, sin and cos alike, and unchanged by other layers.
// Threads   Pure function of its arguments and the file system.
// Errors    kFailedPrecondition (config; a directory with an index of shards, which stays as it
//           is); kNotFound (config or tokenizer file); kInvalidArgument (a
//           tokenizer file that the configuration has no use for); kInternal (cannot write).
// Tested by tests/engine/checkpoint/random_checkpoint_test.cc
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "engine/tensor/dtype.h"

namespace bst {

struct RandomCheckpointOptions {
  std::string config_path;  // a config.json; copied as it is
  std::string directory;    // created if need be; config.json and model.safetensors are replaced
  uint64_t seed = 0;
  DType dtype = DType::kBF16;  // F32, F16 or BF16; tensors that must be F32 are F32 all the same
  std::string tokenizer_path;  // copied under the name the configuration gives it; empty: none
};

absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options);

}  // namespace bst
