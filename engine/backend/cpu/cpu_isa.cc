#include "engine/backend/cpu/cpu_isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace bst {
namespace {

// AMX tiles with BF16 and INT8 products (CPUID leaf 7, EDX), and Linux's leave to use the tile
// registers, which a process must ask for once.
bool HasAmx() {
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;  // BF16, TILE, INT8
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmx) != kAmx) return false;
  constexpr long kRequestPermission = 0x1023,
                 kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

CpuIsa DetectCpuIsa() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::kNone;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512vnni")) return CpuIsa::kAvx512;
    if (HasAmx()) return CpuIsa::kAmx;
    const bool fast_bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd");
    return fast_bf16 ? CpuIsa::kAvx512Bf16 : CpuIsa::kAvx512Vnni;
  }
  return CpuIsa::kAvx2;
}

bool Supports(CpuIsa best, CpuIsa isa) {
  return isa <= best && !(best == CpuIsa::kAmx && isa == CpuIsa::kAvx512Bf16);
}

std::string_view Name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kNone:
      return "none";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Vnni:
      return "avx512vnni";
    case CpuIsa::kAvx512Bf16:
      return "avx512bf16";
    case CpuIsa::kAmx:
      return "amx";
  }
  return "unknown";
}

}  // namespace bst
