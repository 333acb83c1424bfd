// The tables of recurrences in chunks against other ways to the same numbers. That a recurrence
// made of them is the one of its parameters, tests/engine/backend/recurrence_test.cc shows.
#include "engine/backend/cuda/chunk_tables.h"

#include <cmath>
#include <complex>
#include <map>
#include <string>
#include <vector>

#include "engine/backend/cuda/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bst {
namespace {

using Complex = std::complex<long double>;
using testing::HasSubstr;

TensorView View(std::vector<float>& values, Shape shape) {
  return {values.data(), DType::kF32, shape};
}
Complex At(const std::vector<float>& values, size_t i) {
  return {values[2 * i], values[2 * i + 1]};
}
void Append(std::vector<float>& out, std::complex<double> x) {
  out.push_back(static_cast<float>(x.real()));
  out.push_back(static_cast<float>(x.imag()));
}

class Collected {
 public:
  absl::Status Put(ChunkTable table, size_t row, absl::Span<const float> values) {
    std::vector<std::vector<float>>& rows = tables_[table];
    if (rows.size() <= row) rows.resize(row + 1);
    EXPECT_TRUE(rows[row].empty()) << "row " << row << " comes twice";
    rows[row].assign(values.begin(), values.end());
    return absl::OkStatus();
  }
  auto Sink() {
    return [this](ChunkTable table, size_t row, absl::Span<const float> values) {
      return Put(table, row, values);
    };
  }
  double At(ChunkTable table, size_t row, size_t feature) {
    return tables_[table].at(row).at(feature);
  }
  void ExpectComplete(int chunk, int reals, cuda::Recurrence kind, size_t features) {
    for (const ChunkTable table :
         {ChunkTable::kTaps, ChunkTable::kOut, ChunkTable::kIn, ChunkTable::kCarry}) {
      EXPECT_EQ(tables_[table].size(), ChunkTableRows(table, chunk, reals, kind));
      for (const std::vector<float>& row : tables_[table]) EXPECT_EQ(row.size(), features);
    }
  }

 private:
  std::map<ChunkTable, std::vector<std::vector<float>>> tables_;
};

// Twice what a rounding to float32 may be.
double Allowed(double exact) { return std::ldexp(std::fabs(exact), -23); }

struct Diagonal {
  int features;
  int64_t modes;
  std::vector<float> e, b, c, d;

  SsmParameters parameters() {
    const Shape shape = {features, modes, 2};
    return {.spec = {.num_inputs = features},
            .a_minus_one = View(e, shape),
            .b = View(b, shape),
            .c = View(c, shape),
            .d = View(d, {features})};
  }
};

// A^T - 1 of modes that forget over 100 to 10^9 tokens, by the binomial theorem.
TEST(ChunkTablesTest, DiagonalCarriesKeepTheirRelativePrecision) {
  Diagonal problem = {.features = 2, .modes = 3, .e = {}, .b = {}, .c = {}, .d = {1, 2}};
  for (const std::complex<double> z : {std::complex<double>(-1e-6, 1.1e-3),
                                       {-1e-9, 0},
                                       {-1e-4, -2e-5},
                                       {-1e-9, 1e-7},
                                       {-1e-2, 0.3},
                                       {-3e-7, 3e-6}}) {
    Append(problem.e, std::exp(z) - 1.0);
    Append(problem.b, 1.0);
    Append(problem.c, 0.5);
  }
  Collected tables;
  ASSERT_TRUE(MakeDiagonalTables(problem.parameters(), tables.Sink()).ok());
  tables.ExpectComplete(cuda::kDiagonalChunk, 6, cuda::Recurrence::kDiagonal, 2);
  for (size_t f = 0; f < 2; ++f) {
    for (size_t m = 0; m < 3; ++m) {
      const Complex e = At(problem.e, 3 * f + m);
      Complex exact = 0, term = 1;
      for (int k = 1; k <= cuda::kDiagonalChunk; ++k) {
        term *= e * static_cast<long double>(cuda::kDiagonalChunk + 1 - k) /
                static_cast<long double>(k);
        exact += term;
      }
      const auto size = static_cast<double>(std::abs(exact));
      EXPECT_NEAR(tables.At(ChunkTable::kCarry, 2 * m, f), static_cast<double>(exact.real()),
                  Allowed(size));
      EXPECT_NEAR(tables.At(ChunkTable::kCarry, 2 * m + 1, f), static_cast<double>(exact.imag()),
                  Allowed(size));
    }
  }
}

struct Dplr {
  int64_t modes;
  std::vector<float> dt_lambda, dt_b, p, g, w, c, dt, d;

