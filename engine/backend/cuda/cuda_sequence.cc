// The host's side of sequence.cu: how a step's rows fall into chunks, and where their states lie.
//
// State       Of a recurrence: X at the start of the chunk that the sequence stands in, [2 M, C D],
//             and the chunk's inputs so far, [T, D]. DPLR has two X in turn, by the chunk's number,
//             for the next one is made of all of the last.
// Forms       A row of one token is a piece of ChunkSteps. A longer one goes by ChunkSums, Carry
//             and ChunkOutputs, which read a table once for several chunks; outputs at block ends,
//             few of a chunk, by ChunkSteps again. Which form it is does not show: kernels.h.
// Scratch     X of each chunk of the prompts of a step. Where there are more than it holds, prompts
//             go on in a further round.
// Loading     Tables may be larger than the host's memory: they go to the device by rows.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/backend/cuda/chunk_tables.h"
#include "engine/backend/cuda/cuda_weights.h"
#include "engine/base/status_macros.h"

namespace bst {
namespace {

// The scratch is for a step of so many tokens of prompts, and some more places for their last
// chunks; it has two places in any case.
constexpr int64_t kScratchTokens = 2048;
constexpr int64_t kMorePlaces = 64;
constexpr size_t kMostScratchBytes = size_t{64} << 20;
constexpr size_t kStagingBytes = size_t{4} << 20;  // of tables on their way; a row may be more

// Tokens of a row that have an output. `block` is 1 where all have.
int64_t NumOutputs(const Row& row, int block) {
  return (row.position + row.num_tokens()) / block - row.position / block;
}

int64_t TotalOutputs(absl::Span<const Row> rows, int block) {
  int64_t total = 0;
  for (const Row& row : rows) total += NumOutputs(row, block);
  return total;
}

class CudaRecurrence : public CudaSequence {
 public:
  CudaRecurrence(const SsmSpec& spec, int64_t modes, cuda::Recurrence kind, int most_places)
      : CudaSequence(spec),
        kind_(kind),
        chunk_(kind == cuda::Recurrence::kDplr ? cuda::kDplrChunk : cuda::kDiagonalChunk),
        reals_(static_cast<int>(2 * modes)),
        most_places_(most_places) {
    BST_CHECK(modes > 0 && spec.num_features() > 0, modes, " modes, ", spec.num_features(),
              " features");
    BST_CHECK(spec.outputs == SsmOutputs::kEveryToken || spec.block > 0, "block of ", spec.block);
  }

  // `make` gives the rows of the tables. All memory is asked for before it is called.
  absl::Status Pack(CudaDevice& device, absl::FunctionRef<absl::Status(ChunkRowSink)> make) {
    const size_t row_bytes = static_cast<size_t>(spec().num_features()) * sizeof(float);
    for (const ChunkTable table :
         {ChunkTable::kTaps, ChunkTable::kOut, ChunkTable::kIn, ChunkTable::kCarry}) {
      BST_ASSIGN_OR_RETURN(
          Table(table), device.Allocate(ChunkTableRows(table, chunk_, reals_, kind_) * row_bytes));
    }
    BST_RETURN_IF_ERROR(device.ReserveScratch(static_cast<size_t>(NumPlaces()) * PlaceBytes()));
    BST_ASSIGN_OR_RETURN(const Buffer staging,
                         device.AllocateHostReadable(std::max(kStagingBytes, row_bytes)));
    auto* const staged = static_cast<std::byte*>(staging.data());
    size_t used = 0;
    const auto put = [&](ChunkTable table, size_t row,
                         absl::Span<const float> values) -> absl::Status {
      if (used + row_bytes > staging.bytes()) {
        BST_RETURN_IF_ERROR(device.Sync());
        used = 0;
      }
      std::memcpy(staged + used, values.data(), row_bytes);
      cuda::Copy(device.stream(), static_cast<std::byte*>(Table(table).data()) + row * row_bytes,
                 staged + used, row_bytes);
      used += row_bytes;
      return absl::OkStatus();
    };
    const absl::Status made = make(put);
    BST_RETURN_IF_ERROR(device.Sync());  // copies may still read what is staged
    return made;
  }

