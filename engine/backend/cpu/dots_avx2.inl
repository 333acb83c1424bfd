// Sums of byte products on AVX2, for linear_dots.inl. maddubs would saturate at 16 bits: bytes are
// widened to 16 bits, whose pairwise products add up exactly in 32.

struct Int8DotAvx2 : Int8Rows {
  // Of outputs 0 .. 3, 4 .. 7, ..: two halves of each output's sum side by side.
  struct Sum {
    __m256i v[4];
  };
  struct Weights {
    __m256i v[4];
  };
  using Inputs = __m256i;
  static constexpr int kRows = 2;
  static constexpr int kHalves = 1;

  static Sum Zero() {
    const __m256i zero = _mm256_setzero_si256();
    return {{zero, zero, zero, zero}};
  }
  static Weights LoadWeights(const char* w) {
    Weights b;
    for (int i = 0; i < 4; ++i) {
      b.v[i] = _mm256_cvtepi8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * static_cast<int64_t>(i))));
    }
    return b;
  }
  static Inputs LoadInputs(const char* x) {
    int32_t group;
    std::memcpy(&group, x, sizeof(group));
    return _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(group)));
  }
  static Sum MultiplyAdd(Sum sum, Inputs a, const Weights& b) {
    for (int i = 0; i < 4; ++i) sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(a, b.v[i]));
    return sum;
  }
  static V16 Finish(const LinearTask& task, int row, int first, const Sum& sum) {
    return Dequantize(task, row, first,
                      {AddHalves(sum.v[0], sum.v[1]), AddHalves(sum.v[2], sum.v[3])});
  }
  // Eight outputs of the halves of four and four.
  static __m256i AddHalves(__m256i low, __m256i high) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0b11'01'10'00);
  }
};
