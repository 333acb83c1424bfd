// V16: sixteen float32 lanes on AVX-512. Included inside a target region; see kernels_avx512.cc.

struct V16 {
  __m512 v;
};

inline V16 Zero() { return {_mm512_setzero_ps()}; }
inline V16 Set1(float x) { return {_mm512_set1_ps(x)}; }
inline V16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline V16 Load(const BFloat16* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
inline V16 Load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// The first n lanes, the rest zero. 0 <= n <= 16.
inline __mmask16 FirstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline V16 LoadPartial(const float* p, int n) { return {_mm512_maskz_loadu_ps(FirstLanes(n), p)}; }
inline void Store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
inline void StorePartial(float* p, V16 a, int n) { _mm512_mask_storeu_ps(p, FirstLanes(n), a.v); }

// The line of `p` on its way to the first-level cache, to be written.
inline void PrefetchToWrite(const void* p) { __builtin_prefetch(p, 1); }

inline V16 operator+(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline V16 operator-(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline V16 operator*(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline V16 operator/(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline V16 Fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }      // a b + c
inline V16 NegFma(V16 a, V16 b, V16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
inline V16 Max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline V16 Min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline V16 Abs(V16 a) { return {_mm512_abs_ps(a.v)}; }
inline V16 CopySign(V16 magnitude, V16 sign) {
  const __m512 mask = _mm512_set1_ps(-0.0f);
  return {_mm512_or_ps(_mm512_andnot_ps(mask, magnitude.v), _mm512_and_ps(mask, sign.v))};
}
// Lanes [0, n) of a, the rest of b.
inline V16 SelectFirst(int n, V16 a, V16 b) {
  return {_mm512_mask_mov_ps(b.v, FirstLanes(n), a.v)};
}
inline V16 Round(V16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for integral n with a and the result normal.
inline V16 ScaleByPowerOfTwo(V16 a, V16 n) {
  return {_mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23)))};
}
// To the nearest BF16, as float32.
inline V16 RoundToBFloat16(V16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return {_mm512_castsi512_ps(
      _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
// To the nearest BF16, as the bits of one.
inline void StoreBFloat16(BFloat16* p, V16 a) {
  const __m512i bits = _mm512_castps_si512(RoundToBFloat16(a).v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
// Integral lanes in 0 .. 255, as bytes.
inline void StoreBytes(uint8_t* p, V16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
// Sixteen int32 lanes.
struct V16Int {
  __m512i v;
};
inline V16Int LoadInts(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline V16 ToFloats(V16Int a) { return {_mm512_cvtepi32_ps(a.v)}; }
// c - a b
inline V16Int SubtractProduct(V16Int c, int32_t a, V16Int b) {
  return {_mm512_sub_epi32(c.v, _mm512_mullo_epi32(_mm512_set1_epi32(a), b.v))};
}
// Sixteen 32-bit lanes of two BF16: the low one of each lane, and the high one.
struct V16Pair {
  V16 low, high;
};
inline V16Pair LoadPairs(const BFloat16* p) {
  const __m512i bits = _mm512_loadu_si512(p);
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))},
          {_mm512_castsi512_ps(
              _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))}};
}
// Pairwise tree over the lanes: the order is fixed.
inline float ReduceAdd(V16 a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float ReduceMax(V16 a) { return _mm512_reduce_max_ps(a.v); }
