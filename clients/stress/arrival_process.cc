#include "clients/stress/arrival_process.h"

#include <cmath>
#include <random>

namespace bst::stress {
namespace {

constexpr uint64_t kStream = 0xa221;  // apart from the streams of requests, which count from 0

}  // namespace

ArrivalProcess::ArrivalProcess(Arrivals kind, double rate, double burstiness, uint64_t seed)
    : kind_(kind), rate_(rate), burstiness_(burstiness), random_(seed, ~kStream) {}

double ArrivalProcess::NextGap() {
  switch (kind_) {
    case Arrivals::kConstant:
      return 1 / rate_;
    case Arrivals::kPoisson:
      return -std::log1p(-random_.Uniform()) / rate_;
    case Arrivals::kGamma:
      return std::gamma_distribution<double>(burstiness_, 1 / (burstiness_ * rate_))(random_);
  }
  return 1 / rate_;
}

}  // namespace bst::stress
