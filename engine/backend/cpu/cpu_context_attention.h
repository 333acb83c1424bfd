// Attention to contexts on the CPU: the kernels of cpu_attention.h with every query seeing the same
// rows.
//
// Threads   Engine thread only; tasks run on the threads of the CpuContext.
// Tested by tests/engine/backend/context_attention_test.cc
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/backend/backend.h"
#include "engine/backend/cpu/cpu_context.h"

namespace bst {

class CpuContextAttention : public ContextWeights {
 public:
  // See Backend::PackContextAttention.
  static absl::StatusOr<std::unique_ptr<CpuContextAttention>> Pack(
      CpuContext& context, const ContextParameters& parameters);
  static size_t ContextBytes(const CpuContext& context, const ContextSpec& spec);

  // See Backend::StoreContext.
  void Store(CpuContext& context, TensorView k, TensorView v, absl::Span<const ContextRows> rows,
             PoolView contexts) const;
  // See Backend::ContextAttention.
  void Attend(CpuContext& context, TensorView q, absl::Span<const ContextUse> uses,
              TensorView out) const;

  size_t bytes() const override { return scale_.bytes(); }

 private:
  CpuContextAttention(const ContextSpec& spec, Buffer scale)
      : ContextWeights(spec), scale_(std::move(scale)) {}

  // Head: HeadKeyValues, HeadPairs or HeadQuads.
  template <typename Head>
  void StoreTyped(CpuContext& context, TensorView k, TensorView v,
                  absl::Span<const ContextRows> rows, PoolView contexts) const;
  template <typename Head>
  void AttendTyped(CpuContext& context, TensorView q, absl::Span<const ContextUse> uses,
                   TensorView out) const;

  Buffer scale_;  // [H]
};

}  // namespace bst
