#include "engine/backend/cuda/fft.h"

#include <dlfcn.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/runtime_stream.h"

#ifdef BST_HAVE_CUFFT

#include <cufft.h>

namespace bst::cuda {
namespace {

struct Functions {
  decltype(&cufftCreate) create;
  decltype(&cufftDestroy) destroy;
  decltype(&cufftMakePlanMany64) make_plan;
  decltype(&cufftSetStream) set_stream;
  decltype(&cufftExecR2C) forward;
  decltype(&cufftExecC2R) inverse;
};

absl::StatusOr<Functions> Load() {
  const std::string file = absl::StrCat("libcufft.so.", CUFFT_VER_MAJOR);
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::UnavailableError(absl::StrCat("no cuFFT: ", ::dlerror()));
  const auto find = [&](auto& function, const char* name) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    return function != nullptr;
  };
  Functions functions;
  if (!find(functions.create, "cufftCreate") || !find(functions.destroy, "cufftDestroy") ||
      !find(functions.make_plan, "cufftMakePlanMany64") ||
      !find(functions.set_stream, "cufftSetStream") || !find(functions.forward, "cufftExecR2C") ||
      !find(functions.inverse, "cufftExecC2R"))
    return absl::UnavailableError(absl::StrCat("no cuFFT: ", file, " lacks a function"));
  return functions;
}

}  // namespace

class Fft {
 public:
  explicit Fft(const Functions& its_functions) : functions(its_functions) {}
  Fft(const Fft&) = delete;
  Fft& operator=(const Fft&) = delete;
  ~Fft() {
    if (has_forward) (void)functions.destroy(forward);
    if (has_inverse) (void)functions.destroy(inverse);
  }

  // The work areas come with the plans: transforms allocate nothing.
  cufftResult Plan(int size, int batch) {
    cufftResult result = functions.create(&forward);
    has_forward = result == CUFFT_SUCCESS;
    if (result == CUFFT_SUCCESS) result = functions.create(&inverse);
    has_inverse = has_forward && result == CUFFT_SUCCESS;
    long long n = size;
    size_t work = 0;
    for (const cufftType type : {CUFFT_R2C, CUFFT_C2R}) {
      if (result != CUFFT_SUCCESS) break;
      result = functions.make_plan(type == CUFFT_R2C ? forward : inverse, 1, &n, nullptr, 1, 0,
                                   nullptr, 1, 0, type, batch, &work);
    }
    return result;
  }

  Functions functions;
  cufftHandle forward = 0, inverse = 0;
  bool has_forward = false, has_inverse = false;
};

absl::StatusOr<Fft*> MakeFft(int size, int batch) {
  absl::StatusOr<Functions> functions = Load();
  if (!functions.ok()) return functions.status();
  auto fft = std::make_unique<Fft>(*functions);
  const cufftResult result = fft->Plan(size, batch);
  if (result == CUFFT_ALLOC_FAILED)
    return absl::ResourceExhaustedError(absl::StrCat("cuFFT: no memory for ", batch, " x ", size));
  if (result != CUFFT_SUCCESS) {
    return absl::UnavailableError(
        absl::StrCat("no cuFFT: it makes no plan, status ", static_cast<int>(result)));
  }
  return fft.release();
}

void DestroyFft(Fft* fft) { delete fft; }

namespace {

void Keep(Stream& stream, cufftResult result) {
  if (result == CUFFT_SUCCESS || !stream.status.ok()) return;
  stream.status = absl::InternalError(absl::StrCat("cuFFT: status ", static_cast<int>(result)));
}

}  // namespace

void ForwardFft(Stream& stream, const Fft& fft, float* reals, float* spectra) {
  if (!stream.status.ok()) return;
  Keep(stream, fft.functions.set_stream(fft.forward, stream.handle));
  Keep(stream, fft.functions.forward(fft.forward, reals, reinterpret_cast<cufftComplex*>(spectra)));
}
void InverseFft(Stream& stream, const Fft& fft, float* spectra, float* reals) {
  if (!stream.status.ok()) return;
  Keep(stream, fft.functions.set_stream(fft.inverse, stream.handle));
  Keep(stream, fft.functions.inverse(fft.inverse, reinterpret_cast<cufftComplex*>(spectra), reals));
}

}  // namespace bst::cuda

#else  // built where cufft.h is not

namespace bst::cuda {

class Fft {};

absl::StatusOr<Fft*> MakeFft(int /*size*/, int /*batch*/) {
  return absl::UnavailableError("no cuFFT: the backend was built without it");
}
void DestroyFft(Fft* /*fft*/) {}
void ForwardFft(Stream& /*stream*/, const Fft& /*fft*/, float* /*reals*/, float* /*spectra*/) {}
void InverseFft(Stream& /*stream*/, const Fft& /*fft*/, float* /*spectra*/, float* /*reals*/) {}

}  // namespace bst::cuda

#endif
