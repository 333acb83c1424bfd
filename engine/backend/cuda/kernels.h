// The kernels of the CUDA backend: what each works on, and the function that enqueues it. One .cu
// file per group; everything in it runs on the device.
//
// Pointers are to device memory unless they say otherwise. A task with zero rows enqueues nothing.
// Batch law   Each output is computed by one fixed sequence of operations. Linear has kernels for
//             few and for many rows, recurrences for one token and for more of them: they add in
//             the same order.
// Threads     Enqueued by the thread that uses the stream.
// Tested by   tests/engine/backend (emulated), tests/engine/backend/cuda
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backend/sampling_arithmetic.h"

namespace bst::cuda {

class Stream;

// float32, rows `stride` elements apart.
struct Matrix {
  float* data;
  int64_t stride;
};

// Rows of a launch: `most`, or, where `exact` is not null, as many of them as stand there when the
// kernel runs, so that one graph does for several numbers (CudaDevice::Count). Blocks that have no
// row return at once.
struct RowCount {
  int most;
  const int32_t* exact;
};

enum class Activation : int { kNone, kRelu, kGelu, kSilu };

// What weights, rings and contexts are made of.
enum class Element { kF32, kBf16 };

// ---- linear.cu
// out = epilogue(x W^T). Order of each sum: segments of kLinearSegment inputs, then the segments
// one after the other, the first to `out` where it is added to it. A segment of floats is added up
// by fmaf in order of k; one of Bf16 by the tensor cores, sixteen k after sixteen k (mma.cuh).
struct LinearTask {
  Matrix x;             // [rows, in]; rounded to Bf16 with Bf16 weights
  const void* weights;  // float: [in, padded_out]; Bf16: [padded_out, padded_in], zeros beyond
  Matrix out;           // [rows, out]
  RowCount rows;
  int in, out_features, padded_in, padded_out;
  Activation activation;
  float scale;       // 1 with an activation or `add`
  bool add;          // out += sum
  int shared_bytes;  // of PrepareLinear
};
// At load. Returns the shared memory that a block of Linear may have.
int PrepareLinear(Stream& stream);
constexpr int kLinearSegment = 4096;
constexpr int kLinearColumns = 128;  // padded_out is a multiple of it
constexpr int kLinearDepth = 32;     // padded_in is a multiple of it
void Linear(Stream& stream, Element weights, const LinearTask& task);

// Rows of float become Bf16 that follow one another, with zeros behind: as W's rows are.
struct RoundTask {
  Matrix x;
  void* out;  // [rows, padded_columns]
  int rows, columns, padded_columns;
};
void RoundRows(Stream& stream, const RoundTask& task);

// How many elements of each row of `a` and `b` have other bits; one NaN is like another.
struct DifferenceTask {
  Matrix a, b;
  int32_t* counts;  // [rows]
  int rows, columns;
};
void CountDifferences(Stream& stream, const DifferenceTask& task);

// ---- rows.cu: one row, or one head of it, at a time
// out[i] = table[indices[i]]; a table of float or Bf16.
struct GatherTask {
  const void* table;
  int64_t table_stride;
  const int32_t* indices;
  Matrix out;
  RowCount rows;
  int columns;
};
void Gather(Stream& stream, Element table, const GatherTask& task);

struct RmsNormTask {
  Matrix x, out;
  const float* gain;
  float epsilon;
  RowCount rows;
  int columns;
};
void RmsNorm(Stream& stream, const RmsNormTask& task);

struct NormalizeTask {
  Matrix x;
  Matrix rotary;  // [rows, head_dim] as RotateTask's table; no data: none
  RowCount rows;
  int heads, head_dim;
};
void NormalizeHeads(Stream& stream, const NormalizeTask& task);

struct RotaryTableTask {
  const int64_t* positions;  // [rows]
  double log_theta;
  Matrix table;  // [rows, 2 half]
  RowCount rows;
  int half;
};
void RotaryTable(Stream& stream, const RotaryTableTask& task);

struct RotateTask {
  Matrix x, table;
  RowCount rows;
  int heads, half;
};
void Rotate(Stream& stream, const RotateTask& task);

// logprobs[i] = log softmax(logits[i])[targets[i]]
struct LogprobTask {
  Matrix logits;
  const int32_t* targets;
  float* logprobs;
  int rows, columns;
};
void TargetLogprobs(Stream& stream, const LogprobTask& task);

// ---- elementwise.cu
// out[t, f] = act(x[t, f]) x[t, columns + f]
struct GateTask {
  Matrix x, out;
  Activation activation;
  RowCount rows;
  int columns;
};
void Gate(Stream& stream, const GateTask& task);

// x[t, f] = act(x[t, f])
struct ActivateTask {
  Matrix x;
  Activation activation;
  int rows, columns;
};
void Activate(Stream& stream, const ActivateTask& task);

// y[t, f] += gain[f] x[t, f mod inputs]
struct AddScaledTask {
  Matrix x, y;
  const float* gain;
  RowCount rows;
  int columns, inputs;
};
void AddScaled(Stream& stream, const AddScaledTask& task);

struct MultiplyTask {
  Matrix x, y;
  RowCount rows;
  int columns;
};
void Multiply(Stream& stream, const MultiplyTask& task);

// x[t] += table[t mod table_rows]
struct AddTableTask {
  Matrix table, x;
  RowCount rows;
  int columns, table_rows;
};
void AddTable(Stream& stream, const AddTableTask& task);

struct InterpolateTask {
  Matrix s, z;
  const float* gate;
  RowCount rows;
  int columns;
};
void Interpolate(Stream& stream, const InterpolateTask& task);

// ---- attention.cu, attention_tiles.cu, attention_singles.cu
// Row `source` of one or two matrices goes, rounded, to one or two places.
struct StoreRow {
  void* first;
  void* second;
  int source;
};
struct StoreTask {
  Matrix first, second;
  const StoreRow* store;
  RowCount rows;
  int columns;
  bool has_second;
};
void StoreRows(Stream& stream, Element stored, const StoreTask& task);

// So many words from one place to another, where the place is not to be part of the call.
struct CopyPlace {
  const std::byte* from;
  std::byte* to;
};
struct CopyTask {
  const CopyPlace* place;
  int64_t words;
  int word_bytes;  // 4 or 16; both places are multiples of it
};
void CopyWords(Stream& stream, const CopyTask& task);

// A token whose output is asked for, and the row of a step that it belongs to.
struct TokenRow {
  void* cache;       // the ring, as it was before the step
  int64_t position;  // of the token
  int place;         // in the ring: position mod window
  int token;         // packed
  int begin, end;    // packed tokens of the row
};
// Up to kQueriesOfATile queries of one row of a step, one token after the other. Rows of several
// tokens have tiles.
struct QueryTile {
  void* cache;
  int64_t position;  // of the first query
  int place;         // in the ring: position mod window
  int first, count;  // packed tokens
  int begin, end;    // those of the row
};
constexpr int kQueriesOfATile = 64;
// Heads that the tensor cores take, of Bf16 rings and contexts: 16 bytes of a row at a time.
constexpr int kMaxTileColumns = 128;
constexpr int kTileColumnsMultiple = 8;
// Visible keys are those at distances nearest .. nearest + count - 1. Attention takes `tokens`,
// each query on its own; on the tensor cores AttentionTiles takes `tiles` and AttentionSingles
// `singles`, which are rows of one token. A row of one token replaces the oldest key and value of
// its ring.
struct AttentionTask {
  Matrix q, k, v, out;  // [tokens, heads head_dim]
  const TokenRow* tokens;
  const QueryTile* tiles;
  const TokenRow* singles;
  const float* scale;  // [heads]
  const float* bias;   // [heads, window + 1], or null
  RowCount num_tokens, num_tiles, num_singles;
  int heads, head_dim, window, nearest;
  bool block_scope, zero_prefix;
};
void Attention(Stream& stream, Element ring, const AttentionTask& task);
void AttentionTiles(Stream& stream, const AttentionTask& task);
void AttentionSingles(Stream& stream, const AttentionTask& task);
// Once, before the first tile of attention or of a context. False: the device has too little shared
// memory for tiles (99 KB of a block on 8.6 and 8.9).
bool PrepareAttention(Stream& stream);

struct QueryContext {
  const void* context;  // [2, capacity, heads head_dim]
  int num_rows;
  int query;
};
// Up to kQueriesOfATile neighbouring queries that attend to the same rows.
struct ContextTile {
  const void* context;
  int num_rows;
  int first, count;  // queries
};
// ContextAttention takes `queries`; on the tensor cores ContextTiles takes `tiles` and
// ContextSingles `singles`, whose count is 1.
struct ContextTask {
  Matrix q, out;
  const QueryContext* queries;
  const ContextTile* tiles;
  const ContextTile* singles;
  const float* scale;
  RowCount num_queries, num_tiles, num_singles;
  int heads, head_dim, capacity;
};
void ContextAttention(Stream& stream, Element context, const ContextTask& task);
void ContextTiles(Stream& stream, const ContextTask& task);
void ContextSingles(Stream& stream, const ContextTask& task);

// ---- sequence.cu
struct SequenceRow {
  void* state;
  int64_t position;
  int begin, end;
};
// Recurrences (ssm.h) go by chunks: T inputs from a multiple of T in the document on, wherever
// steps cut it. The state X is 2 M reals, real and imaginary part of each mode in turn; with X at a
// chunk's start and u[0 .. T - 1] its inputs
//   y[i] = sum_{j <= i} taps[i - j] u[j] + sum_k out[i][k] X[k]
//   X   += (carry X + S),  S[k] = sum_j in[j][k] u[j]                    at the chunk's end
// Each sum is made by fmaf in this order, from 0; carry X from S. What makes an output, or a state,
// is then the same sequence of operations in every launch below.
enum class Recurrence { kDiagonal, kDplr };
constexpr int kDiagonalChunk = 16;  // T
constexpr int kDplrChunk = 32;
// The tokens that a step has of one chunk of a row.
struct ChunkPiece {
  float* inputs;   // [T, D], of the slot: those of the chunk before the step are there
  const float* x;  // [2 M, C D], at the chunk's start
  float* next;     // the same at its end; null: the piece does not complete it
  int token;       // packed, the first of the piece
  int first, end;  // which of the chunk they are
  int output;      // row of y of the last of them; -1: it has none
  bool keep;       // its inputs go to `inputs`
};
// A row's way through complete chunks.
struct CarryRow {
  const float* from;  // [2 M, C D], X at the start of its first chunk
  float* to;          // X of the chunk that it stands in after them
  float* places;      // [chunks + 1, 2 M, C D]; in: S of chunk c at c + 1; out: X of chunk c at c
  int64_t chunks;
};
struct RecurrenceTask {
  Matrix u, y;
  const ChunkPiece* pieces;
  const CarryRow* rows;
  const float* taps;   // [T, C D], D u included
  const float* out;    // [T, 2 M, C D]
  const float* in;     // [T, 2 M, C D]
  const float* carry;  // diagonal: A^T - 1, [2 M, C D]; DPLR: its matrix, [2 M, 2 M, C D]
  RowCount num_pieces, num_rows;
  int inputs, features;
  int reals;  // 2 M
  int chunk;  // T
};
// S of the pieces that complete their chunk, to their `next`.
void ChunkSums(Stream& stream, const RecurrenceTask& task);
void Carry(Stream& stream, Recurrence kind, const RecurrenceTask& task);
// An output of every token.
void ChunkOutputs(Stream& stream, Recurrence kind, const RecurrenceTask& task);
// Each piece by itself: an output, inputs to keep, the chunk's end.
void ChunkSteps(Stream& stream, Recurrence kind, const RecurrenceTask& task);

struct ScanTask {
  Matrix v;
  const SequenceRow* rows;
  const float* e;  // [modes, 2]
  RowCount num_rows;
  int modes;
};
void Scan(Stream& stream, const ScanTask& task);

// ---- convolution.cu
// y[output] = d u[token] + base + sum_{s < reach} taps[s] u[token - s]: inputs of the step from
// packed token `begin` on, before them the ring. Segments of 128 taps are added up first.
struct ConvolutionOutput {
  const float* ring;  // [ring_rows, inputs], row position mod ring_rows
  const float* base;  // [features], or null
  int64_t position;   // of the token
  int token, begin, reach, output;
};
struct ConvolutionTask {
  Matrix u, y;
  const ConvolutionOutput* outputs;
  const float* taps;  // [reach, features]
  const float* d;     // [features]
  RowCount num_outputs;
  int inputs, features, ring_rows;
};
void Convolution(Stream& stream, const ConvolutionTask& task);

// What differs between steps of the same kind; so it is in device memory.
struct BlockPlace {
  SequenceRow row;   // state: the ring
  int64_t position;  // of the block
  float* base;       // [rows, features]
};
// Inputs at positions position .. position + rows - 1 of a row's document, of the step or of the
// ring, each input's one after the other, zeros up to `size`.
struct LoadBlockTask {
  Matrix u;
  const BlockPlace* place;
  float* reals;  // [inputs, size]
  int rows, size, inputs, ring_rows;
};
void LoadBlock(Stream& stream, const LoadBlockTask& task);

// sums[c D + i] = sum over p < count of inputs_spectra[(newest - p) mod ring][i] filters[p][c D +
// i]
struct SpectraTask {
  const float* inputs_spectra;  // [ring, inputs, points, 2]
  const float* filters;         // [count, features, points, 2]
  float* sums;                  // [features, points, 2]
  int points, inputs, features, ring, newest, count;
};
void MultiplySpectra(Stream& stream, const SpectraTask& task);

// place->base[i][f] = reals[f][rows + i], i < rows
struct StoreBaseTask {
  const float* reals;  // [features, size]
  const BlockPlace* place;
  int rows, size, features;
};
void StoreBase(Stream& stream, const StoreBaseTask& task);

// ---- sampling.cu: one token per draw, as engine/backend/sampling.h says
// What penalties and bias look at, of one token; [V] of them are a slot's sampling state.
struct TokenState {
  uint32_t count;  // kInPrompt, plus how often the output has it
  float bias;
};
constexpr uint32_t kInPrompt = 0x80000000u;
struct SamplingDraw {
  DrawParams params;
  uint64_t token_index;
  TokenState* state;  // or null
  uint32_t sequence_index;
  int32_t row;
  int32_t given;                     // or -1
  int32_t first_banned, num_banned;  // in `banned` and `top` of the task, which may be one address
  int32_t first_top, num_top;
};
constexpr int kMaxTop = 256;
struct SamplingTask {
  Matrix logits;
  const SamplingDraw* draws;
  const int32_t* banned;
  std::byte* scratch;  // [num_draws, SamplingScratchBytes(columns)]
  DrawResult* results;
  TokenLogit* top;
  RowCount num_draws;
  int columns;
};
void Sample(Stream& stream, const SamplingTask& task);

// Tokens of `prompt` are in the prompt, those of `biased` have their bias; no token twice in one.
struct SamplingStateTask {
  TokenState* state;
  const int32_t* prompt;
  const int32_t* biased;
  const float* bias;
  int num_prompt, num_biased;
};
void SetSamplingState(Stream& stream, const SamplingStateTask& task);

}  // namespace bst::cuda
