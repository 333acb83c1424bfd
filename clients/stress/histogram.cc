#include "clients/stress/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace bst::stress {
namespace {

constexpr double kMicrosecond = 1e-6;
constexpr double kLongest = 1e6;  // seconds

}  // namespace

void Histogram::Add(double seconds) {
  seconds = std::clamp(seconds, 0.0, kLongest);
  const size_t index = Index(static_cast<uint64_t>(seconds / kMicrosecond));
  if (index >= counts_.size()) counts_.resize(index + 1);
  ++counts_[index];
  min_ = count_ == 0 ? seconds : std::min(min_, seconds);
  max_ = std::max(max_, seconds);
  sum_ += seconds;
  sum_of_squares_ += seconds * seconds;
  ++count_;
}

void Histogram::Merge(const Histogram& other) {
  if (other.count_ == 0) return;
  if (counts_.size() < other.counts_.size()) counts_.resize(other.counts_.size());
  for (size_t i = 0; i < other.counts_.size(); ++i) counts_[i] += other.counts_[i];
  min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
  sum_of_squares_ += other.sum_of_squares_;
  count_ += other.count_;
}

double Histogram::mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

double Histogram::standard_deviation() const {
  if (count_ == 0) return 0;
  const double variance = sum_of_squares_ / static_cast<double>(count_) - mean() * mean();
  return std::sqrt(std::max(variance, 0.0));
}

double Histogram::Percentile(double percent) const {
  if (count_ == 0) return 0;
  const double exact_rank = std::ceil(percent / 100 * static_cast<double>(count_) - 1e-9);
  const uint64_t rank =
      std::clamp(static_cast<uint64_t>(std::max(exact_rank, 1.0)), uint64_t{1}, count_);
  if (rank == count_) return max_;
  if (rank == 1) return min_;
  uint64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::clamp(Middle(i), min_, max_);
  }
  return max_;
}

std::vector<Histogram::Bucket> Histogram::Buckets() const {
  std::vector<Bucket> buckets;
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] > 0) buckets.push_back({std::clamp(Middle(i), min_, max_), counts_[i]});
  }
  return buckets;
}

// Below 2^bits one bucket per microsecond; then 2^bits buckets for every doubling.
size_t Histogram::Index(uint64_t microseconds) const {
  const uint64_t steps = uint64_t{1} << bits_;
  if (microseconds < steps) return microseconds;
  const int octave = static_cast<int>(std::bit_width(microseconds)) - 1 - bits_;
  return (static_cast<uint64_t>(octave) << bits_) + (microseconds >> octave);
}

double Histogram::Middle(size_t index) const {
  const uint64_t steps = uint64_t{1} << bits_;
  if (index < steps) return (static_cast<double>(index) + 0.5) * kMicrosecond;
  const int octave = static_cast<int>(index >> bits_) - 1;
  const uint64_t low = (steps + (index & (steps - 1))) << octave;
  return (static_cast<double>(low) + 0.5 * static_cast<double>(uint64_t{1} << octave)) *
         kMicrosecond;
}

}  // namespace bst::stress
