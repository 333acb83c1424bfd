// Which vector instructions this processor has. Asked once, when the backend is made.
#pragma once

#include <string_view>

namespace bst {

// In ascending order: each level includes those before it.
enum class CpuIsa { kNone, kAvx2, kAvx512, kAmx };

// The best level that the processor and the operating system support.
//   kAvx2    AVX2 and FMA
//   kAvx512  F, BW, DQ and VL
//   kAmx     AVX-512 and AMX tiles with BF16, granted to this process by the kernel
CpuIsa DetectCpuIsa();

std::string_view Name(CpuIsa isa);

}  // namespace bst
