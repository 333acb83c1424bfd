#include "engine/backend/cuda/cuda_sampling.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/types/span.h"
#include "engine/backend/cuda/cuda_weights.h"
#include "engine/backend/cuda/kernels.h"
#include "engine/base/check.h"

namespace bst {
namespace {

// Arrays that go through the arena as one, so that results come back in one copy.
class StagedArrays {
 public:
  explicit StagedArrays(std::vector<std::byte>& memory) : bytes_(memory) { bytes_.clear(); }
  // Room for `count` more; returns where, in bytes from the beginning.
  template <typename T>
  size_t Add(size_t count) {
    static_assert(alignof(T) <= kAlignment);
    const size_t at = bytes_.size();
    bytes_.resize(at + (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment);
    return at;
  }
  template <typename T>
  T* At(size_t at) {
    return reinterpret_cast<T*>(bytes_.data() + at);
  }
  const std::byte* Stage(CudaDevice& device) const {
    return device.Stage(absl::MakeConstSpan(bytes_));
  }

 private:
  static constexpr size_t kAlignment = 8;
  std::vector<std::byte>& bytes_;
};

// A kernel writes where a token says.
int32_t CheckedToken(TokenId token, size_t vocab_size) {
  BST_CHECK(0 <= token.value() && static_cast<size_t>(token.value()) < vocab_size, "token ",
            token.value());
  return token.value();
}

}  // namespace

absl::Status CudaSampling::Reserve(int vocab_size, int max_draws) {
  return device_.ReserveScratch(SamplingScratchBytes(vocab_size) * static_cast<size_t>(max_draws));
}

void CudaSampling::SetState(PoolView state, SlotId slot, absl::Span<const TokenId> prompt,
                            absl::Span<const TokenBias> biases) {
  const size_t vocab_size = state.slot_bytes / sizeof(cuda::TokenState);
  StagedArrays arrays(staged_);
  const size_t prompt_at = arrays.Add<int32_t>(prompt.size());
  const size_t biased_at = arrays.Add<int32_t>(biases.size());
  const size_t bias_at = arrays.Add<float>(biases.size());
  for (size_t i = 0; i < prompt.size(); ++i)
    arrays.At<int32_t>(prompt_at)[i] = CheckedToken(prompt[i], vocab_size);
  for (size_t i = 0; i < biases.size(); ++i) {
    arrays.At<int32_t>(biased_at)[i] = CheckedToken(biases[i].token, vocab_size);
    arrays.At<float>(bias_at)[i] = biases[i].bias;
  }
  const std::byte* const staged = arrays.Stage(device_);
  cuda::SetSamplingState(device_.stream(),
                         {.state = state.slot<cuda::TokenState>(slot),
                          .prompt = reinterpret_cast<const int32_t*>(staged + prompt_at),
                          .biased = reinterpret_cast<const int32_t*>(staged + biased_at),
                          .bias = reinterpret_cast<const float*>(staged + bias_at),
                          .num_prompt = static_cast<int>(prompt.size()),
                          .num_biased = static_cast<int>(biases.size())});
}

void CudaSampling::Draw(TensorView logits, absl::Span<const TokenDraw> draws, PoolView state,
                        absl::Span<DrawResult> results, absl::Span<TokenLogit> top) {
  size_t num_banned = 0;
  for (const TokenDraw& draw : draws) num_banned += draw.banned.size();
  const auto vocab_size = static_cast<size_t>(logits.dim(1));
  StagedArrays arrays(staged_);
  const size_t room = CudaDevice::GraphSize(draws.size());
  const size_t results_at = arrays.Add<DrawResult>(room);
  const size_t draws_at = arrays.Add<cuda::SamplingDraw>(room);
  // The same address for both, so that the call depends on the number of draws alone, and steps of
  // as many draws are one graph.
  const size_t tail_at = arrays.Add<TokenLogit>(top.size());
  const size_t banned_at = arrays.Add<int32_t>(num_banned);
  auto first_banned = static_cast<int32_t>((banned_at - tail_at) / sizeof(int32_t));
  int32_t first_top = 0;
  for (size_t i = 0; i < draws.size(); ++i) {
    const TokenDraw& draw = draws[i];
    BST_CHECK(0 <= draw.num_top && draw.num_top <= cuda::kMaxTop, draw.num_top, " likeliest");
    BST_CHECK(0 <= draw.row && draw.row < logits.dim(0), "row ", draw.row);
    BST_CHECK(!draw.state.has_value() || state.slot_bytes >= vocab_size * sizeof(cuda::TokenState),
              state.slot_bytes, " bytes of state");
    arrays.At<cuda::SamplingDraw>(draws_at)[i] = {
        .params = draw.params,
        .token_index = draw.token_index,
        .state = draw.state.has_value() ? state.slot<cuda::TokenState>(*draw.state) : nullptr,
        .sequence_index = draw.sequence_index,
        .row = draw.row,
        .given = draw.given.has_value() ? CheckedToken(*draw.given, vocab_size) : -1,
        .first_banned = first_banned,
        .num_banned = static_cast<int32_t>(draw.banned.size()),
        .first_top = first_top,
        .num_top = draw.num_top};
    for (const TokenId token : draw.banned)
      arrays.At<int32_t>(tail_at)[first_banned++] = CheckedToken(token, vocab_size);
    first_top += draw.num_top;
  }
  BST_CHECK(results.size() == draws.size() && top.size() == static_cast<size_t>(first_top),
            results.size(), " results and ", top.size(), " likeliest of ", draws.size(), " draws");
  const std::byte* const staged = arrays.Stage(device_);
  // The kernel writes results where they came from.
  auto* const written = const_cast<std::byte*>(staged);
  cuda::Sample(device_.stream(),
               {.logits = ToMatrix(logits),
                .draws = reinterpret_cast<const cuda::SamplingDraw*>(staged + draws_at),
                .banned = reinterpret_cast<const int32_t*>(staged + tail_at),
                .scratch = device_.scratch(),
                .results = reinterpret_cast<DrawResult*>(written + results_at),
                .top = reinterpret_cast<TokenLogit*>(written + tail_at),
                .num_draws = device_.Count(static_cast<int>(draws.size())),
                .columns = static_cast<int>(logits.dim(1))});
  read_.resize(banned_at);
  device_.Download(staged, read_.data(), read_.size());
  std::memcpy(results.data(), read_.data() + results_at, results.size() * sizeof(DrawResult));
  if (!top.empty())
    std::memcpy(top.data(), read_.data() + tail_at, top.size() * sizeof(TokenLogit));
}

}  // namespace bst
