// Histogram: how often which duration was seen, in constant memory.
//
// Buckets are logarithmic with 2^precision_bits linear steps per octave, as in HdrHistogram: a
// percentile is off by at most half a step (0.4 % with 7 bits) or half a microsecond. Count, sum,
// least and greatest are exact. Durations are seconds, from 0 to 12 days; others are clamped.
//
// Threads     Thread-compatible.
// Tested by   tests/clients/stress/histogram_test.cc
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bst::stress {

class Histogram {
 public:
  explicit Histogram(int precision_bits = 7) : bits_(precision_bits) {}

  void Add(double seconds);
  // `other` has the same precision.
  void Merge(const Histogram& other);

  uint64_t count() const { return count_; }
  double min() const { return count_ == 0 ? 0 : min_; }
  double max() const { return max_; }
  double mean() const;
  // Of the population.
  double standard_deviation() const;
  // The least duration that `percent` of all do not exceed (nearest rank); 100 is the maximum, 0
  // the minimum. 0 when empty.
  double Percentile(double percent) const;

  // The filled buckets in ascending order: the middle and how many durations fell into it.
  struct Bucket {
    double seconds;
    uint64_t count;
  };
  std::vector<Bucket> Buckets() const;

 private:
  size_t Index(uint64_t microseconds) const;
  double Middle(size_t index) const;

  int bits_;
  std::vector<uint64_t> counts_;  // grows to the highest bucket in use
  uint64_t count_ = 0;
  double min_ = 0, max_ = 0, sum_ = 0, sum_of_squares_ = 0;
};

}  // namespace bst::stress
