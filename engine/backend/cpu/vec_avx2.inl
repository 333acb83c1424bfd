// V16: sixteen float32 lanes as two AVX2 registers. Included inside a target region; see
// kernels_avx2.cc.

struct V16 {
  __m256 lo, hi;
};

inline V16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V16 Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256 WidenBFloat16(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline V16 Load(const BFloat16* p) { return {WidenBFloat16(p), WidenBFloat16(p + 8)}; }
inline V16 Load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
// Lanes [0, n) of a half: all ones.
inline __m256i FirstLanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n lanes, the rest zero. 0 <= n <= 16.
inline V16 LoadPartial(const float* p, int n) {
  const __m256 lo = _mm256_maskload_ps(p, FirstLanes(n));
  return {lo, n > 8 ? _mm256_maskload_ps(p + 8, FirstLanes(n - 8)) : _mm256_setzero_ps()};
}
inline void Store(float* p, V16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void StorePartial(float* p, V16 a, int n) {
  _mm256_maskstore_ps(p, FirstLanes(n), a.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, FirstLanes(n - 8), a.hi);
}

// The line of `p` on its way to the first-level cache, to be written. (PREFETCHW is younger.)
inline void PrefetchToWrite(const void* p) { __builtin_prefetch(p, 0); }

inline V16 operator+(V16 a, V16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline V16 operator-(V16 a, V16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline V16 operator*(V16 a, V16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline V16 operator/(V16 a, V16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline V16 Fma(V16 a, V16 b, V16 c) {  // a b + c
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline V16 NegFma(V16 a, V16 b, V16 c) {  // c - a b
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline V16 Max(V16 a, V16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline V16 Min(V16 a, V16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline V16 Abs(V16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline V16 CopySign(V16 magnitude, V16 sign) {
  const __m256 mask = _mm256_set1_ps(-0.0f);
  const V16 m = Abs(magnitude);
  return {_mm256_or_ps(m.lo, _mm256_and_ps(mask, sign.lo)),
          _mm256_or_ps(m.hi, _mm256_and_ps(mask, sign.hi))};
}
// Lanes [0, n) of a, the rest of b.
inline V16 SelectFirst(int n, V16 a, V16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(FirstLanes(n))),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(FirstLanes(n - 8)))};
}
inline V16 Round(V16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
inline __m256 ScaleHalf(__m256 a, __m256 n) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
// a * 2^n for integral n with a and the result normal.
inline V16 ScaleByPowerOfTwo(V16 a, V16 n) {
  return {ScaleHalf(a.lo, n.lo), ScaleHalf(a.hi, n.hi)};
}
inline __m256 RoundHalfToBFloat16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_castsi256_ps(
      _mm256_and_si256(rounded, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
// To the nearest BF16, as float32.
inline V16 RoundToBFloat16(V16 a) { return {RoundHalfToBFloat16(a.lo), RoundHalfToBFloat16(a.hi)}; }
// To the nearest BF16, as the bits of one.
inline void StoreBFloat16(BFloat16* p, V16 a) {
  const V16 rounded = RoundToBFloat16(a);
  const __m256i packed =
      _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(rounded.lo), 16),
                          _mm256_srli_epi32(_mm256_castps_si256(rounded.hi), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_permute4x64_epi64(packed, 0b11'01'10'00));
}
// Integral lanes in 0 .. 255, as bytes.
inline void StoreBytes(uint8_t* p, V16 a) {
  const __m256i halves = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)), 0b11'01'10'00);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}
// Sixteen int32 lanes.
struct V16Int {
  __m256i lo, hi;
};
inline V16Int LoadInts(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline V16 ToFloats(V16Int a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// c - a b
inline V16Int SubtractProduct(V16Int c, int32_t a, V16Int b) {
  const __m256i x = _mm256_set1_epi32(a);
  return {_mm256_sub_epi32(c.lo, _mm256_mullo_epi32(x, b.lo)),
          _mm256_sub_epi32(c.hi, _mm256_mullo_epi32(x, b.hi))};
}
// Sixteen 32-bit lanes of two BF16: the low one of each lane, and the high one.
struct V16Pair {
  V16 low, high;
};
inline V16Pair LoadPairs(const BFloat16* p) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
           _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(a, high)),
           _mm256_castsi256_ps(_mm256_and_si256(b, high))}};
}
// Pairwise tree over the lanes: the order is fixed.
inline float ReduceAdd(V16 a) {
  const __m256 b = _mm256_add_ps(a.lo, a.hi);
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float ReduceMax(V16 a) {
  const __m256 b = _mm256_max_ps(a.lo, a.hi);
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
