// Real transforms of one length, many at a time: cuFFT, opened at run time, so that the backend
// works without it (fft.cc), or a plain transform of ours (tests/support/cuda_on_cpu).
//
//   Forward   reals [batch, size] -> spectra [batch, size / 2 + 1] of complex pairs
//   Inverse   the way back, times `size`; destroys the spectra
//
// Bits        Whoever wants the same bits transforms by the same plan: size and batch are its own.
// Threads     One.
// Errors      MakeFft: kUnavailable, "no cuFFT: ..."; kResourceExhausted. Later ones stick to the
//             stream.
// Tested by   tests/engine/backend/cuda/convolution_forms_test.cc
#pragma once

#include "absl/status/statusor.h"
#include "engine/backend/cuda/runtime.h"

namespace bst::cuda {

class Fft;

// `size` is a power of two, at least 2. The caller destroys it.
absl::StatusOr<Fft*> MakeFft(int size, int batch);
void DestroyFft(Fft* fft);
void ForwardFft(Stream& stream, const Fft& fft, float* reals, float* spectra);
void InverseFft(Stream& stream, const Fft& fft, float* spectra, float* reals);

}  // namespace bst::cuda
