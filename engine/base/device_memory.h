// DeviceMemory: of a device that is not the host, as its driver counts it, other processes' part
// among what is not free.
//
// Threads     A value.
// Tested by   tests/server/metrics_exporter_test.cc, tests/e2e/emulated_cuda_test.py
#pragma once

#include <cstddef>

namespace bst {

struct DeviceMemory {
  size_t total_bytes = 0, free_bytes = 0;
};

}  // namespace bst
