#include "engine/backend/cpu/cpu_dplr.h"

#include <complex>

#include "engine/backend/cpu/cpu_recurrence.h"

namespace bst {
namespace {

class CpuDplr : public CpuRecurrence {
 public:
  CpuDplr(CpuContext& context, const SsmSpec& spec, int64_t modes)
      : CpuRecurrence(spec, modes, /*constants=*/2, /*parts=*/10, context.kernels().dplr) {}

  absl::Status Pack(const DplrParameters& parameters) {
    const int64_t features = parameters.c.dim(0), modes = parameters.c.dim(1);
    BST_RETURN_IF_ERROR(Allocate());
    for (int64_t f = 0; f < features; ++f) {
      double kappa = 0;
      for (int64_t m = 0; m < modes; ++m) {
        const auto number = [&](const TensorView& tensor) {
          const float* x = tensor.as<float>() + (f * modes + m) * 2;
          return std::complex<double>(x[0], x[1]);
        };
        const std::complex<double> g = number(parameters.g), w = number(parameters.w);
        const std::complex<double> dt_b = number(parameters.dt_b);
        kappa += 2 * (w * dt_b).real();
        int part = 0;
        for (const std::complex<double> x :
             {g * number(parameters.dt_lambda), g * dt_b, g * number(parameters.p), 4.0 * w,
              2.0 * number(parameters.c)}) {
          ModePart(f, m, part++) = static_cast<float>(x.real());
          ModePart(f, m, part++) = static_cast<float>(x.imag());
        }
      }
      Constant(f, 0) = parameters.d.as<float>()[f];
      Constant(f, 1) = static_cast<float>(kappa);
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuDplr(CpuContext& context,
                                                        const DplrParameters& p) {
  const Shape shape = {p.spec.num_features(), p.c.dim(1), 2};
  for (const TensorView& tensor : {p.dt_lambda, p.dt_b, p.p, p.g, p.w, p.c})
    BST_CHECK_SHAPE(tensor, shape);
  BST_CHECK_SHAPE(p.dt, {p.spec.num_features()});
  BST_CHECK_SHAPE(p.d, {p.spec.num_features()});
  auto dplr = std::make_unique<CpuDplr>(context, p.spec, p.c.dim(1));
  BST_RETURN_IF_ERROR(dplr->Pack(p));
  return dplr;
}

}  // namespace bst
