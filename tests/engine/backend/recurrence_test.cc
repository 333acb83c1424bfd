// The recurrences (ssm.h): every CPU instruction set against the reference backend over awkward
// shapes; both against formulas of another kind in float64; and what must be the same bits.
//
// One file, though long: all kinds of recurrence go through the same cuts and the same problems.
#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/backend/cuda/cuda_backend.h"
#include "tests/engine/backend/operator_fixture.h"
#include "tests/support/dense_system.h"

namespace bst {
namespace {

using Complex = std::complex<double>;
using RecurrenceTest = OperatorTest;

Complex At(const std::vector<float>& values, size_t i) {
  return {values[2 * i], values[2 * i + 1]};
}
void Append(std::vector<float>& out, Complex x) {
  out.push_back(static_cast<float>(x.real()));
  out.push_back(static_cast<float>(x.imag()));
}

// E = e^z - 1 of modes that forget over fifty tokens at most.
std::vector<float> DecayingModes(size_t modes, uint32_t seed) {
  const std::vector<float> z = RandomVector(2 * modes, seed, 0.3);
  std::vector<float> e;
  for (size_t m = 0; m < modes; ++m)
    Append(e, std::exp(Complex(-0.02 - std::fabs(At(z, m).real()), At(z, m).imag())) - 1.0);
  return e;
}

// A kernel of either kind with random modes that decay.
struct Problem {
  bool dplr = false;
  SsmSpec spec;
  int modes = 0;
  std::vector<float> e, b, c, d;                    // diagonal; c and d of both
  std::vector<float> dt_lambda, dt_b, p, g, w, dt;  // DPLR

  Problem(bool is_dplr, const SsmSpec& s, int num_modes, uint32_t seed, double coupling = 1)
      : dplr(is_dplr), spec(s), modes(num_modes) {
    const auto n = static_cast<size_t>(spec.num_features() * modes);
    e = DecayingModes(n, seed);
    b = RandomVector(2 * n, seed + 1);
    c = RandomVector(2 * n, seed + 2);
    d = RandomVector(static_cast<size_t>(spec.num_features()), seed + 3);
    if (!dplr) return;
    p = RandomVector(2 * n, seed + 4, coupling);
    for (int f = 0; f < spec.num_features(); ++f) {
      const auto first = static_cast<size_t>(f * modes), end = first + static_cast<size_t>(modes);
      dt.push_back(0.01f + 0.05f * static_cast<float>(f % 7));
      const double step = dt.back();
      double rho = 1;
      const auto lambda = [&](size_t i) { return Complex(-0.5, 3.0 * double{e[2 * i + 1]}); };
      const auto gain = [&](size_t i) { return 1.0 / (1.0 - step / 2 * lambda(i)); };
      for (size_t i = first; i < end; ++i)
        rho += step * (std::conj(At(p, i)) * gain(i) * At(p, i)).real();
      for (size_t i = first; i < end; ++i) {
        Append(dt_lambda, step * lambda(i));
        Append(dt_b, step * At(b, i));
        Append(g, gain(i));
        Append(w, step / 2 * std::conj(At(p, i)) * gain(i) / rho);
      }
    }
  }

