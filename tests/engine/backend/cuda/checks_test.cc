// Shapes that do not fit end the program with a message: on a device they would be somebody else's
// memory.
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cuda/cuda_backend.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

class CudaChecksDeathTest : public testing::Test {
 protected:
  // Each has memory of its own, for the calls whose shapes fit.
  TensorView Tensor(const Shape& shape) {
    tensors_.emplace_back(static_cast<size_t>(shape.num_elements()), 0.5f);
    return {tensors_.back().data(), DType::kF32, shape};
  }
  // What is called with every wrong operand once.
  void ExpectDeaths(const std::vector<std::pair<std::string, std::function<void()>>>& calls) {
    for (const auto& [name, call] : calls) EXPECT_DEATH(call(), "check failed") << name;
  }

  std::list<std::vector<float>> tensors_;
  std::vector<std::byte> slot_ = std::vector<std::byte>(4000);
  const PoolView pool_ = {slot_.data(), 4000};
  const std::unique_ptr<Backend> backend_ = *MakeCudaBackend({.panel_rows = {}});
};

TEST_F(CudaChecksDeathTest, OfAttention) {
  const auto weights = *backend_->PackAttention(
      {.spec = {.num_heads = 2, .head_dim = 4, .window = 3}, .scale = Tensor({2}), .bias = {}});
  const auto attend = [&](const Shape& q, const Shape& k, const Shape& v, const Shape& out) {
    return [=, this, &weights] {
      backend_->Attention(*weights, Tensor(q), Tensor(k), Tensor(v), {}, pool_, Tensor(out));
    };
  };
  attend({5, 8}, {5, 8}, {5, 8}, {5, 8})();
  ExpectDeaths({{"q", attend({5, 7}, {5, 8}, {5, 8}, {5, 8})},
                {"k", attend({5, 8}, {5, 7}, {5, 8}, {5, 8})},
                {"rows of k", attend({5, 8}, {4, 8}, {5, 8}, {5, 8})},
                {"v", attend({5, 8}, {5, 8}, {5, 9}, {5, 8})},
                {"rows of v", attend({5, 8}, {5, 8}, {6, 8}, {5, 8})},
                {"out", attend({5, 8}, {5, 8}, {5, 8}, {4, 8})}});
}

TEST_F(CudaChecksDeathTest, OfContexts) {
  const auto weights = *backend_->PackContextAttention(
      {.spec = {.num_heads = 2, .head_dim = 4, .capacity = 3}, .scale = Tensor({2})});
  const auto store = [&](const Shape& k, const Shape& v) {
    return
        [=, this, &weights] { backend_->StoreContext(*weights, Tensor(k), Tensor(v), {}, pool_); };
  };
  const auto attend = [&](const Shape& q, const Shape& out) {
    return
        [=, this, &weights] { backend_->ContextAttention(*weights, Tensor(q), {}, Tensor(out)); };
  };
  store({5, 8}, {5, 8})();
  attend({5, 8}, {5, 8})();
  ExpectDeaths({{"k", store({5, 7}, {5, 8})},
                {"v", store({5, 8}, {5, 7})},
                {"rows of v", store({5, 8}, {4, 8})},
                {"q", attend({5, 16}, {5, 16})},
                {"out", attend({5, 8}, {5, 7})},
                {"rows of out", attend({5, 8}, {6, 8})}});
}

TEST_F(CudaChecksDeathTest, OfRotations) {
  const auto rotate = [&](const Shape& x, int head_dim) {
    return [=, this] { backend_->Rotate(Tensor(x), head_dim, Tensor({5, head_dim})); };
  };
  rotate({5, 8}, 4)();
  ExpectDeaths({{"half a head", rotate({5, 10}, 4)}, {"an odd head", rotate({5, 9}, 3)}});
}

TEST_F(CudaChecksDeathTest, OfLogprobs) {
  const auto score = [&](int rows, const std::vector<TokenId>& targets, size_t results) {
    return [=, this] {
      std::vector<float> logprobs(results);
      backend_->TargetLogprobs(Tensor({rows, 10}), targets, absl::MakeSpan(logprobs));
    };
  };
  score(2, {TokenId(0), TokenId(9)}, 2)();
  ExpectDeaths({{"rows", score(3, {TokenId(0), TokenId(9)}, 2)},
                {"results", score(2, {TokenId(0), TokenId(9)}, 1)},
                {"target", score(2, {TokenId(0), TokenId(10)}, 2)},
                {"less than a token", score(2, {TokenId(-1), TokenId(9)}, 2)}});
}

TEST_F(CudaChecksDeathTest, OfSequenceParameters) {
  const SsmParameters diagonal = {.spec = {.num_inputs = 3},
                                  .a_minus_one = Tensor({3, 2, 2}),
                                  .b = Tensor({3, 2, 2}),
                                  .c = Tensor({3, 2, 2}),
                                  .d = Tensor({3})};
  const auto ssm = [&](const std::function<void(SsmParameters&)>& edit) {
    return [=, this] {
      SsmParameters parameters = diagonal;
      edit(parameters);
      (void)backend_->PackSsm(parameters);
    };
  };
  ssm([](SsmParameters&) {})();
  ExpectDeaths({{"A", ssm([this](SsmParameters& p) {
                   p.a_minus_one = Tensor({3, 1, 2});
                 })},
                {"B", ssm([this](SsmParameters& p) {
                   p.b = Tensor({2, 2, 2});
                 })},
                {"C", ssm([this](SsmParameters& p) {
                   p.c = Tensor({3, 2, 1});
                 })},
                {"D", ssm([this](SsmParameters& p) { p.d = Tensor({2}); })},
                {"block", ssm([](SsmParameters& p) { p.spec.outputs = SsmOutputs::kBlockEnds; })}});

  const TensorView modes = Tensor({3, 2, 2});
  const DplrParameters s4 = {.spec = {.num_inputs = 3},
                             .dt_lambda = modes,
                             .dt_b = modes,
                             .p = modes,
                             .g = modes,
                             .w = modes,
                             .c = modes,
                             .dt = Tensor({3}),
                             .d = Tensor({3})};
  const auto dplr = [&](TensorView DplrParameters::*which, const Shape& shape) {
    return [=, this] {
      DplrParameters parameters = s4;
      parameters.*which = Tensor(shape);
      (void)backend_->PackDplr(parameters);
    };
  };
  dplr(&DplrParameters::d, {3})();
  ExpectDeaths({{"lambda", dplr(&DplrParameters::dt_lambda, {3, 1, 2})},
                {"B", dplr(&DplrParameters::dt_b, {3, 3, 2})},
                {"P", dplr(&DplrParameters::p, {2, 2, 2})},
                {"G", dplr(&DplrParameters::g, {3, 2, 1})},
                {"W", dplr(&DplrParameters::w, {3, 1, 2})},
                {"dt", dplr(&DplrParameters::dt, {2})},
                {"D", dplr(&DplrParameters::d, {4})}});
  ExpectDeaths({{"scan", [this] { (void)backend_->PackScan(Tensor({3, 3})); }}});
}

}  // namespace
}  // namespace bst
