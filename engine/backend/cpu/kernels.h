// CpuKernels: the inner loops of the CPU backend for one instruction set, chosen once.
//
// One source (kernels.inl) written over a sixteen-lane vector type is compiled once per instruction
// set. The packed layouts are the same for all of them:
//
//   linear F32    [panels][K][32]           panel p holds outputs 32 p .. 32 p + 31
//   linear BF16   [panels][K / 2][32][2]    pairs along K, K padded with zeros to a multiple of 32
//   linear INT8   [panels][K / 4][32][4]    groups of four along K, K padded with zeros to 64s
//   ring          [H] x { keys [tiles][dh][16], values [W][dh padded to 16] }; tile j holds ring
//                 indices 16 j .. 16 j + 15; INT8: then float32 scales of keys and of values, each
//                 [tiles][16]
//   pair ring     [H] x keys and values of BF16 where attention multiplies pairs: grouped_ring.h
//   byte ring     likewise of INT8 where it multiplies bytes
//   ssm           [groups] x { d [16], modes [M][4][16] }: re, im of E and 2 B C (cpu_ssm.h) of the
//                 group's sixteen features; state [groups][M][2][16]: re, im
//   dplr          [groups] x { d [16], kappa [16], modes [M][10][16] }: re, im of E, B, P, q and
//                 2 C (cpu_dplr.h); state as ssm
//
//   inputs in tiles         [rows / 16][bytes / 64][16][64]: of BF16 and INT8 inputs where
//                           linear_takes_tiles; rows past the last one's are there, of any value
//
// Batch law: each output element is one fixed sequence of operations, whatever the number of rows:
// a linear layer adds along K in one order (INT8: exactly, in any); a score adds along dh and
// attention adds values in ring order, one by one, by pairs as one multiply instruction adds them,
// or exactly (bytes).
//
// Threads   Pure functions over the memory they are given.
// Tested by tests/engine/backend/agreement_test.cc, inner_loops_test.py, avx2_counts_test.py
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/int8.h"
#include "engine/tensor/dtype.h"

