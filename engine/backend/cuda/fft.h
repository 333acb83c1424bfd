// Real transforms of one length, many at a time: cuFFT, opened at run time, so that the backend
// works without it (fft.cc), or a plain transform of ours (tests/support/cuda_on_cpu).
//
//   kForward   from reals [batch, size] to spectra [batch, size / 2 + 1] of complex pairs
//   kInverse   the way back, times `size`; destroys the spectra
//
// Bits        Whoever wants the same bits transforms by the same plan: size and batch are its own.
// Memory      A plan has device memory of its own, of about what it transforms.
// Threads     One.
// Errors      MakeFft: kUnavailable, "no cuFFT: ..."; kResourceExhausted. Later ones stick to the
//             stream.
// Tested by   tests/engine/backend/cuda/convolution_forms_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/backend/cuda/runtime.h"

namespace bst::cuda {

class Fft;

enum class FftDirection { kForward, kInverse };

struct FftDeleter {
  void operator()(Fft* fft) const;
};
using FftPtr = std::unique_ptr<Fft, FftDeleter>;
// `size` is a power of two, at least 2.
absl::StatusOr<FftPtr> MakeFft(FftDirection direction, int size, int batch);
void Transform(Stream& stream, const Fft& fft, float* from, float* to);

}  // namespace bst::cuda