  void Run(CudaDevice& device, TensorView u, absl::Span<const Row> rows, PoolView state,
           TensorView y) const override {
    BST_CHECK(u.dim(1) == spec().num_inputs, "inputs ", u.dim(1), ", weights take ",
              spec().num_inputs);
    BST_CHECK_SHAPE(y, {TotalOutputs(rows, OutputBlock()), spec().num_features()});
    steps_.clear();
    num_rounds_ = 0;
    int outputs = 0;
    for (const Row& row : rows) {
      if (row.num_tokens() == 1) {
        steps_.push_back(DecodePiece(row, state, outputs));
      } else {
        AddPrompt(row, state, reinterpret_cast<float*>(device.scratch()), outputs);
      }
    }

    const auto part = [](const Buffer& buffer) { return static_cast<const float*>(buffer.data()); };
    cuda::RecurrenceTask task = {.u = ToMatrix(u),
                                 .y = ToMatrix(y),
                                 .pieces = nullptr,
                                 .rows = nullptr,
                                 .taps = part(taps_),
                                 .out = part(out_),
                                 .in = part(in_),
                                 .carry = part(carry_),
                                 .num_pieces = {},
                                 .num_rows = {},
                                 .inputs = spec().num_inputs,
                                 .features = spec().num_features(),
                                 .reals = reals_,
                                 .chunk = chunk_};
    const auto with_pieces = [&](const std::vector<cuda::ChunkPiece>& pieces) {
      task.pieces = device.Stage(absl::MakeConstSpan(pieces));
      task.num_pieces = device.Count(static_cast<int>(pieces.size()));
      return task;
    };
    for (size_t r = 0; r < num_rounds_; ++r) {
      const Round& round = rounds_[r];
      cuda::ChunkSums(device.stream(), with_pieces(round.chunks));
      task.rows = device.Stage(absl::MakeConstSpan(round.rows));
      task.num_rows = device.Count(static_cast<int>(round.rows.size()));
      cuda::Carry(device.stream(), kind_, task);
      if (spec().outputs == SsmOutputs::kEveryToken) {
        cuda::ChunkOutputs(device.stream(), kind_, task);
      } else {
        cuda::ChunkSteps(device.stream(), kind_, with_pieces(round.ends));
      }
    }
    // The last inputs of prompts replace those before the step, which all of the above have read.
    cuda::ChunkSteps(device.stream(), kind_, with_pieces(steps_));
  }

  size_t state_bytes() const override {
    return static_cast<size_t>(InputsAt() + int64_t{chunk_} * spec().num_inputs) * sizeof(float);
  }
  size_t bytes() const override {
    return taps_.bytes() + out_.bytes() + in_.bytes() + carry_.bytes();
  }

 private:
  // What prompts have of chunks whose states fit into the scratch.
  struct Round {
    std::vector<cuda::ChunkPiece> chunks;
    std::vector<cuda::ChunkPiece> ends;  // pieces up to a block's end
    std::vector<cuda::CarryRow> rows;
    int64_t places = 0;
  };

  Buffer& Table(ChunkTable table) {
    switch (table) {
      case ChunkTable::kTaps:
        return taps_;
      case ChunkTable::kOut:
        return out_;
      case ChunkTable::kIn:
        return in_;
      case ChunkTable::kCarry:
        break;
    }
    return carry_;
  }

  Round& AddRound() const {
    if (num_rounds_ == rounds_.size()) rounds_.emplace_back();
    Round& round = rounds_[num_rounds_++];
    round.chunks.clear();
    round.ends.clear();
    round.rows.clear();
    round.places = 0;
    return round;
  }

  int OutputBlock() const { return spec().outputs == SsmOutputs::kEveryToken ? 1 : spec().block; }
  int64_t PlaceFloats() const { return int64_t{reals_} * spec().num_features(); }
  size_t PlaceBytes() const { return static_cast<size_t>(PlaceFloats()) * sizeof(float); }
  // A chunk has one for its start and one for its end, which is the next one's.
  int64_t NumPlaces() const {
    return std::max<int64_t>(2, std::min({kScratchTokens / chunk_ + kMorePlaces,
                                          static_cast<int64_t>(kMostScratchBytes / PlaceBytes()),
                                          int64_t{most_places_}}));
  }
  // Of X: one in turn with another where all of the last makes the next.
  int NumStates() const { return kind_ == cuda::Recurrence::kDplr ? 2 : 1; }
  int64_t InputsAt() const { return NumStates() * PlaceFloats(); }
  float* InputsOf(const Row& row, const PoolView& state) const {
    return state.slot<float>(row.slot) + InputsAt();
  }
  // X at the start of the chunk of `position`.
  float* StateAt(const Row& row, const PoolView& state, int64_t position) const {
    return state.slot<float>(row.slot) + position / chunk_ % NumStates() * PlaceFloats();
  }

  cuda::ChunkPiece DecodePiece(const Row& row, const PoolView& state, int& outputs) const {
    const auto index = static_cast<int>(row.position % chunk_);
    const bool ends = index == chunk_ - 1;
    return {.inputs = InputsOf(row, state),
            .x = StateAt(row, state, row.position),
            .next = ends ? StateAt(row, state, row.position + 1) : nullptr,
            .token = row.begin,
            .first = index,
            .end = index + 1,
            .output = NumOutputs(row, OutputBlock()) > 0 ? outputs++ : -1,
            .keep = !ends};
  }