  std::unique_ptr<SsmWeights> Pack(Backend& backend) {
    const Shape shape = {spec.num_features(), modes, 2}, features = {spec.num_features()};
    if (!dplr) {
      return *backend.PackSsm({.spec = spec,
                               .a_minus_one = Contiguous(e, shape),
                               .b = Contiguous(b, shape),
                               .c = Contiguous(c, shape),
                               .d = Contiguous(d, features)});
    }
    return *backend.PackDplr({.spec = spec,
                              .dt_lambda = Contiguous(dt_lambda, shape),
                              .dt_b = Contiguous(dt_b, shape),
                              .p = Contiguous(p, shape),
                              .g = Contiguous(g, shape),
                              .w = Contiguous(w, shape),
                              .c = Contiguous(c, shape),
                              .dt = Contiguous(dt, features),
                              .d = Contiguous(d, features)});
  }
  std::string what() const {
    return absl::StrCat(
        dplr ? "dplr" : "diagonal", " inputs ", spec.num_inputs, " filters ", spec.num_filters,
        " modes ", modes,
        spec.outputs == SsmOutputs::kEveryToken ? " every token, " : " block ends, ", "block ",
        spec.block);
  }
};

int64_t Outputs(const SsmSpec& spec, const Row& row) {
  if (spec.outputs == SsmOutputs::kEveryToken) return row.num_tokens();
  return (row.position + row.num_tokens()) / spec.block - row.position / spec.block;
}

// Documents side by side: step k takes steps[k][i] tokens of document i (0: the document sits the
// step out). Document i lies in slot slots[i]. The outputs of each document, in order.
std::vector<Matrix> Convolve(Backend& backend, Problem& problem, std::vector<Matrix>& documents,
                             const std::vector<std::vector<int>>& steps,
                             const std::vector<int>& slots) {
  const SsmSpec& spec = problem.spec;
  const auto weights = problem.Pack(backend);
  const SlotId spare(*std::max_element(slots.begin(), slots.end()) + 1);
  const Slots memory(backend, backend.SsmStateBytes(*weights), spare.value() + 1);
  std::memset(memory.view().slot<std::byte>(spare), 0x5a, memory.view().slot_bytes);
  std::vector<int64_t> positions(documents.size(), 0), written(documents.size(), 0);
  std::vector<Matrix> outputs;
  for (size_t i = 0; i < documents.size(); ++i) {
    Row all = {.slot = SlotId(0), .begin = 0, .end = 0, .position = 0};
    for (const std::vector<int>& step : steps) all.end += step[i];
    outputs.emplace_back(Outputs(spec, all), spec.num_features());
  }
  for (const std::vector<int>& step : steps) {
    std::vector<Row> rows;
    int tokens = 0;
    int64_t num_outputs = 0;
    for (size_t i = 0; i < documents.size(); ++i) {
      if (step[i] == 0) continue;
      rows.push_back({.slot = SlotId(slots[i]),
                      .begin = tokens,
                      .end = tokens + step[i],
                      .position = positions[i]});
      tokens += step[i];
      num_outputs += Outputs(spec, rows.back());
    }
    Matrix u(tokens, spec.num_inputs), y(num_outputs, spec.num_features());
    size_t next = 0;
    for (size_t i = 0; i < documents.size(); ++i) {
      if (step[i] == 0) continue;
      const Row& row = rows[next++];
      for (int t = 0; t < step[i]; ++t) {
        for (int k = 0; k < spec.num_inputs; ++k)
          u.at(row.begin + t, k) = documents[i].at(positions[i] + t, k);
      }
    }
    backend.Ssm(*weights, u.view(), rows, memory.view(), y.view());
    EXPECT_TRUE(y.SentinelsIntact()) << problem.what();
    int64_t from = 0;
    next = 0;
    for (size_t i = 0; i < documents.size(); ++i) {
      if (step[i] == 0) continue;
      for (int64_t n = Outputs(spec, rows[next++]); n > 0; --n, ++from, ++written[i]) {
        for (int f = 0; f < spec.num_features(); ++f) outputs[i].at(written[i], f) = y.at(from, f);
      }
      positions[i] += step[i];
    }
  }
  const std::byte* untouched = memory.view().slot<std::byte>(spare);
  for (size_t i = 0; i < memory.view().slot_bytes; ++i) {
    if (untouched[i] != std::byte{0x5a}) {
      ADD_FAILURE() << problem.what() << ": wrote to a slot that no row has";
      break;
    }
  }
  return outputs;
}

std::vector<Matrix> Documents(const Problem& problem, const std::vector<int>& lengths) {
  std::vector<Matrix> documents;
  for (const int length : lengths) {
    documents.push_back(Matrix::Random(length, problem.spec.num_inputs,
                                       100 + static_cast<uint32_t>(documents.size())));
  }
  return documents;
}

// All kinds, output modes and shapes worth their time.
void ForEachProblem(const std::vector<int>& inputs, const std::vector<int>& modes,
                    const std::vector<int>& blocks, const std::function<void(Problem&)>& body) {
  uint32_t seed = 0;
  for (const bool dplr : {false, true}) {
    for (const int num_inputs : inputs) {
      for (const int num_filters : {1, 3}) {
        for (const int num_modes : modes) {
          for (const int block : blocks) {  // 0: outputs at every token
            const SsmSpec spec = {
                .num_inputs = num_inputs,
                .num_filters = num_filters,
                .outputs = block == 0 ? SsmOutputs::kEveryToken : SsmOutputs::kBlockEnds,
                .block = block};
            seed += 10;
            if (LeftOutUnderSanitizers(seed / 10)) continue;
            Problem problem(dplr, spec, num_modes, seed);
            body(problem);
          }
        }
      }
    }
  }
}

TEST_P(RecurrenceTest, AgreesWithTheReferenceOverRaggedSteps) {
  const std::vector<std::vector<int>> steps = {{30, 1}, {1, 1}, {0, 40}, {1, 100}, {131, 7}};
  const auto check = [&](Problem& problem) {
    std::vector<Matrix> documents = Documents(problem, {163, 149});
    std::vector<Matrix> expected = Convolve(*reference_, problem, documents, steps, {2, 0});
    std::vector<Matrix> got = Convolve(*tested_, problem, documents, steps, {2, 0});
    for (size_t i = 0; i < 2; ++i) {
      // A few numbers may all be small where the terms they are made of are not.
      const std::vector<float> values = got[i].values();
      EXPECT_LT(RelativeRms(values, expected[i].values()),
                values.size() < 16 ? 5 * kTolerance : kTolerance)
          << problem.what() << " document " << i;
    }
  };
  ForEachProblem({1, 15, 16, 17, 50}, {1, 2, 5, 16}, {0, 1, 7, 16, 128}, check);
  ForEachProblem({3}, {33, 150}, {0, 7}, check);
}

// The bits of a document do not depend on where it is cut, in which slot it lies and who shares its
// steps; and outputs at block ends are those of a kernel with an output at every token.
TEST_P(RecurrenceTest, EveryCutAndNeighbourGivesTheSameBits) {
  for (const bool on_reference : {false, true}) {
    Backend& backend = on_reference ? *reference_ : *tested_;
    const auto check = [&](Problem& problem) {
      constexpr int kLength = 300;
      std::vector<Matrix> documents = Documents(problem, {kLength, 150});
      std::vector<Matrix> first(1, documents[0]);
      const std::vector<float> whole =
          Convolve(backend, problem, first, {{kLength}}, {0})[0].values();
      const std::vector<std::vector<int>> single(kLength, {1});
      EXPECT_EQ(Convolve(backend, problem, first, single, {1})[0].values(), whole)
          << problem.what();
      std::mt19937 random(7);
      for (int trial = 0; trial < 3; ++trial) {
        std::vector<std::vector<int>> steps;
        int left = kLength, neighbour = 150;
        while (left > 0) {
          const int n = std::min(left, 1 + static_cast<int>(random() % 90));
          const int m = std::min(neighbour, static_cast<int>(random() % 40));
          steps.push_back({n, m});
          left -= n;
          neighbour -= m;
        }
        EXPECT_EQ(Convolve(backend, problem, documents, steps, {2, 1})[0].values(), whole)
            << problem.what() << " trial " << trial;
      }
      if (problem.spec.outputs == SsmOutputs::kEveryToken) return;
      const int block = problem.spec.block;
      problem.spec.outputs = SsmOutputs::kEveryToken;
      Matrix every = Convolve(backend, problem, first, {{kLength}}, {0})[0];
      std::vector<float> ends;
      for (int t = block - 1; t < kLength; t += block) {
        for (int f = 0; f < problem.spec.num_features(); ++f) ends.push_back(every.at(t, f));
      }
      EXPECT_EQ(ends, whole) << problem.what();
    };
    ForEachProblem({3, 40}, {1, 5, 16}, {0, 1, 7, 16, 128}, check);
    ForEachProblem({1}, {70}, {0, 7}, check);
  }
}

// Two documents, each cut before and after every one of its tokens, never at the same place: a
// prompt, a single token, the rest. Up to a few chunks of the CUDA backend, and modes on either
// side of what its registers hold.
TEST_P(RecurrenceTest, CutsAtEveryPlaceGiveTheSameBits) {
  constexpr int kLength = 75;
  const auto check = [&](Problem& problem) {
    std::vector<Matrix> documents = Documents(problem, {kLength, kLength});
    const auto run = [&](const std::vector<std::vector<int>>& steps) {
      std::vector<Matrix> outputs = Convolve(*tested_, problem, documents, steps, {2, 0});
      return std::vector{outputs[0].values(), outputs[1].values()};
    };
    const auto whole = run({{kLength, 0}, {0, kLength}});
    for (int cut = 1; cut < kLength - 1; ++cut) {
      const int other = kLength - 1 - cut;
      ASSERT_EQ(run({{cut, other}, {1, 1}, {other, cut}}), whole) << problem.what() << " " << cut;
    }
  };
  ForEachProblem({2}, {1, 3, 8, 32, 33}, {0, 7, 20}, check);
}

// More sequences than one block of threads decodes; of those many end a chunk at the same step.
TEST_P(RecurrenceTest, ManyRowsDecodeTheSameBits) {
  constexpr size_t kRows = 19;
  constexpr int kLength = 60;
  const auto check = [&](Problem& problem) {
    std::vector<Matrix> documents = Documents(problem, std::vector<int>(kRows, kLength));
    std::vector<int> slots, prompts, rest;
    for (size_t i = 0; i < kRows; ++i) {
      slots.push_back(static_cast<int>(kRows - i));
      prompts.push_back(5 + static_cast<int>(i) % 3);
      rest.push_back(kLength - 40 - prompts.back());
    }
    std::vector<std::vector<int>> steps(42, std::vector<int>(kRows, 1));
    steps.front() = prompts;
    steps.back() = rest;
    const std::vector<std::vector<int>> together = {std::vector<int>(kRows, kLength)};
    std::vector<Matrix> decoded = Convolve(*tested_, problem, documents, steps, slots);
    std::vector<Matrix> whole = Convolve(*tested_, problem, documents, together, slots);
    for (size_t i = 0; i < kRows; ++i)
      EXPECT_EQ(decoded[i].values(), whole[i].values()) << problem.what() << " document " << i;
  };
  ForEachProblem({2}, {1, 8, 33}, {0, 7}, check);
}

// Steps longer than any scratch of a backend holds, of one row and of two.
TEST_P(RecurrenceTest, LongStepsGiveTheSameBits) {
  constexpr int kLength = 9000, kOther = 5000, kCut = 997;
  const auto check = [&](Problem& problem) {
    std::vector<Matrix> documents = Documents(problem, {kLength, kOther});
    const auto run = [&](const std::vector<std::vector<int>>& steps) {
      std::vector<Matrix> outputs = Convolve(*tested_, problem, documents, steps, {2, 0});
      return std::vector{outputs[0].values(), outputs[1].values()};
    };
    std::vector<std::vector<int>> steps;
    for (int left = kLength, other = kOther; left > 0 || other > 0;) {
      steps.push_back({std::min(left, kCut), std::min(other, kCut - 10)});
      left -= steps.back()[0];
      other -= steps.back()[1];
    }
    const auto cut = run(steps);
    EXPECT_EQ(run({{kLength, kOther}}), cut) << problem.what();
    EXPECT_EQ(run({{0, kOther}, {kLength, 0}}), cut) << problem.what();
  };
  ForEachProblem({1}, {3}, {0, 7}, check);
}

// So many short prompts in a step that it is their number that fills a scratch, begun, ended and
// continued in a chunk.
TEST_P(RecurrenceTest, ManyShortPromptsGiveTheSameBits) {
  constexpr size_t kRows = 200;
  const auto check = [&](Problem& problem) {
    std::vector<Matrix> documents = Documents(problem, std::vector<int>(kRows, 33));
    std::vector<int> slots(kRows);
    for (size_t i = 0; i < kRows; ++i) slots[i] = static_cast<int>(i);
    const auto run = [&](const std::vector<int>& lengths) {  // of steps
      std::vector<std::vector<int>> steps;
      for (const int length : lengths) steps.emplace_back(kRows, length);
      std::vector<std::vector<float>> outputs;
      for (Matrix& output : Convolve(*tested_, problem, documents, steps, slots))
        outputs.push_back(output.values());
      return outputs;
    };
    const auto whole = run({33});
    EXPECT_EQ(run({2, 29, 2}), whole) << problem.what();
    EXPECT_EQ(run({2, 12, 2, 15, 1, 1}), whole) << problem.what();
  };
  ForEachProblem({1}, {3}, {0, 7}, check);
}

// The state's slot is all there is of it: a copy, made anywhere in a chunk, goes on with the bits
// of the original; a slot that is cleared has forgotten where it stood.
TEST_P(RecurrenceTest, CopiedAndClearedSlotsGiveTheSameBits) {
  constexpr int kLongestChunk = 32, kLength = 3 * kLongestChunk + 4;
  const auto check = [&](Problem& problem) {
    const SsmSpec& spec = problem.spec;
    Matrix document = Documents(problem, {kLength})[0];
    const auto weights = problem.Pack(*tested_);
    const Slots memory(*tested_, tested_->SsmStateBytes(*weights), 2);
    const PoolView pool = memory.view();
    const auto read = [&](int slot, int begin, int end, std::vector<float>& outputs) {
      const Row row = {.slot = SlotId(slot), .begin = 0, .end = end - begin, .position = begin};
      Matrix u(row.end, spec.num_inputs), y(Outputs(spec, row), spec.num_features());
      for (int t = begin; t < end; ++t) {
        for (int k = 0; k < spec.num_inputs; ++k) u.at(t - begin, k) = document.at(t, k);
      }
      tested_->Ssm(*weights, u.view(), {row}, pool, y.view());
      const std::vector<float> values = y.values();
      outputs.insert(outputs.end(), values.begin(), values.end());
    };
    std::vector<float> whole;
    read(0, 0, kLength, whole);
    for (int cut = 0; cut <= 2 * kLongestChunk + 1; ++cut) {
      tested_->ClearSlot(pool, SlotId(0));  // it stood in an odd chunk
      std::vector<float> begun;
      if (cut > 0) read(0, 0, cut, begun);
      std::memset(pool.slot<std::byte>(SlotId(1)), 0x5a, pool.slot_bytes);
      tested_->CopySlot(pool, SlotId(0), pool, SlotId(1));
      for (const int slot : {1, 0}) {
        std::vector<float> outputs = begun;
        read(slot, cut, cut + 1, outputs);
        read(slot, cut + 1, kLength, outputs);
        ASSERT_EQ(outputs, whole) << problem.what() << " cut " << cut << " slot " << slot;
      }
    }
  };
  ForEachProblem({2}, {3}, {0, 7}, check);
}

// Prompts in many rounds of the CUDA backend, for want of room for the states of their chunks.
TEST(CudaRecurrenceTest, FewPlacesGiveTheSameBits) {
  if (EmulatedBackendNames().empty()) GTEST_SKIP() << "not emulated under sanitizers";
  constexpr int kLength = 75;
  const auto roomy = *MakeCudaBackend({.blocking = true, .panel_rows = {}});
  for (const int places : {1, 3, 5}) {  // 1: there are two in any case
    const auto narrow =
        *MakeCudaBackend({.blocking = true, .panel_rows = {}, .most_chunk_places = places});
    const auto check = [&](Problem& problem) {
      std::vector<Matrix> documents = Documents(problem, {kLength, kLength});
      const auto run = [&](Backend& backend, const std::vector<std::vector<int>>& steps) {
        std::vector<Matrix> outputs = Convolve(backend, problem, documents, steps, {2, 0});
        return std::vector{outputs[0].values(), outputs[1].values()};
      };
      const auto whole = run(*roomy, {{kLength, kLength}});
      EXPECT_EQ(run(*narrow, {{kLength, kLength}}), whole) << problem.what();
      for (int cut = 1; cut < kLength - 1; ++cut) {
        const int other = kLength - 1 - cut;
        ASSERT_EQ(run(*narrow, {{cut, other}, {1, 1}, {other, cut}}), whole)
            << problem.what() << " cut " << cut << " places " << places;
      }
    };
    ForEachProblem({2}, {3, 33}, {0, 7}, check);
  }
}

// Changing an input leaves everything before it as it was, to the bit, and changes what follows.
TEST_P(RecurrenceTest, IsCausal) {
  ForEachProblem({17}, {5}, {0, 16}, [&](Problem& problem) {
    constexpr int kLength = 96, kChanged = 40;
    std::vector<Matrix> document = Documents(problem, {kLength});
    Matrix before = Convolve(*tested_, problem, document, {{kLength}}, {0})[0];
    document[0].at(kChanged, 3) += 1.0f;
    Matrix after = Convolve(*tested_, problem, document, {{kLength}}, {0})[0];
    const int block = problem.spec.outputs == SsmOutputs::kEveryToken ? 1 : problem.spec.block;
    for (int row = 0; row < kLength / block; ++row) {
      for (int f = 0; f < problem.spec.num_features(); ++f) {
        const bool depends = (row + 1) * block > kChanged && f % 17 == 3;
        if (!depends) {
          EXPECT_EQ(before.at(row, f), after.at(row, f)) << row << " " << f;
        } else if ((row + 1) * block <= kChanged + 16) {
          EXPECT_NE(before.at(row, f), after.at(row, f)) << row << " " << f;
        }
      }
    }
    document[0].at(kChanged, 3) = std::nanf("");
    after = Convolve(*tested_, problem, document, {{kLength}}, {0})[0];
    for (int row = 0; row < kLength / block; ++row) {
      for (int f = 0; f < problem.spec.num_features(); ++f) {
        if ((row + 1) * block > kChanged && f % 17 == 3) {
          EXPECT_TRUE(std::isnan(after.at(row, f))) << row << " " << f;
        } else {
          EXPECT_EQ(before.at(row, f), after.at(row, f)) << row << " " << f;
        }
      }
    }
  });
}

// The diagonal recurrence is a convolution: against 2 Re sum_m C B A^l, summed in float64.
TEST_P(RecurrenceTest, DiagonalIsTheConvolutionWithItsKernel) {
  constexpr int kLength = 3000;
  Problem problem(false, {.num_inputs = 1, .num_filters = 2}, 2, 1);
  problem.e = {-1e-4f, 0.01f, -0.2f, 0.5f, -1e-3f, -0.2f, -0.9f, 0.1f};
  for (Backend* backend : {reference_.get(), tested_.get()}) {
    std::vector<Matrix> u = Documents(problem, {kLength});
    Matrix y = Convolve(*backend, problem, u, {{kLength}}, {0})[0];
    for (size_t f = 0; f < 2; ++f) {
      std::vector<double> kernel(kLength, 0.0);
      for (size_t m = 2 * f; m < 2 * f + 2; ++m) {
        Complex x = At(problem.b, m);
        for (double& k : kernel) {
          k += 2 * (At(problem.c, m) * x).real();
          x += At(problem.e, m) * x;
        }
      }
      std::vector<float> expected, got;
      for (int t = 0; t < kLength; ++t) {
        double sum = double{problem.d[f]} * u[0].at(t, 0);
        for (int s = 0; s <= t; ++s) sum += kernel[static_cast<size_t>(t - s)] * u[0].at(s, 0);
        expected.push_back(static_cast<float>(sum));
        got.push_back(y.at(t, static_cast<int64_t>(f)));
      }
      EXPECT_LT(RelativeRms(got, expected), 1e-5);  // a mode that forgets over 10,000 tokens
    }
  }
}

// The fused step against the definition with matrices: (I - dt/2 A)^-1 ((I + dt/2 A) x + dt b u),
// A = diag(l, conj l) - (p, conj p) (p, conj p)^H.
// What a DPLR problem asks for: the bilinear rule with the matrix L - p p^H of modes and
// conjugates.
Matrix DenseBilinear(const Problem& problem, Matrix& u) {
  const int64_t length = u.view().dim(0), features = problem.spec.num_features();
  Matrix y(length, features);
  const auto half = static_cast<size_t>(problem.modes), n = 2 * half;
  for (size_t f = 0; f < static_cast<size_t>(features); ++f) {
    const double dt = problem.dt[f];
    const auto full = [&](const std::vector<float>& values) {  // the modes and their conjugates
      ComplexVector out(n);
      for (size_t m = 0; m < half; ++m) {
        out[m] = At(values, f * half + m);
        out[half + m] = std::conj(out[m]);
      }
      return out;
    };
    const ComplexVector dt_lambda = full(problem.dt_lambda), p = full(problem.p),
                        dt_b = full(problem.dt_b), c = full(problem.c);
    ComplexMatrix forward(n, ComplexVector(n)), implicit = forward;
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) {
        const Complex dt_a = (i == j ? dt_lambda[i] : 0.0) - dt * p[i] * std::conj(p[j]);
        forward[i][j] = (i == j ? 1.0 : 0.0) + dt_a / 2.0;
        implicit[i][j] = (i == j ? 1.0 : 0.0) - dt_a / 2.0;
      }
    }
    ComplexVector x(n);
    for (int64_t t = 0; t < length; ++t) {
      const double input = u.at(t, static_cast<int64_t>(f) % problem.spec.num_inputs);
      ComplexVector right = Product(forward, x);
      for (size_t i = 0; i < n; ++i) right[i] += dt_b[i] * input;
      x = Solve(implicit, right);
      Complex sum = double{problem.d[f]} * input;
      for (size_t i = 0; i < n; ++i) sum += c[i] * x[i];
      EXPECT_NEAR(sum.imag(), 0, 1e-7);
      y.at(t, static_cast<int64_t>(f)) = static_cast<float>(sum.real());
    }
  }
  return y;
}

