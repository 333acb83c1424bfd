#include "engine/backend/cpu/cpu_ssm.h"

#include <complex>

#include "engine/backend/cpu/cpu_recurrence.h"

namespace bst {
namespace {

class CpuSsm : public CpuRecurrence {
 public:
  CpuSsm(CpuContext& context, const SsmSpec& spec, int64_t modes)
      : CpuRecurrence(spec, modes, /*constants=*/1, /*parts=*/4, context.kernels().ssm) {}

  absl::Status Pack(const SsmParameters& p) {
    const int64_t features = p.a_minus_one.dim(0), modes = p.a_minus_one.dim(1);
    BST_RETURN_IF_ERROR(Allocate());
    const auto number = [&](const TensorView& tensor, int64_t i) {
      return std::complex<double>(tensor.as<float>()[2 * i], tensor.as<float>()[2 * i + 1]);
    };
    for (int64_t f = 0; f < features; ++f) {
      Constant(f, 0) = p.d.as<float>()[f];
      for (int64_t m = 0; m < modes; ++m) {
        const std::complex<double> e = number(p.a_minus_one, f * modes + m);
        const std::complex<double> readout =
            2.0 * number(p.b, f * modes + m) * number(p.c, f * modes + m);
        ModePart(f, m, 0) = static_cast<float>(e.real());
        ModePart(f, m, 1) = static_cast<float>(e.imag());
        ModePart(f, m, 2) = static_cast<float>(readout.real());
        ModePart(f, m, 3) = static_cast<float>(readout.imag());
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCpuSsm(CpuContext& context,
                                                       const SsmParameters& p) {
  const Shape shape = {p.spec.num_features(), p.a_minus_one.dim(1), 2};
  BST_CHECK_SHAPE(p.a_minus_one, shape);
  BST_CHECK_SHAPE(p.b, shape);
  BST_CHECK_SHAPE(p.c, shape);
  BST_CHECK_SHAPE(p.d, {p.spec.num_features()});
  auto ssm = std::make_unique<CpuSsm>(context, p.spec, p.a_minus_one.dim(1));
  BST_RETURN_IF_ERROR(ssm->Pack(p));
  return ssm;
}

}  // namespace bst