  void AddPrompt(const Row& row, const PoolView& state, float* scratch, int& outputs) const {
    const bool every_token = spec().outputs == SsmOutputs::kEveryToken;
    for (int t = row.begin; t < row.end;) {
      const bool has_room = num_rounds_ > 0 && rounds_[num_rounds_ - 1].places + 2 <= NumPlaces();
      Round& round = has_room ? rounds_[num_rounds_ - 1] : AddRound();
      const auto position = [&] { return row.position + (t - row.begin); };
      cuda::CarryRow carry = {.from = StateAt(row, state, position()),
                              .to = nullptr,
                              .places = scratch + round.places * PlaceFloats(),
                              .chunks = 0};
      while (t < row.end && round.places + carry.chunks + 2 <= NumPlaces()) {
        const auto first = static_cast<int>(position() % chunk_);
        const int end = std::min(chunk_, first + (row.end - t));
        float* const x = carry.places + carry.chunks * PlaceFloats();
        const cuda::ChunkPiece piece = {.inputs = InputsOf(row, state),
                                        .x = x,
                                        .next = end == chunk_ ? x + PlaceFloats() : nullptr,
                                        .token = t,
                                        .first = first,
                                        .end = end,
                                        .output = every_token ? outputs + end - first - 1 : -1,
                                        .keep = false};
        round.chunks.push_back(piece);
        if (every_token) {
          outputs += end - first;
        } else {
          AddBlockEnds(piece, position() - first, outputs, round.ends);
        }
        if (end == chunk_) {
          ++carry.chunks;
        } else {
          steps_.push_back(piece);
          steps_.back().output = -1;
          steps_.back().keep = true;
        }
        t += end - first;
      }
      carry.to = StateAt(row, state, position());
      round.rows.push_back(carry);
      round.places += carry.chunks + 1;
    }
  }

  // Of the tokens of a piece whose chunk begins at `start`.
  void AddBlockEnds(const cuda::ChunkPiece& piece, int64_t start, int& outputs,
                    std::vector<cuda::ChunkPiece>& ends) const {
    const int block = spec().block;
    const int first = piece.first + block - 1 - static_cast<int>((start + piece.first) % block);
    for (int i = first; i < piece.end; i += block) {
      ends.push_back(piece);
      ends.back().next = nullptr;
      ends.back().end = i + 1;
      ends.back().output = outputs++;
    }
  }

  cuda::Recurrence kind_;
  int chunk_;
  int reals_;
  int most_places_;
  Buffer taps_, out_, in_, carry_;  // as in RecurrenceTask
  // Of the step; they keep their capacity.
  mutable std::vector<cuda::ChunkPiece> steps_;
  mutable std::vector<Round> rounds_;
  mutable size_t num_rounds_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaSsm(CudaDevice& device,
                                                        const SsmParameters& parameters,
                                                        int most_places) {
  const SsmParameters& p = parameters;
  const int features = p.spec.num_features();
  for (const TensorView& tensor : {p.a_minus_one, p.b, p.c})
    BST_CHECK_SHAPE(tensor, {features, p.c.dim(1), 2});
  BST_CHECK_SHAPE(p.d, {features});
  auto weights = std::make_unique<CudaRecurrence>(parameters.spec, parameters.c.dim(1),
                                                  cuda::Recurrence::kDiagonal, most_places);
  BST_RETURN_IF_ERROR(weights->Pack(
      device, [&](ChunkRowSink sink) { return MakeDiagonalTables(parameters, sink); }));
  return weights;
}

absl::StatusOr<std::unique_ptr<SsmWeights>> PackCudaDplr(CudaDevice& device,
                                                         const DplrParameters& parameters,
                                                         int most_places) {
  const DplrParameters& p = parameters;
  const int features = p.spec.num_features();
  for (const TensorView& tensor : {p.dt_lambda, p.dt_b, p.p, p.g, p.w, p.c})
    BST_CHECK_SHAPE(tensor, {features, p.c.dim(1), 2});
  for (const TensorView& tensor : {p.dt, p.d}) BST_CHECK_SHAPE(tensor, {features});
  auto weights = std::make_unique<CudaRecurrence>(parameters.spec, parameters.c.dim(1),
                                                  cuda::Recurrence::kDplr, most_places);
  BST_RETURN_IF_ERROR(
      weights->Pack(device, [&](ChunkRowSink sink) { return MakeDplrTables(parameters, sink); }));
  return weights;
}

void CudaScan::Run(CudaDevice& device, TensorView v, absl::Span<const Row> rows,
                   PoolView state) const {
  BST_CHECK(v.dim(1) == 2 * modes_, "columns ", v.dim(1), ", modes ", modes_);
  places_.clear();
  for (const Row& row : rows) {
    places_.push_back({.state = state.slot<std::byte>(row.slot),
                       .position = row.position,
                       .begin = row.begin,
                       .end = row.end});
  }
  cuda::Scan(device.stream(), {.v = ToMatrix(v),
                               .rows = device.Stage(absl::MakeConstSpan(places_)),
                               .e = static_cast<const float*>(e_.data()),
                               .num_rows = device.Count(static_cast<int>(rows.size())),
                               .modes = modes_});
}

}  // namespace bst