TEST_P(RecurrenceTest, DplrIsTheDenseBilinearRecurrence) {
  for (const int modes : {1, 2, 5, 16}) {
    Problem problem(true, {.num_inputs = 8, .num_filters = 2}, modes, 50);
    std::vector<Matrix> u = Documents(problem, {200});
    Matrix got = Convolve(*tested_, problem, u, {{200}}, {0})[0];
    EXPECT_LT(RelativeRms(got.values(), DenseBilinear(problem, u[0]).values()), 5e-6)
        << "modes " << modes;
  }
}

// A coupling that takes almost all of the state along p away in every step.
TEST(DplrTest, LargeCouplingsStayStable) {
  if (kSanitizedForRaces)
    GTEST_SKIP() << "shared out as the other cases, whose couplings are smaller";
  for (const char* const name : {"reference", "cpu"}) {
    const auto backend = *MakeBackend(name);
    for (const int modes : {8, 32}) {
      Problem problem(true, {.num_inputs = 4, .num_filters = 1}, modes, 60, /*coupling=*/1000);
      std::vector<Matrix> u = Documents(problem, {200});
      Matrix got = Convolve(*backend, problem, u, {{200}}, {0})[0];
      EXPECT_LT(RelativeRms(got.values(), DenseBilinear(problem, u[0]).values()), 1e-5)
          << name << ", modes " << modes;
    }
  }
}