  DplrParameters parameters() {
    const Shape shape = {1, modes, 2};
    return {.spec = {.num_inputs = 1},
            .dt_lambda = View(dt_lambda, shape),
            .dt_b = View(dt_b, shape),
            .p = View(p, shape),
            .g = View(g, shape),
            .w = View(w, shape),
            .c = View(c, shape),
            .dt = View(dt, {1}),
            .d = View(d, {1})};
  }
  // A - 1 over the parts of the modes, as ssm.h has the step.
  std::vector<std::vector<long double>> Increment() const {
    const auto n = static_cast<size_t>(modes);
    std::vector<std::vector<long double>> matrix(2 * n, std::vector<long double>(2 * n));
    for (size_t column = 0; column < 2 * n; ++column) {
      std::vector<Complex> x(n), v(n);
      x[column / 2] = column % 2 == 0 ? Complex(1, 0) : Complex(0, 1);
      long double s = 0, r = 0;
      for (size_t m = 0; m < n; ++m) s += 2 * (std::conj(At(p, m)) * x[m]).real();
      for (size_t m = 0; m < n; ++m) {
        v[m] = At(dt_lambda, m) * x[m] - static_cast<long double>(dt[0]) * s * At(p, m);
        r += 2 * (At(w, m) * v[m]).real();
      }
      for (size_t m = 0; m < n; ++m) {
        const Complex step = At(g, m) * (v[m] - r * At(p, m));
        matrix[2 * m][column] = step.real();
        matrix[2 * m + 1][column] = step.imag();
      }
    }
    return matrix;
  }
};

// Two modes that forget over a million tokens, and their coupling: A^T - 1 by squarings.
TEST(ChunkTablesTest, DplrCarriesKeepTheirRelativePrecision) {
  Dplr problem = {.modes = 2,
                  .dt_lambda = {},
                  .dt_b = {},
                  .p = {},
                  .g = {},
                  .w = {},
                  .c = {0.5f, 0, 0.5f, 0},
                  .dt = {1},
                  .d = {0}};
  const std::complex<double> z[] = {{-1e-6, 1.1e-3}, {-1e-6, -2.3e-3}},
                             p[] = {{1e-3, 2e-3}, {-1e-3, 1e-3}};
  for (size_t m = 0; m < 2; ++m) {
    const std::complex<double> g = 1.0 / (1.0 - z[m] / 2.0);
    Append(problem.dt_lambda, z[m]);
    Append(problem.dt_b, 1.0);
    Append(problem.p, p[m]);
    Append(problem.g, g);
    Append(problem.w, 0.5 * std::conj(p[m]) * g);
  }
  Collected tables;
  ASSERT_TRUE(MakeDplrTables(problem.parameters(), tables.Sink()).ok());
  tables.ExpectComplete(cuda::kDplrChunk, 4, cuda::Recurrence::kDplr, 1);
  auto exact = problem.Increment();
  for (int power = 1; power < cuda::kDplrChunk; power *= 2) {  // (1 + F)^2 - 1 = F F + 2 F
    auto next = exact;
    for (size_t i = 0; i < 4; ++i) {
      for (size_t j = 0; j < 4; ++j) {
        next[i][j] = 2 * exact[i][j];
        for (size_t k = 0; k < 4; ++k) next[i][j] += exact[i][k] * exact[k][j];
      }
    }
    exact = next;
  }
  for (size_t i = 0; i < 4; ++i) {
    for (size_t j = 0; j < 4; ++j) {
      const auto expected = static_cast<double>(exact[i][j]);
      EXPECT_NEAR(tables.At(ChunkTable::kCarry, 4 * i + j, 0), expected, Allowed(expected))
          << i << " " << j;
    }
  }
}

TEST(ChunkTablesTest, WeightsBeyondFloat32AreRefused) {
  const auto unused = [](ChunkTable, size_t, absl::Span<const float>) { return absl::OkStatus(); };
  Diagonal diagonal = {.features = 2,
                       .modes = 1,
                       .e = {-0.1f, 0, 1e5f, 0},
                       .b = {1, 0, 1, 0},
                       .c = {1, 0, 1, 0},
                       .d = {0, 0}};
  absl::Status status = MakeDiagonalTables(diagonal.parameters(), unused);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("feature 1 of a recurrence"));
  // Each part is finite, and so is the mode; the sum over modes is not.
  diagonal = {.features = 1,
              .modes = 2,
              .e = {-0.1f, 0, -0.1f, 0},
              .b = {1e38f, 0, 1e38f, 0},
              .c = {1, 0, 1, 0},
              .d = {0}};
  status = MakeDiagonalTables(diagonal.parameters(), unused);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("an output's weight of an input"));

  Dplr dplr = {.modes = 1,
               .dt_lambda = {1e5f, 0},
               .dt_b = {1, 0},
               .p = {0, 0},
               .g = {1, 0},
               .w = {0, 0},
               .c = {1, 0},
               .dt = {1},
               .d = {0}};
  status = MakeDplrTables(dplr.parameters(), unused);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("feature 0 of a recurrence"));
}

}  // namespace
}  // namespace bst
