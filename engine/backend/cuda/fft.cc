#include "engine/backend/cuda/fft.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

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
  Fft(const Functions& its_functions, FftDirection its_direction)
      : functions(its_functions), direction(its_direction) {}
  Fft(const Fft&) = delete;
  Fft& operator=(const Fft&) = delete;
  ~Fft() {
    if (has_plan) (void)functions.destroy(plan);
  }

  // The work area comes with the plan: transforms allocate nothing.
  cufftResult Plan(int size, int batch) {
    if (const cufftResult made = functions.create(&plan); made != CUFFT_SUCCESS) return made;
    has_plan = true;
    long long n = size;
    size_t work = 0;
    return functions.make_plan(plan, 1, &n, nullptr, 1, 0, nullptr, 1, 0,
                               direction == FftDirection::kForward ? CUFFT_R2C : CUFFT_C2R, batch,
                               &work);
  }

  Functions functions;
  FftDirection direction;
  cufftHandle plan = 0;
  bool has_plan = false;
};

void FftDeleter::operator()(Fft* fft) const { delete fft; }

absl::StatusOr<FftPtr> MakeFft(FftDirection direction, int size, int batch) {
  const absl::StatusOr<Functions> functions = Load();
  if (!functions.ok()) return functions.status();
  FftPtr fft(new Fft(*functions, direction));
  const cufftResult result = fft->Plan(size, batch);
  if (result == CUFFT_ALLOC_FAILED)
    return absl::ResourceExhaustedError(absl::StrCat("cuFFT: no memory for ", batch, " x ", size));
  if (result != CUFFT_SUCCESS) {
    return absl::UnavailableError(
        absl::StrCat("no cuFFT: it makes no plan, status ", static_cast<int>(result)));
  }
  return fft;
}

namespace {

void Keep(Stream& stream, cufftResult result) {
  if (result == CUFFT_SUCCESS || !stream.status.ok()) return;
  stream.status = absl::InternalError(absl::StrCat("cuFFT: status ", static_cast<int>(result)));
}

}  // namespace

void Transform(Stream& stream, const Fft& fft, float* from, float* to) {
  if (!stream.status.ok()) return;
  Keep(stream, fft.functions.set_stream(fft.plan, stream.handle));
  if (!stream.status.ok()) return;
  Keep(stream, fft.direction == FftDirection::kForward
                   ? fft.functions.forward(fft.plan, from, reinterpret_cast<cufftComplex*>(to))
                   : fft.functions.inverse(fft.plan, reinterpret_cast<cufftComplex*>(from), to));
}

}  // namespace bst::cuda

#else  // built where cufft.h is not

namespace bst::cuda {

class Fft {};

void FftDeleter::operator()(Fft* fft) const { delete fft; }
absl::StatusOr<FftPtr> MakeFft(FftDirection /*direction*/, int /*size*/, int /*batch*/) {
  return absl::UnavailableError("no cuFFT: the backend was built without it");
}
void Transform(Stream& /*stream*/, const Fft& /*fft*/, float* /*from*/, float* /*to*/) {}

}  // namespace bst::cuda

#endif