namespace bst {

inline int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline constexpr int kLanes = 16;         // of the vector type
inline constexpr int kPanelOutputs = 32;  // of the linear layers' packed weights

enum class CpuEpilogue { kStore, kRelu, kGelu, kAdd };

// out[r][o] = epilogue(sum_k x[r][k] w[o][k]) for rows [0, num_rows) and panels [first, last).
struct LinearTask {
  const float* x;  // [rows][x_stride]; for BF16 weights already rounded to BF16
  int64_t x_stride;
  const BFloat16* packed_x;  // instead of x where linear_bf16_takes_packed_inputs: [rows][K padded
                             // as the weights, the padding finite], or in tiles
  const uint8_t* quantized_x;          // INT8 (int8.h): [rows][K padded], or in tiles
  const QuantizedRow* quantized_rows;  // of each row
  const void* weights;                 // packed, from panel 0 on
  const float* weight_scales;          // INT8: [panels * 32]
  const int32_t* weight_sums;          // INT8: [panels * 32] sums of an output's weights
  int in_features;                     // K
  int out_features;                    // of the whole layer
  float* out;
  int64_t out_stride;
  // Instead of out where linear_bf16_takes_packed_inputs: the outputs rounded, as the next layer
  // takes them. A line of 64 bytes holds a panel's outputs. Not with kAdd.
  BFloat16* packed_out;
  int64_t packed_out_row_bytes;
  int num_rows;
  int first_panel, last_panel;
  int next_panel;  // what this thread takes next, to be fetched beside the last one; 0: not known
  CpuEpilogue epilogue;
  float scale;  // kStore
};

// Attention of `num_queries` queries of one head at consecutive offsets of one block.
// Ring index j is read from `current` where it belongs to the query's own block, from `previous`
// where it belongs to the block before; in decode both are the ring itself.
struct AttendTask {
  // Of a pair ring or a byte ring: a head.
  const void* current_ring;
  const void* previous_ring;
  // Of a ring.
  const void* current_keys;
  const void* current_values;  // [W][value_stride]
  const void* previous_keys;
  const void* previous_values;
  // INT8 (also of a float32 copy of it): what the keys' scores and the values' weights are
  // multiplied with; nullptr otherwise.
  const float* current_key_scales;
  const float* current_value_scales;
  const float* previous_key_scales;
  const float* previous_value_scales;
  bool previous_visible;  // false: scope block, or nothing before the document
  const float* q;         // [num_queries][q_stride]
  int64_t q_stride;
  const BFloat16* packed_q;  // on pairs instead of q, unless null: [num_queries][dh padded to 32],
                             // and up to kProductRows - 1 rows behind may be read
  float* out;                // [num_queries][out_stride]
  int64_t out_stride;
  int num_queries;
  int first_offset;  // i of the first query
  int num_visible;  // >= 0: every query sees these first indices of `current`, whatever its offset;
                    // requires previous == current, previous_visible == false
  int window, head_dim;
  int64_t value_stride;
  bool include_self;
  float scale;
  const float* bias;  // [2 W] distances descending, twice (cpu_attention.cc); nullptr: none
  // New keys and values that the caller packs next, on pairs and bytes: fetched meanwhile.
  const float* next_k;
  const float* next_v;
  int64_t next_k_stride, next_v_stride;
  int num_next;
  // Of one query: the ring that this thread reads next lies so many bytes behind this one; 0: not
  // known. Where fetches_next_ring is set, dot products of bytes and tiles of BF16 fetch it
  // meanwhile.
  int64_t next_ring;
  float* scores;  // scratch, [kMaxQueries][W padded to 16], or *ScratchBytes
};
inline constexpr int kMaxQueries = 6;  // that one pass over the keys serves

// One key and value each of rows [0, count) to indices first_index and behind of a head of a pair
// ring or of a byte ring.
struct WriteRingTask {
  const float* k;  // [count][stride]
  const float* v;
  int64_t k_stride, v_stride;
  int count;
  int first_index;
  int window, head_dim;
  void* ring;
};

// One feature group of one row, diagonal or DPLR.
struct RecurrenceTask {
  const float* weights;  // of the group
  float* state;          // [M][2][16] of the group
  const float* u;        // first token's first input of the group
  int64_t u_stride;
  float* y;  // first token's first feature of the group, or the only output
  int64_t y_stride;
  bool last_output_only;  // y takes the output of the last token alone
  int num_tokens;
  int num_modes;
  int num_features;  // of this group, 1 .. 16
};

// Up to kScanModes modes of one row.
struct ScanTask {
  const float *e_real, *e_imag;  // padded to a multiple of 16, as is the state
  float *x_real, *x_imag;        // the state
  float *v_real, *v_imag;        // first token's; become the states
  int64_t v_stride;
  int num_tokens;
  int num_modes;
};
inline constexpr int kScanModes = 64;

// Of the convolution with explicit taps (cpu_convolution.h), for one feature group. A spectrum is
// [size][2][16], the values of a polynomial at the roots of t^size = i, size a power of two.

// sum = sum over p < count, in order, of filters[p] inputs[(newest - p) mod ring], bin by bin.
struct SpectraTask {
  const float* filters;  // [ring] spectra
  const float* inputs;   // [ring] spectra
  float* sum;            // one spectrum
  int size;
  int ring;
  int newest;
  int count;
};

// y[i] = base[i] + sum over j <= i, in order, of taps[i - j] u[j], for i in [first, last).
struct ConvolveBlockTask {
  const float* taps;  // [last][16]
  const float* u;     // [last][16]
  const float* base;  // [last][16]
  int first, last;
  float* y;  // that of output `first`
  int64_t y_stride;
  int num_features;  // of this group, 1 .. 16
};

// sums[e][c] += sum over s < reach, in order, of taps[c][s] u[e * block - s].
struct ConvolveEndsTask {
  const float* taps;  // [num_filters][num_taps][16]
  const float* u;     // row of the first end, [..][16]: those before and after it as needed
  float* sums;        // [num_ends][num_filters][16]
  int num_taps;
  int num_filters;
  int num_ends;
  int block;
  int reach;  // at most num_taps
};

// Of prepared inputs: rows of a tile, bytes of a line.
inline constexpr int kTileRows = 16;
inline constexpr int64_t kLineBytes = 64;
// Rows of a LinearTask whose inputs lie in tiles, at most.
inline constexpr int kTileTaskRows = 256;

// K of the packed BF16 layouts.
inline int64_t RoundUpInputs(int64_t k) { return RoundUp(k, 32); }
// K of the packed INT8 layouts.
inline int64_t RoundUpInt8Inputs(int64_t k) { return RoundUp(k, 64); }

// Attention on pairs and on bytes (attention_pairs.inl, attention_bytes.inl) multiplies up to so
// many rows with keys or values: as many queries, or two digits each of half as many.
inline constexpr int kProductRows = 32;
// So many ring indices go together: in the ring (grouped_ring.h), and in the softmax, whose scores
// and weights stay in the first-level cache.
inline constexpr int kChunkIndices = 128;
// Steps along K, in groups of four bytes, that padding completes: what one AMX tile holds.
inline constexpr int kStepGroups = 16;

// Scores that both keep: of a chunk for all rows, whose stride is odd in cache lines.
inline constexpr int64_t kScoreStride = kChunkIndices + kLanes;
inline constexpr int64_t kNumScores = kProductRows * kScoreStride;

// Scratch of attention on pairs for one head, 64-byte aligned: see PairScratch.
inline size_t PairScratchBytes(int head_dim) {
  const int64_t dims = RoundUpInputs(head_dim);
  // Scores, factors; scores of the step with the border, products, outputs, queries, weights of the
  // step with the border twice; the last values.
  return static_cast<size_t>(4 * (kNumScores + kProductRows) +
                             kProductRows * (4 * (32 + 16) + 2 * 4 * dims + 2 * dims + 2 * 64) +
                             2 * 32 * dims);
}

// Likewise of attention on bytes: see ByteScratch.
inline size_t ByteScratchBytes(int head_dim) {
  const int64_t dims = RoundUpInt8Inputs(head_dim);
  // Sums of scores, factors, steps; sums of scores of the tile with the border, sums of outputs,
  // outputs of half as many rows, digits of queries, digits of the step with the border twice.
  return static_cast<size_t>(4 * (kNumScores + 2 * kProductRows) +
                             kProductRows * (4 * 16 + 4 * dims + 2 * dims + dims + 2 * 64));
}

struct CpuKernels {
  void (*linear_f32)(const LinearTask& task);
  void (*linear_bf16)(const LinearTask& task);
  bool linear_bf16_takes_packed_inputs;  // inputs as BF16, not as rounded float32
  void (*linear_int8)(const LinearTask& task);
  bool linear_takes_tiles;  // BF16 and INT8 inputs lie in tiles
  void (*round_to_bf16)(const float* in, float* out, int64_t n);
  // The outputs' lines of 64 bytes are `line_stride` bytes apart.
  void (*pack_bf16)(const float* in, BFloat16* out, int64_t n, int64_t line_stride);
  QuantizedRow (*quantize_inputs)(const float* x, int n, uint8_t* q,
                                  int64_t line_stride);  // int8.h
  void (*attend_f32)(const AttendTask& task);            // keys and values in float32
  void (*attend_bf16)(const AttendTask& task);           // in BF16
  // Where attend_bf16 multiplies pairs, of a pair ring; nullptr: where it does not.
  void (*write_pairs)(const WriteRingTask& task);
  void (*attend_int8)(const AttendTask& task);  // in INT8
  // Where attend_int8 multiplies bytes, of a byte ring; nullptr: where it does not.
  void (*write_bytes)(const WriteRingTask& task);
  bool fetches_next_ring;  // AttendTask::next_ring is of use
  // QuantizeKeyOrValue of int8.h, strided; the second stores the integers as float32.
  float (*quantize_key_or_value)(const float* x, int n, int8_t* q, int64_t stride);
  float (*quantize_key_or_value_as_floats)(const float* x, int n, float* q, int64_t stride);
  void (*ssm)(const RecurrenceTask& task);
  void (*dplr)(const RecurrenceTask& task);
  void (*scan)(const ScanTask& task);
  // Coefficients [size][2][16] to a spectrum and, `size` times as large, back, in place; from real
  // coefficients u [num_rows][16], the others zero. roots [size][2] (convolution.inl).
  void (*transform)(const float* roots, int size, float* z);
  void (*transform_real)(const float* roots, int size, const float* u, int num_rows, float* z);
  void (*inverse_transform)(const float* roots, int size, float* z);
  void (*multiply_spectra)(const SpectraTask& task);
  void (*convolve_block)(const ConvolveBlockTask& task);
  void (*convolve_ends)(const ConvolveEndsTask& task);
  // out = gain * x / sqrt(mean(x^2) + epsilon)
  void (*rms_norm)(const float* x, const float* gain, float epsilon, int dim, float* out);
  void (*normalize_heads)(float* x, int num_heads, int head_dim);
  // (a, b) = (x[j], x[j + n]) becomes (a cos - b sin, b cos + a sin) for j < n.
  void (*rotate)(const float* cosines, const float* sines, int n, float* x);
  void (*gate_gelu)(const float* x, int width, float* out);
  void (*gate_silu)(const float* x, int width, float* out);
  // y[i] += gain[i] * x[i]
  void (*add_scaled)(const float* x, const float* gain, int n, float* y);
  void (*add)(const float* x, int n, float* y);       // y += x
  void (*multiply)(const float* x, int n, float* y);  // y *= x
  // z = s gate + z (1 - gate)
  void (*interpolate)(const float* s, const float* gate, int n, float* z);
  // log sum_v exp(x[v])
  double (*log_sum_exp)(const float* x, int n);
};

// INT8 linear layers without byte dot products: also the AVX-512 kernels' before VNNI.
void LinearInt8Avx2(const LinearTask& task);

const CpuKernels& Avx2Kernels();
const CpuKernels& Avx512Kernels();
// Those of AVX-512, INT8 layers and attention on byte dot products (VNNI).
const CpuKernels& Avx512VnniKernels();
// Those besides, BF16 layers and attention on BF16 dot products.
const CpuKernels& Avx512Bf16Kernels();
// Those of AVX-512 with VNNI, BF16 and INT8 layers and attention on AMX tiles.
const CpuKernels& AmxKernels();
// The same with the tiles emulated, on AVX-512 alone: slow, for the self-check and for tests.
const CpuKernels& EmulatedAmxKernels();

}  // namespace bst
