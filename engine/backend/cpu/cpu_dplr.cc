#include "engine/backend/cpu/cpu_dplr.h"

#include "engine/backend/cpu/cpu_recurrence.h"

namespace bst {
namespace {

class CpuDplr : public CpuRecurrence {
 public:
  CpuDplr(CpuContext& context, const SsmSpec& spec, int64_t modes)
      : CpuRecurrence(spec, modes, /*constants=*/2, /*parts=*/12, context.kernels().dplr) {}

  absl::Status Pack(CpuContext& context, const DplrParameters& p) {
    const int64_t features = p.c.dim(0), modes = p.c.dim(1);
    BST_RETURN_IF_ERROR(Allocate());
    BST_RETURN_IF_ERROR(
        context.ReserveScratch(static_cast<size_t>(modes * 2 * kLanes) * sizeof(float)));
    struct Part {
      const TensorView& tensor;
      float factor;  // a power of two: exact
    };
    // The factors are those of the sums 2 Re; kernels.h has the order.
    const Part parts[] = {{p.dt_lambda, 1}, {p.p, 1}, {p.dt_b, 1}, {p.w, 2}, {p.g, 1}, {p.c, 2}};
    for (int64_t f = 0; f < features; ++f) {
      Constant(f, 0) = p.d.as<float>()[f];
      Constant(f, 1) = 2 * p.dt.as<float>()[f];
      for (int64_t m = 0; m < modes; ++m) {
        int index = 0;
        for (const Part& part : parts) {
          const float* number = part.tensor.as<float>() + (f * modes + m) * 2;
          ModePart(f, m, index++) = part.factor * number[0];
          ModePart(f, m, index++) = part.factor * number[1];
        }
      }
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
  BST_RETURN_IF_ERROR(dplr->Pack(context, p));
  return dplr;
}

}  // namespace bst
