// TensorView: where a tensor lies, what it holds and how large it is; it owns nothing.
//
// Up to four dimensions, row-major. The inner dimensions are contiguous; the first may be strided,
// so that a column range of a matrix (the queries within a fused q,k,v projection) is a view too.
//
// Ownership   None: whoever holds the Buffer (or the mapped file) outlives the view.
// Threads     A value; the memory behind it follows the rule of its owner.
// Tested by   tests/engine/tensor/tensor_view_test.cc
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "engine/base/check.h"
#include "engine/tensor/dtype.h"

namespace bst {

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims)
      : Shape(absl::MakeConstSpan(dims.begin(), dims.size())) {}
  explicit Shape(absl::Span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    BST_CHECK(rank_ <= kMaxRank, "rank ", rank_);
    for (int i = 0; i < rank_; ++i) dims_[static_cast<size_t>(i)] = dims[static_cast<size_t>(i)];
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  absl::Span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  int64_t num_elements() const {
    int64_t n = 1;
    for (const int64_t d : dims()) n *= d;
    return n;
  }
  std::string ToString() const { return absl::StrCat("[", absl::StrJoin(dims(), ", "), "]"); }
  // "[0, 5, 2]": where the element of this index in row-major order is.
  // REQUIRES: 0 <= index < num_elements().
  std::string PlaceOf(int64_t index) const {
    std::array<int64_t, kMaxRank> place = {};
    for (auto i = static_cast<size_t>(rank_); i-- > 0; index /= dims_[i])
      place[i] = index % dims_[i];
    const auto end = place.begin() + rank_;
    return absl::StrCat("[", absl::StrJoin(place.begin(), end, ", "), "]");
  }

  friend bool operator==(const Shape& a, const Shape& b) { return a.dims() == b.dims(); }

 private:
  std::array<int64_t, kMaxRank> dims_ = {};
  int rank_ = 0;
};

class TensorView {
 public:
  TensorView() = default;  // Empty: no data, rank 0.
  TensorView(void* data, DType dtype, Shape shape)
      : TensorView(data, dtype, shape,
                   shape.rank() > 0 && shape[0] > 0 ? shape.num_elements() / shape[0] : 0) {}
  TensorView(void* data, DType dtype, Shape shape, int64_t row_stride)
      : data_(data), dtype_(dtype), shape_(shape), row_stride_(row_stride) {}

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t row_stride() const {
    return row_stride_;
  }  // elements from one index of dim 0 to the next
  void* data() const { return data_; }

  // The elements as T. REQUIRES: sizeof(T) is that of dtype().
  template <typename T>
  T* as() const {
    BST_DCHECK(sizeof(T) == SizeOf(dtype_), "element size of ", std::string(Name(dtype_)));
    return static_cast<T*>(data_);
  }
  // First element of row i.
  template <typename T>
  T* row(int64_t i) const {
    return as<T>() + i * row_stride_;
  }
  // Rows [begin, end). REQUIRES: rank >= 1, 0 <= begin <= end <= dim(0).
  TensorView Rows(int64_t begin, int64_t end) const;
  // Columns [begin, end) of a matrix. REQUIRES: rank 2.
  TensorView Columns(int64_t begin, int64_t end) const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Shape shape_;
  int64_t row_stride_ = 0;
};

inline TensorView TensorView::Rows(int64_t begin, int64_t end) const {
  BST_CHECK(shape_.rank() >= 1 && 0 <= begin && begin <= end && end <= dim(0), begin, " .. ", end,
            " of ", shape_.ToString());
  std::array<int64_t, Shape::kMaxRank> dims = {};
  for (int i = 0; i < shape_.rank(); ++i) dims[static_cast<size_t>(i)] = shape_[i];
  dims[0] = end - begin;
  return {
      static_cast<std::byte*>(data_) + static_cast<size_t>(begin * row_stride_) * SizeOf(dtype_),
      dtype_, Shape(absl::MakeConstSpan(dims.data(), static_cast<size_t>(shape_.rank()))),
      row_stride_};
}

inline TensorView TensorView::Columns(int64_t begin, int64_t end) const {
  BST_CHECK(shape_.rank() == 2 && 0 <= begin && begin <= end && end <= dim(1), begin, " .. ", end,
            " of ", shape_.ToString());
  return {static_cast<std::byte*>(data_) + static_cast<size_t>(begin) * SizeOf(dtype_), dtype_,
          Shape({dim(0), end - begin}), row_stride_};
}

}  // namespace bst

#define BST_CHECK_SHAPE(view, ...)                                                 \
  BST_CHECK((view).shape() == ::bst::Shape(__VA_ARGS__), "shape of " #view " is ", \
            (view).shape().ToString(), ", expected ", ::bst::Shape(__VA_ARGS__).ToString())
