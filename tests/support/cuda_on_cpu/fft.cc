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
  int size, batch;
  std::vector<std::complex<float>> roots;  // e^(-2 pi i k / size)
};

namespace {

using Complex = std::complex<float>;

bool is_missing = false;
int transforms = 0;

// In place, from natural to natural order.
void Transform(const Fft& fft, std::vector<Complex>& x, bool inverse) {
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

}  // namespace

absl::StatusOr<Fft*> MakeFft(int size, int batch) {
  if (is_missing) return absl::UnavailableError("no cuFFT: a test took it away");
  auto* const fft = new Fft{.size = size, .batch = batch, .roots = {}};
  for (int k = 0; k < size; ++k) {
    const double angle = -2.0 * std::numbers::pi * k / size;
    fft->roots.emplace_back(static_cast<float>(std::cos(angle)),
                            static_cast<float>(std::sin(angle)));
  }
  return fft;
}
void DestroyFft(Fft* fft) { delete fft; }

void ForwardFft(Stream& stream, const Fft& fft, float* reals, float* spectra) {
  ++transforms;
  cuda_on_cpu::EnqueueOnHost(stream, [&fft, reals, spectra] {
    const auto size = static_cast<size_t>(fft.size), half = size / 2 + 1;
    std::vector<Complex> x(size);
    for (size_t b = 0; b < static_cast<size_t>(fft.batch); ++b) {
      for (size_t i = 0; i < size; ++i) x[i] = reals[b * size + i];
      Transform(fft, x, /*inverse=*/false);
      for (size_t k = 0; k < half; ++k) {
        spectra[2 * (b * half + k)] = x[k].real();
        spectra[2 * (b * half + k) + 1] = x[k].imag();
      }
    }
  });
}

void InverseFft(Stream& stream, const Fft& fft, float* spectra, float* reals) {
  ++transforms;
  cuda_on_cpu::EnqueueOnHost(stream, [&fft, reals, spectra] {
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
      Transform(fft, x, /*inverse=*/true);
      for (size_t i = 0; i < size; ++i) reals[b * size + i] = x[i].real();
    }
  });
}

}  // namespace bst::cuda

namespace bst::cuda_on_cpu {

void SetFftMissing(bool missing) { cuda::is_missing = missing; }
int NumTransforms() { return cuda::transforms; }

}  // namespace bst::cuda_on_cpu
