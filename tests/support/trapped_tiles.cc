#include "tests/support/trapped_tiles.h"

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace bst {
namespace {

constexpr int kTiles = 8, kMaxRows = 16, kMaxColumns = 16;  // columns of four bytes

// What LDTILECFG reads.
struct Config {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

struct TileRegisters {
  Config config;  // palette 0: none
  uint32_t tiles[kTiles][kMaxRows][kMaxColumns];
};
// Zeros without a constructor, which a handler of signals could not run.
thread_local TileRegisters tile_registers;

std::atomic<bool> is_broken = false;

// The kernels trap in the middle of arithmetic, never within stdio.
[[noreturn]] void Fault(const char* instruction, const char* why) {
  std::fprintf(stderr, "%s would fault: %s\n", instruction, why);
  std::abort();
}

// The general registers as instructions number them.
constexpr std::array<int, 16> kGeneral = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                          REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                          REG_R12, REG_R13, REG_R14, REG_R15};

// An instruction of the form VEX.128.0F38.W0, which all of AMX's have.
struct Instruction {
  enum Prefix { kNone, k66, kF3, kF2 };
  int prefix;      // VEX.pp
  uint8_t opcode;  // of the map 0F38
  bool has_address;
  int reg, rm, vvvv;   // registers; rm only without an address
  uint64_t base = 0;   // the address less the index, if there is one
  uint64_t index = 0;  // times its scale: a tile's stride
  bool has_sib = false;
  int length;
};

// False if it is none of that form.
bool Decode(const uint8_t* code, const greg_t* registers, Instruction& instruction) {
  if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) return false;
  const bool r = (code[1] & 0x80) == 0, x = (code[1] & 0x40) == 0, b = (code[1] & 0x20) == 0;
  instruction.vvvv = 15 - (code[2] >> 3 & 15);
  instruction.prefix = code[2] & 3;
  instruction.opcode = code[3];
  const int mod = code[4] >> 6, rm = code[4] & 7;
  instruction.reg = (code[4] >> 3 & 7) + 8 * r;
  instruction.rm = rm + 8 * b;
  instruction.has_address = mod != 3;
  instruction.length = 5;
  if (!instruction.has_address) return true;
  const auto general = [&](int number) {
    return static_cast<uint64_t>(registers[kGeneral[static_cast<size_t>(number)]]);
  };
  bool no_base = mod == 0 && rm == 5;  // the address of the next instruction
  const bool relative = no_base;
  int base = instruction.rm;
  if (rm == 4) {
    const uint8_t sib = code[instruction.length++];
    instruction.has_sib = true;
    base = (sib & 7) + 8 * b;
    no_base = mod == 0 && (sib & 7) == 5;
    const int index = (sib >> 3 & 7) + 8 * x;
    if (index != 4) instruction.index = general(index) << (sib >> 6);
  }
  if (!no_base) instruction.base = general(base);
  if (mod == 1) {
    instruction.base += static_cast<uint64_t>(static_cast<int8_t>(code[instruction.length]));
    instruction.length += 1;
  } else if (mod == 2 || no_base) {
    int32_t displacement;
    std::memcpy(&displacement, code + instruction.length, sizeof(displacement));
    instruction.base += static_cast<uint64_t>(int64_t{displacement});
    instruction.length += 4;
  }
  if (relative) instruction.base += reinterpret_cast<uint64_t>(code + instruction.length);
  return true;
}

void Configure(const Instruction& instruction) {
  Config config;
  std::memcpy(&config, reinterpret_cast<const void*>(instruction.base + instruction.index),
              sizeof(config));
  const auto all_zero = [](const auto* begin, const auto* end) {
    return std::all_of(begin, end, [](auto value) { return value == 0; });
  };
  tile_registers = {};
  if (config.palette == 0) return;
  const char* const name = "LDTILECFG";
  if (config.palette > 1) Fault(name, "palettes are 0 and 1");
  if (!all_zero(std::begin(config.reserved), std::end(config.reserved)) ||
      !all_zero(config.row_bytes + kTiles, std::end(config.row_bytes)) ||
      !all_zero(config.rows + kTiles, std::end(config.rows)))
    Fault(name, "reserved bytes are not 0");
  for (int t = 0; t < kTiles; ++t) {
    if (config.rows[t] > kMaxRows) Fault(name, "a tile has more than 16 rows");
    if (config.row_bytes[t] > 4 * kMaxColumns) Fault(name, "a tile's rows have more than 64 bytes");
    if ((config.rows[t] == 0) != (config.row_bytes[t] == 0))
      Fault(name, "a tile has rows without bytes or bytes without rows");
  }
  tile_registers.config = config;
}

// A tile that the configuration has.
int Tile(const char* instruction, int number) {
  if (tile_registers.config.palette == 0) Fault(instruction, "tiles are not configured");
  if (number >= kTiles) Fault(instruction, "there is no such tile");
  if (tile_registers.config.rows[number] == 0) Fault(instruction, "the tile has no rows");
  return number;
}

// One whose rows are whole groups of four bytes.
int TileOfGroups(const char* instruction, int number) {
  const int t = Tile(instruction, number);
  if (tile_registers.config.row_bytes[t] % 4 != 0)
    Fault(instruction, "the tile's rows are no multiple of four bytes");
  return t;
}

void LoadOrStore(const char* name, const Instruction& instruction, bool load) {
  if (!instruction.has_sib) Fault(name, "the address needs a base and an index");
  const Config& config = tile_registers.config;
  const int t = TileOfGroups(name, instruction.reg);
  if (config.start_row != 0) Fault(name, "it starts at a later row, which is not emulated");
  if (load) std::memset(tile_registers.tiles[t], 0, sizeof(tile_registers.tiles[t]));
  for (uint64_t r = 0; r < config.rows[t]; ++r) {
    void* const memory = reinterpret_cast<void*>(instruction.base + r * instruction.index);
    uint32_t* const row = tile_registers.tiles[t][r];
    std::memcpy(load ? row : memory, load ? memory : row, config.row_bytes[t]);
  }
}

// Products of a row of inputs, [K], and weights, [K, N], are added to a row of sums, [N], where
// inputs and weights are groups of four bytes or of two BF16 along K. Columns that the configuration
// leaves out are summed too; none of them reaches memory.
template <typename AddRow>
void Multiply(const char* name, const Instruction& instruction, const AddRow& add_row) {
  const int sums = TileOfGroups(name, instruction.reg), inputs = TileOfGroups(name, instruction.rm),
            weights = TileOfGroups(name, instruction.vvvv);
  const Config& config = tile_registers.config;
  if (sums == inputs || sums == weights || inputs == weights)
    Fault(name, "two of its tiles are the same");
  if (config.rows[sums] != config.rows[inputs]) Fault(name, "rows of sums and of inputs differ");
  if (config.row_bytes[sums] != config.row_bytes[weights])
    Fault(name, "columns of sums and of weights differ");
  if (config.row_bytes[inputs] / 4 != config.rows[weights])
    Fault(name, "the inputs' columns are not the weights' rows");
  for (int m = 0; m < config.rows[sums]; ++m)
    add_row(tile_registers.tiles[inputs][m], tile_registers.tiles[weights], config.rows[weights],
            tile_registers.tiles[sums][m]);
}

using Row = uint32_t[kMaxColumns];

template <typename Byte>
int ByteOf(uint32_t group, int i) {
  return static_cast<Byte>(group >> 8 * i);
}

template <typename Input, typename Weight>
__attribute__((target("avx2"))) void AddBytes(const Row& inputs, const Row* weights, int groups,
                                              Row& sums) {
  Row added = {};  // which wraps around
  for (int k = 0; k < groups; ++k) {
    for (int i = 0; i < 4; ++i) {
      const int input = ByteOf<Input>(inputs[k], i);
      for (int n = 0; n < kMaxColumns; ++n)
        added[n] += static_cast<uint32_t>(input * ByteOf<Weight>(weights[k][n], i));
    }
  }
  for (int n = 0; n < kMaxColumns; ++n) sums[n] += added[n];
}

float Even(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float Odd(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000u); }

// Even and odd products have sums of their own, from zero, by fused multiply-adds; both together
// are added to what was there. Subnormal numbers count as zero, before and after.
__attribute__((target("avx2,fma"))) void AddBFloat16(const Row& inputs, const Row* weights,
                                                     int groups, Row& sums) {
  float even[kMaxColumns] = {}, odd[kMaxColumns] = {};
  for (int k = 0; k < groups; ++k) {
    const float first = Even(inputs[k]), second = Odd(inputs[k]);
    for (int n = 0; n < kMaxColumns; ++n) {
      even[n] = __builtin_fmaf(first, Even(weights[k][n]), even[n]);
      odd[n] = __builtin_fmaf(second, Odd(weights[k][n]), odd[n]);
    }
  }
  for (int n = 0; n < kMaxColumns; ++n)
    sums[n] = std::bit_cast<uint32_t>(std::bit_cast<float>(sums[n]) + (even[n] + odd[n]));
}

// False if it is not one of AMX.
bool Execute(const Instruction& instruction) {
  const int prefix = instruction.prefix;
  const bool multiplies = instruction.opcode == 0x5C || instruction.opcode == 0x5E;
  if (!multiplies && instruction.vvvv != 0) return false;
  switch (instruction.opcode) {
    case 0x49:
      if (prefix == Instruction::kNone && instruction.has_address && instruction.reg == 0) {
        Configure(instruction);
      } else if (prefix == Instruction::kNone && !instruction.has_address && instruction.reg == 0 &&
                 instruction.rm == 0) {
        tile_registers = {};
      } else if (prefix == Instruction::kF2 && !instruction.has_address && instruction.rm == 0) {
        const int t = Tile("TILEZERO", instruction.reg);
        std::memset(tile_registers.tiles[t], 0, sizeof(tile_registers.tiles[t]));
      } else {
        return false;
      }
      return true;
    case 0x4B:
      if (!instruction.has_address) return false;
      if (prefix == Instruction::kF2) LoadOrStore("TILELOADD", instruction, /*load=*/true);
      if (prefix == Instruction::k66) LoadOrStore("TILELOADDT1", instruction, /*load=*/true);
      if (prefix == Instruction::kF3) LoadOrStore("TILESTORED", instruction, /*load=*/false);
      return prefix != Instruction::kNone;
    case 0x5C:
      if (instruction.has_address || prefix != Instruction::kF3) return false;
      // A handler starts with the default way to round.
      _mm_setcsr(_mm_getcsr() | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
      Multiply("TDPBF16PS", instruction, AddBFloat16);
      return true;
    case 0x5E:
      if (instruction.has_address) return false;
      switch (prefix) {
        case Instruction::kNone:
          Multiply("TDPBUUD", instruction, AddBytes<uint8_t, uint8_t>);
          break;
        case Instruction::k66:
          if (!is_broken) Multiply("TDPBUSD", instruction, AddBytes<uint8_t, int8_t>);
          break;
        case Instruction::kF3:
          Multiply("TDPBSUD", instruction, AddBytes<int8_t, uint8_t>);
          break;
        default:
          Multiply("TDPBSSD", instruction, AddBytes<int8_t, int8_t>);
          break;
      }
      return true;
    default:
      return false;
  }
}

// Executes all tile instructions that follow one another: a trap takes longer than most of them.
void OnIllegalInstruction(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  bool any = false;
  for (;;) {
    Instruction instruction = {};
    const auto* const code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
    if (!Decode(code, registers, instruction) || !Execute(instruction)) break;
    registers[REG_RIP] += instruction.length;
    any = true;
  }
  if (!any) signal(SIGILL, SIG_DFL);  // once more, for the system
}

}  // namespace

void TrapTileInstructions(bool broken) {
  is_broken = broken;
  struct sigaction action = {};
  action.sa_sigaction = OnIllegalInstruction;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace bst