// A mode that forgets over a million tokens still knows its first input after 200,000, to 1e-5.
// (With A rounded to float32 instead of A - 1 the error would be about 5e-3, with A^16 for a chunk
// instead of A^16 - 1 1.6e-4.)
TEST_P(RecurrenceTest, SlowModesDoNotDrift) {
  constexpr int kLength = 200'000;
  Problem problem(false, {.num_inputs = 1, .num_filters = 1}, 1, 1);
  const Complex z(-1e-6, 1.1e-3);
  const Complex e = std::exp(z) - 1.0;
  problem.e = {static_cast<float>(e.real()), static_cast<float>(e.imag())};
  problem.b = {1, 0};
  problem.c = {0.5f, 0};
  problem.d = {0};
  std::vector<Matrix> impulse(1, Matrix(kLength, 1));
  for (int t = 0; t < kLength; ++t) impulse[0].at(t, 0) = t == 0 ? 1.0f : 0.0f;
  Matrix y = Convolve(*tested_, problem, impulse, {{kLength}}, {0})[0];
  const Complex exact(problem.e[0], problem.e[1]);
  double worst = 0;
  for (int t = kLength - 10'000; t < kLength; ++t) {
    const Complex x = std::exp(static_cast<double>(t) * std::log(1.0 + exact));
    worst = std::max(worst, std::abs(y.at(t, 0) - x.real()) / std::abs(x));
  }
  EXPECT_LT(worst, 3e-5);
}

