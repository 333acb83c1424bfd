#include "engine/tensor/tensor_view.h"

#include <cstdint>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace bst {
namespace {

TEST(ShapeTest, DimensionsElementsAndText) {
  const Shape shape({2, 3, 4});
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[2], 4);
  EXPECT_EQ(shape.num_elements(), 24);
  EXPECT_EQ(shape.ToString(), "[2, 3, 4]");
  EXPECT_EQ(shape.PlaceOf(0), "[0, 0, 0]");
  EXPECT_EQ(shape.PlaceOf(18), "[1, 1, 2]");
  EXPECT_EQ(Shape().num_elements(), 1);  // a scalar
  EXPECT_EQ(Shape().ToString(), "[]");
  EXPECT_EQ(Shape().PlaceOf(0), "[]");
  EXPECT_EQ(Shape({5, 0}).num_elements(), 0);
}

TEST(ShapeTest, EqualMeansSameRankAndDimensions) {
  EXPECT_EQ(Shape({2, 3}), Shape({2, 3}));
  EXPECT_NE(Shape({2, 3}), Shape({3, 2}));
  EXPECT_NE(Shape({2, 3}), Shape({2, 3, 1}));
  EXPECT_NE(Shape({0}), Shape());
}

TEST(ShapeDeathTest, MoreThanFourDimensionsAreABug) {
  EXPECT_DEATH(Shape({1, 1, 1, 1, 1}), "rank 5");
}

class TensorViewTest : public testing::Test {
 protected:
  TensorViewTest() : data_(24) { std::iota(data_.begin(), data_.end(), 0.0f); }

  std::vector<float> data_;  // 0 .. 23
};

TEST_F(TensorViewTest, DefaultIsEmpty) {
  EXPECT_TRUE(TensorView().empty());
  EXPECT_FALSE(TensorView(data_.data(), DType::kF32, {24}).empty());
}

TEST_F(TensorViewTest, RowsAreFoundByTheStride) {
  const TensorView matrix(data_.data(), DType::kF32, {4, 6});
  EXPECT_EQ(matrix.row_stride(), 6);
  EXPECT_EQ(matrix.row<float>(2)[1], 13.0f);
  const TensorView strided(data_.data(), DType::kF32, {3, 2}, /*row_stride=*/8);
  EXPECT_EQ(strided.row<float>(2)[1], 17.0f);
  const TensorView cube(data_.data(), DType::kF32, {2, 3, 4});
  EXPECT_EQ(cube.row_stride(), 12);
  EXPECT_EQ(cube.row<float>(1)[0], 12.0f);
}

TEST_F(TensorViewTest, RangeOfRows) {
  const TensorView rows = TensorView(data_.data(), DType::kF32, {4, 6}).Rows(1, 3);
  EXPECT_EQ(rows.shape(), Shape({2, 6}));
  EXPECT_EQ(rows.row<float>(0)[0], 6.0f);
  EXPECT_EQ(rows.row<float>(1)[5], 17.0f);
  EXPECT_EQ(TensorView(data_.data(), DType::kF32, {4, 6}).Rows(4, 4).dim(0), 0);
}

TEST_F(TensorViewTest, RangeOfColumnsKeepsTheStride) {
  const TensorView columns = TensorView(data_.data(), DType::kF32, {4, 6}).Columns(2, 5);
  EXPECT_EQ(columns.shape(), Shape({4, 3}));
  EXPECT_EQ(columns.row_stride(), 6);
  EXPECT_EQ(columns.row<float>(3)[0], 20.0f);
  EXPECT_EQ(columns.Rows(1, 2).row<float>(0)[2], 10.0f);
}

TEST_F(TensorViewTest, RangesCountInElementsOfTheType) {
  std::vector<uint16_t> halves(12);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  const TensorView matrix(halves.data(), DType::kBF16, {3, 4});
  EXPECT_EQ(matrix.Rows(1, 3).Columns(1, 2).row<uint16_t>(1)[0], 9);
}

TEST_F(TensorViewTest, ScalarsAndEmptyTensorsHaveNoStride) {
  EXPECT_EQ(TensorView(data_.data(), DType::kF32, {}).row_stride(), 0);
  EXPECT_EQ(TensorView(data_.data(), DType::kF32, {0, 6}).row_stride(), 0);
}

using TensorViewDeathTest = TensorViewTest;

TEST_F(TensorViewDeathTest, RangesOutsideAreABug) {
  const TensorView matrix(data_.data(), DType::kF32, {4, 6});
  EXPECT_DEATH(matrix.Rows(2, 5), "2 .. 5 of \\[4, 6\\]");
  EXPECT_DEATH(matrix.Rows(-1, 2), "-1 .. 2");
  EXPECT_DEATH(matrix.Columns(5, 4), "5 .. 4");
  EXPECT_DEATH(TensorView(data_.data(), DType::kF32, {24}).Columns(0, 1), "\\[24\\]");
}

TEST_F(TensorViewDeathTest, CheckShapeNamesBothShapes) {
  const TensorView matrix(data_.data(), DType::kF32, {4, 6});
  BST_CHECK_SHAPE(matrix, {4, 6});
  EXPECT_DEATH(BST_CHECK_SHAPE(matrix, {6, 4}),
               "shape of matrix is \\[4, 6\\], expected \\[6, 4\\]");
}

}  // namespace
}  // namespace bst
