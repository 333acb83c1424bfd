// Which vector instructions this processor has. Asked once, when the backend is made.
//
// Threads   Free functions, thread-safe.
// Tested by tests/engine/backend/agreement_test.cc (every instruction set that the machine has, and
//           AMX)
#pragma once

#include <string_view>

namespace bst {

// In ascending order of preference. kAmx does not include kAvx512Bf16; otherwise each level
// includes those before it.
enum class CpuIsa { kNone, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

// The best level that the processor and the operating system support.
//   kAvx2        AVX2 and FMA
//   kAvx512      F, BW, DQ and VL
//   kAvx512Vnni  and dot products of bytes
//   kAvx512Bf16  and dot products of BF16, on processors that run them faster than float32 FMAs:
//                AMD's. Intel's run them at half of FMA's rate (measured), so count as kAvx512Vnni.
//   kAmx         AVX-512 with VNNI and AMX tiles with BF16 and INT8, granted to this process by the
//                kernel; Intel's, so without the BF16 dot products
CpuIsa DetectCpuIsa();
// Whether this processor runs the kernels of `isa`.
bool Supports(CpuIsa best, CpuIsa isa);

std::string_view Name(CpuIsa isa);

}  // namespace bst