// Likewise of S4: two modes that forget over a million tokens, and their coupling, against the
// reference, to 4e-6. (With A^32 rounded the error would be 2e-5 at least.)
TEST_P(RecurrenceTest, SlowCoupledModesDoNotDrift) {
  constexpr int kLength = kSanitized ? 20'000 : 100'000;
  Problem problem(true, {.num_inputs = 1, .num_filters = 1}, 2, 1);
  const Complex z[] = {{-1e-6, 1.1e-3}, {-1e-6, -2.3e-3}}, p[] = {{1e-3, 2e-3}, {-1e-3, 1e-3}};
  problem.dt = {1.0f};
  problem.d = {0};
  problem.c = {0.5f, 0, 0.5f, 0};
  for (std::vector<float>* values :
       {&problem.dt_lambda, &problem.dt_b, &problem.p, &problem.g, &problem.w})
    values->clear();
  double rho = 1;
  for (size_t m = 0; m < 2; ++m) rho += (std::norm(p[m]) / (1.0 - z[m] / 2.0)).real();
  for (size_t m = 0; m < 2; ++m) {
    const Complex g = 1.0 / (1.0 - z[m] / 2.0);
    Append(problem.dt_lambda, z[m]);
    Append(problem.dt_b, 1.0);
    Append(problem.p, p[m]);
    Append(problem.g, g);
    Append(problem.w, 0.5 * std::conj(p[m]) * g / rho);
  }
  std::vector<Matrix> impulse(1, Matrix(kLength, 1));
  for (int t = 0; t < kLength; ++t) impulse[0].at(t, 0) = t == 0 ? 1.0f : 0.0f;
  const auto last = [&](Backend& backend) {
    std::vector<float> y = Convolve(backend, problem, impulse, {{kLength}}, {0})[0].values();
    return std::vector<float>(y.end() - 10'000, y.end());
  };
  EXPECT_LT(RelativeRms(last(*tested_), last(*reference_)), 1.2e-5);
}

// Rows of a scan: real parts, then imaginary ones.
Matrix RunScan(Backend& backend, std::vector<float>& e, Matrix v, const std::vector<int>& cuts,
               int slot) {
  const auto modes = static_cast<int64_t>(e.size() / 2);
  const auto weights = *backend.PackScan(Contiguous(e, {modes, 2}));
  const Slots memory(backend, backend.ScanStateBytes(*weights), 3);
  int64_t position = 0;
  for (const int n : cuts) {
    const Row row = {.slot = SlotId(slot), .begin = 0, .end = n, .position = position};
    backend.Scan(*weights, v.view().Rows(position, position + n), {row}, memory.view());
    position += n;
  }
  EXPECT_TRUE(v.SentinelsIntact());
  return v;
}

TEST_P(RecurrenceTest, ScanAgreesWithTheReferenceAndItsClosedForm) {
  constexpr int kLength = 120;
  for (const int modes : {1, 15, 16, 17, 50, 64, 65, 130, 400}) {
    std::vector<float> e = DecayingModes(static_cast<size_t>(modes), 70);
    Matrix v = Matrix::Random(kLength, 2 * modes, 71), expected(kLength, 2 * modes);
    for (int m = 0; m < modes; ++m) {  // x_t = sum_s A^(t - s) v_s
      const Complex a = 1.0 + At(e, static_cast<size_t>(m));
      for (int t = 0; t < kLength; ++t) {
        Complex x = 0;
        for (int s = 0; s <= t; ++s)
          x += std::pow(a, t - s) * Complex(v.at(s, m), v.at(s, modes + m));
        expected.at(t, m) = static_cast<float>(x.real());
        expected.at(t, modes + m) = static_cast<float>(x.imag());
      }
    }
    for (Backend* backend : {reference_.get(), tested_.get()}) {
      Matrix got = RunScan(*backend, e, v, {kLength}, 0);
      EXPECT_LT(RelativeRms(got.values(), expected.values()), kTolerance) << "modes " << modes;
      const std::vector<int> cuts = {1, 1, 50, 1, 17, 40, 10};
      EXPECT_EQ(RunScan(*backend, e, v, cuts, 2).values(), got.values()) << "modes " << modes;
    }
  }
}

TEST_P(RecurrenceTest, ScanRowsDoNotDependOnTheirNeighbours) {
  for (const int modes : {17, 400}) {
    std::vector<float> e = DecayingModes(static_cast<size_t>(modes), 70);
    Matrix first = Matrix::Random(90, 2 * modes, 72), both(100, 2 * modes);
    for (int t = 0; t < 100; ++t) {
      for (int i = 0; i < 2 * modes; ++i) both.at(t, i) = first.at(std::max(0, t - 10), i);
    }
    for (Backend* backend : {reference_.get(), tested_.get()}) {
      const auto weights = *backend->PackScan(Contiguous(e, {modes, 2}));
      const Slots memory(*backend, backend->ScanStateBytes(*weights), 2);
      Matrix together = both;
      backend->Scan(*weights, together.view(),
                    {Row{.slot = SlotId(1), .begin = 0, .end = 10, .position = 0},
                     Row{.slot = SlotId(0), .begin = 10, .end = 100, .position = 0}},
                    memory.view());
      Matrix alone = RunScan(*backend, e, first, {90}, 0);
      for (int t = 0; t < 90; ++t) {
        for (int i = 0; i < 2 * modes; ++i)
          ASSERT_EQ(together.at(t + 10, i), alone.at(t, i)) << t << " " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RecurrenceTest, testing::ValuesIn(OperatorBackendNames()),
                         BackendTestName);

}  // namespace
}  // namespace bst
