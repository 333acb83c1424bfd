// engine/backend/cuda/fft.h: each transform as a complex one of radix two, in float32.
#include "engine/backend/cuda/fft.h"

#include <cmath>
#include <complex>
#include <numbers>
#include <vector>

#include "tests/support/cuda_on_cpu/libraries.h"

namespace bst::cuda {

class Fft {
 public:
  FftDirection direction;
  int size, batch;
  std::vector<std::complex<float>> roots;  // e^(-2 pi i k / size)
};

namespace {

using Complex = std::complex<float>;

bool is_missing = false;
int transforms = 0, plans = 0;

// In place, from natural to natural order.
void TransformOne(const Fft& fft, std::vector<Complex>& x) {
  const bool inverse = fft.direction == FftDirection::kInverse;
  const auto size = static_cast<size_t>(fft.size);
  for (size_t i = 1, j = 0; i < size; ++i) {
    size_t bit = size / 2;
    for (; j & bit; bit /= 2) j ^= bit;
    j ^= bit;
    if (i < j) std::swap(x[i], x[j]);
  }
  for (size_t half = 1; half < size; half *= 2) {
    for (size_t first = 0; first < size; first += 2 * half) {
      for (size_t i = 0; i < half; ++i) {
        const Complex w = fft.roots[i * (size / (2 * half))];
        const float re = w.real(), im = inverse ? -w.imag() : w.imag();
        const Complex a = x[first + i], b = x[first + i + half];
        const Complex turned(b.real() * re - b.imag() * im, b.real() * im + b.imag() * re);
        x[first + i] = a + turned;
        x[first + i + half] = a - turned;
      }
    }
  }
}

void Forward(const Fft& fft, const float* reals, float* spectra) {
  const auto size = static_cast<size_t>(fft.size), half = size / 2 + 1;
  std::vector<Complex> x(size);
  for (size_t b = 0; b < static_cast<size_t>(fft.batch); ++b) {
    for (size_t i = 0; i < size; ++i) x[i] = reals[b * size + i];
    TransformOne(fft, x);
    for (size_t k = 0; k < half; ++k) {
      spectra[2 * (b * half + k)] = x[k].real();
      spectra[2 * (b * half + k) + 1] = x[k].imag();
    }
  }
}

void Inverse(const Fft& fft, float* spectra, float* reals) {
  const auto size = static_cast<size_t>(fft.size), half = size / 2 + 1;
  std::vector<Complex> x(size);
  for (size_t b = 0; b < static_cast<size_t>(fft.batch); ++b) {
    for (size_t k = 0; k < size; ++k) {
      const size_t from = k < half ? k : size - k;
      float* const pair = spectra + 2 * (b * half + from);
      x[k] = Complex(pair[0], k < half ? pair[1] : -pair[1]);
    }
    for (size_t k = 0; k < half; ++k)  // as cuFFT may leave them
      spectra[2 * (b * half + k)] = spectra[2 * (b * half + k) + 1] = NAN;
    TransformOne(fft, x);
    for (size_t i = 0; i < size; ++i) reals[b * size + i] = x[i].real();
  }
}

}  // namespace

void FftDeleter::operator()(Fft* fft) const {
  --plans;
  delete fft;
}
absl::StatusOr<FftPtr> MakeFft(FftDirection direction, int size, int batch) {
  if (is_missing) return absl::UnavailableError("no cuFFT: a test took it away");
  ++plans;
  FftPtr fft(new Fft{.direction = direction, .size = size, .batch = batch, .roots = {}});
  for (int k = 0; k < size; ++k) {
    const double angle = -2.0 * std::numbers::pi * k / size;
    fft->roots.emplace_back(static_cast<float>(std::cos(angle)),
                            static_cast<float>(std::sin(angle)));
  }
  return fft;
}

void Transform(Stream& stream, const Fft& fft, float* from, float* to) {
  ++transforms;
  cuda_on_cpu::EnqueueOnHost(stream, [&fft, from, to] {
    if (fft.direction == FftDirection::kForward) {
      Forward(fft, from, to);
    } else {
      Inverse(fft, from, to);
    }
  });
}

}  // namespace bst::cuda

namespace bst::cuda_on_cpu {

void SetFftMissing(bool missing) { cuda::is_missing = missing; }
int NumTransforms() { return cuda::transforms; }
int NumFftPlans() { return cuda::plans; }

}  // namespace bst::cuda_on_cpu
