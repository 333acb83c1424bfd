// Dot-product instructions of AVX-512, for linear_dots.inl and attention_dots.inl. Included inside
// a target region that names them.

struct Int8DotVnni : Int8Rows {
  // Not __m512i, whose eight lanes of 64 bits g++ 12 copies through memory on the way to and from
  // the instruction's sixteen.
  using Sum = __v16si;
  using Weights = __m512i;
  using Inputs = __m512i;
  static constexpr int kRows = 12;
  static constexpr int kHalves = 2;

  static Sum Zero() { return Sum{}; }
  static Weights LoadWeights(const char* w) { return _mm512_loadu_si512(w); }
  static Inputs LoadInputs(const char* x) {
    int32_t group;
    std::memcpy(&group, x, sizeof(group));
    return _mm512_set1_epi32(group);
  }
  static Sum MultiplyAdd(Sum sum, Inputs a, Weights b) {
    // Wraps, does not saturate.
    return reinterpret_cast<Sum>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), a, b));
  }
  static V16 Finish(const LinearTask& task, int row, int first, Sum sum) {
    return Dequantize(task, row, first, {reinterpret_cast<__m512i>(sum)});
  }
};

// The same instruction the other way around: signed inputs, unsigned weights. Of attention alone.
struct SignedInt8DotVnni : Int8DotVnni {
  static V16 Finish(const LinearTask&, int, int, Sum) = delete;
  static Sum MultiplyAdd(Sum sum, Inputs a, Weights b) {
    return Int8DotVnni::MultiplyAdd(sum, b, a);
  }
};

// Products of pairs along K; each addition is rounded to nearest, denormals are zeros.
struct Bf16Dot : Bf16Rows {
  using Sum = __m512;
  using Weights = __m512bh;
  using Inputs = __m512bh;
  static constexpr int kRows = 12;
  static constexpr int kHalves = 2;

  static Sum Zero() { return _mm512_setzero_ps(); }
  static Weights LoadWeights(const char* w) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(w));
  }
  static Inputs LoadInputs(const char* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof(pair));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static Sum MultiplyAdd(Sum sum, Inputs a, Weights b) { return _mm512_dpbf16_ps(sum, a, b); }
  static V16 Finish(const LinearTask&, int, int, Sum sum) { return {sum}; }
};
