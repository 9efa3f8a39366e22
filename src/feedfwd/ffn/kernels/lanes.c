/* What the C files of this package share by #include: numbers (-DBF16: bfloat16, else fp32), an exponential, and a small
   matrix product on one thread that holds its sums in registers. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef BF16
typedef uint16_t num;
INLINE float load(num v) {
  uint32_t bits = (uint32_t)v << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
/* To the nearest, ties to even. NaN stays NaN: each one here stems from a bf16 number or is the processor's own, and
   the lower half of either is zero, so that nothing is carried into the exponent. */
INLINE num store(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (num)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float num;
INLINE float load(num v) { return v; }
INLINE num store(float x) { return x; }
#endif

/* 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2]: exp to a unit in fp32's last place, or, for bf16, to 4e-5, a fiftieth
   of what storing the result rounds away. */
INLINE float exponential(float x) {
  x = x < -80.0f ? -80.0f : x; /* what is multiplied by less would leave the normal numbers, which is slow */
  x = x > 88.0f ? 88.0f : x;
  float k = rintf(x * 1.44269504f);
  float r = x - k * 0.693359375f + k * 2.12194440e-4f; /* ln 2 in two parts */
#ifdef BF16
  float p = 4.1665795894e-2f;
#else
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
#endif
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = ((int32_t)k + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

/* --- products ------------------------------------------------------------------------------------------------------

   C = A B or C += A B, in fp32. A lies row by row. B is packed into panels of PANEL columns; a panel lies row by row and
   its last one is as wide as whole vectors need. A unit of B is a `word` of PAIR numbers one below the other: that is
   how the processor multiplies bf16. What lies beyond a matrix's own rows and columns is zero. */

#if defined(BF16) && defined(__AVX512BF16__)
#include <immintrin.h>
#define PRODUCTS
#define LANES 16
#define PAIR 2
typedef uint32_t word;
typedef __m512 vec;
INLINE vec spread(const num *a) {
  int32_t both;
  memcpy(&both, a, 4);
  return _mm512_castsi512_ps(_mm512_set1_epi32(both));
}
INLINE vec dot(vec sum, vec a, vec b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#define ROUNDS /* the processor rounds vectors to bf16 */
#define LOG2E 1.44269504f
/* 2^x to a relative error of 3e-6, enough for what is rounded to bf16; where that is no normal number, 0. */
INLINE vec power_of_two(vec x) {
  const vec k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = x - k;
  const vec p = (((0.0095701003f * f + 0.0559178591f) * f + 0.2402474433f) * f + 0.6931217909f) * f + 0.9999992847f;
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, k);
}
INLINE vec as_fp32(__m256i v) { return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16); }
INLINE vec widened(const num *x) { /* 16 numbers as fp32, */
  __m256i v;
  memcpy(&v, x, sizeof(v));
  return as_fp32(v);
}
INLINE void put(vec x, num *to) { /* and back */
  const __m256bh rounded = _mm512_cvtneps_pbh(x);
  memcpy(to, &rounded, sizeof(rounded));
}
#elif !defined(BF16)
#define PRODUCTS
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define PAIR 1
typedef float word;
typedef float vec __attribute__((vector_size(4 * LANES)));
INLINE vec spread(const num *a) { return *a - (vec){0.0f}; }
INLINE vec dot(vec sum, vec a, vec b) { return sum + a * b; }
#endif

#ifdef PRODUCTS
#ifdef AMX
#define VECTORS 2 /* of a panel: as wide as two tiles, so that it stays in the nearest cache */
#else
#define VECTORS (LANES == 16 ? 4 : 2) /* with six rows, as many sums as there are registers for */
#endif
#define PANEL (VECTORS * LANES)
INLINE vec vector(const float *x) {
  vec v;
  memcpy(&v, x, sizeof(v));
  return v;
}

/* What a vector adds up to: the compiler's own way adds number after number. */
INLINE float total_of(vec v) {
#ifdef ROUNDS
  return _mm512_reduce_add_ps(v);
#else
  float x[LANES];
  memcpy(x, &v, sizeof(v));
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
#endif
}

#define UP(x, to) (((x) + (to) - 1) / (to) * (to))

INLINE long width_of(long n, long column) { /* words in a row of the panel that begins there */
  return n - column >= PANEL ? PANEL : UP(n - column, LANES);
}
INLINE long packed(long k, long n) { return UP(k, PAIR) / PAIR * UP(n, LANES); } /* words */

INLINE void tile(const int rows, const int vectors, long k, const num *a, long lda, const word *b, float *c, long ldc,
                 int add) {
  vec sum[6][4];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      if (add) memcpy(&sum[i][v], c + i * ldc + v * LANES, sizeof(vec));
      else sum[i][v] = (vec){0.0f};
    }
  for (long p = 0; p < k; p += PAIR, b += vectors * LANES) {
    vec below[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) memcpy(&below[v], b + v * LANES, sizeof(vec));
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
      vec left = spread(a + i * lda + p);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sum[i][v] = dot(sum[i][v], left, below[v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) memcpy(c + i * ldc + v * LANES, &sum[i][v], sizeof(vec));
}

INLINE void rows_of(const int vectors, long m, long k, const num *a, long lda, const word *b, float *c, long ldc,
                    int add) {
  for (; m >= 6; m -= 6, a += 6 * lda, c += 6 * ldc) tile(6, vectors, k, a, lda, b, c, ldc, add);
  for (; m >= 2; m -= 2, a += 2 * lda, c += 2 * ldc) tile(2, vectors, k, a, lda, b, c, ldc, add);
  if (m) tile(1, vectors, k, a, lda, b, c, ldc, add);
}

INLINE void by_vectors(long m, long k, const num *a, long lda, const word *b, long width, float *c, long ldc, int add) {
  switch (width / LANES) {
#if LANES == 16
    case 4: rows_of(4, m, k, a, lda, b, c, ldc, add); break;
    case 3: rows_of(3, m, k, a, lda, b, c, ldc, add); break;
#endif
    case 2: rows_of(2, m, k, a, lda, b, c, ldc, add); break;
    default: rows_of(1, m, k, a, lda, b, c, ldc, add);
  }
}

#ifdef AMX /* the same in tiles of 16 rows, 32 numbers deep: B's words lie as a tile wants them */
#define SIDE 16
#define DEPTH 32
#define NEAR 512 /* deep: so much of a panel stays in the nearest cache */
/* The intrinsics don't tell the compiler that they read and write memory. */
#define TOUCH __asm__ volatile("" ::: "memory")

/* A thread's tiles, to be set up before its first product and given back after its last. */
INLINE void begin_products(void) {
  static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape __attribute__((aligned(64))) = {
      1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  TOUCH;
  _tile_loadconfig(&shape);
}
INLINE void end_products(void) { _tile_release(); }

INLINE void tiles(const int down, const int across, long k, const num *a, long lda, const word *b, long width, float *c,
                  long ldc, int add) {
  if (add) {
    _tile_loadd(0, c, 4 * ldc);
    if (across > 1) _tile_loadd(1, c + SIDE, 4 * ldc);
    if (down > 1) _tile_loadd(2, c + SIDE * ldc, 4 * ldc);
    if (down > 1 && across > 1) _tile_loadd(3, c + SIDE * ldc + SIDE, 4 * ldc);
  } else {
    _tile_zero(0);
    if (across > 1) _tile_zero(1);
    if (down > 1) _tile_zero(2);
    if (down > 1 && across > 1) _tile_zero(3);
  }
  for (long p = 0; p < k; p += DEPTH, b += DEPTH / PAIR * width) {
    _tile_loadd(4, a + p, sizeof(num) * lda);
    _tile_loadd(6, b, 4 * width);
    _tile_dpbf16ps(0, 4, 6);
    if (across > 1) {
      _tile_loadd(7, b + SIDE, 4 * width);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (down > 1) {
      _tile_loadd(5, a + SIDE * lda + p, sizeof(num) * lda);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (down > 1 && across > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 4 * ldc);
  if (across > 1) _tile_stored(1, c + SIDE, 4 * ldc);
  if (down > 1) _tile_stored(2, c + SIDE * ldc, 4 * ldc);
  if (down > 1 && across > 1) _tile_stored(3, c + SIDE * ldc + SIDE, 4 * ldc);
}

INLINE void by_tiles(long m, long k, const num *a, long lda, const word *b, long width, float *c, long ldc, int add) {
  TOUCH;
  for (long i = 0; i < m; i += 2 * SIDE)
    for (long j = 0; j < width; j += 2 * SIDE) {
      const num *left = a + i * lda;
      float *out = c + i * ldc + j;
      if (m - i > SIDE && width - j > SIDE) tiles(2, 2, k, left, lda, b + j, width, out, ldc, add);
      else if (m - i > SIDE) tiles(2, 1, k, left, lda, b + j, width, out, ldc, add);
      else if (width - j > SIDE) tiles(1, 2, k, left, lda, b + j, width, out, ldc, add);
      else tiles(1, 1, k, left, lda, b + j, width, out, ldc, add);
    }
  TOUCH;
}
#else
INLINE void begin_products(void) {}
INLINE void end_products(void) {}
#endif

/* A (m, k) times one panel of B, so many words wide. k is a multiple of PAIR. Between begin_products and end_products. */
static __attribute__((noinline, unused)) void panel(long m, long k, const num *a, long lda, const word *b, long width, float *c,
                                            long ldc, int add) {
#ifdef AMX
  const long down = m / SIDE * SIDE, deep = k / DEPTH * DEPTH;
  if (down && deep) {
    for (long p = 0; p < deep; p += NEAR) /* as deep at a time as a panel stays in the nearest cache */
      by_tiles(down, deep - p < NEAR ? deep - p : NEAR, a + p, lda, b + p / PAIR * width, width, c, ldc, add || p);
    if (k > deep) by_vectors(down, k - deep, a + deep, lda, b + deep / PAIR * width, width, c, ldc, 1);
    m -= down, a += down * lda, c += down * ldc;
  }
#endif
  if (m) by_vectors(m, k, a, lda, b, width, c, ldc, add);
}

#if PAIR == 2
/* 16 rows of 16 words, turned. */
INLINE void turn_words(__m512i v[16]) {
  __m512i w[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i even_upper = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), odd_upper = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    const __m512i even_lower = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    const __m512i odd_lower = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    w[i] = _mm512_shuffle_i32x4(even_upper, even_lower, 0x88);
    w[i + 4] = _mm512_shuffle_i32x4(odd_upper, odd_lower, 0x88);
    w[i + 8] = _mm512_shuffle_i32x4(even_upper, even_lower, 0xdd);
    w[i + 12] = _mm512_shuffle_i32x4(odd_upper, odd_lower, 0xdd);
  }
  memcpy(v, w, sizeof(w));
}

/* to (columns, rows) ← from (rows, columns)ᵀ, 32 rows by 32 columns at a time; of `to` 32 columns at a time are written, with
   zeros beyond the last. */
static __attribute__((unused)) void turn(const num *from, long ldfrom, long rows, long columns, num *to, long ldto) {
  for (long r = 0; r < rows; r += 32)
    for (long c = 0; c < columns; c += 32) {
      const __mmask32 own = columns - c < 32 ? (__mmask32)((1u << (columns - c)) - 1) : 0xffffffffu;
      __m512i first[16], second[16]; /* of every eight columns the first four, and the others */
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        const long upper = r + 2 * i, lower = upper + 1;
        const __m512i a = _mm512_maskz_loadu_epi16(upper < rows ? own : 0, from + upper * ldfrom + c);
        const __m512i b = _mm512_maskz_loadu_epi16(lower < rows ? own : 0, from + lower * ldfrom + c);
        first[i] = _mm512_unpacklo_epi16(a, b);
        second[i] = _mm512_unpackhi_epi16(a, b);
      }
      turn_words(first);
      turn_words(second);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        const long at = c + i / 4 * 8 + i % 4;
        if (at < columns) _mm512_storeu_si512(to + at * ldto + r, first[i]);
        if (at + 4 < columns) _mm512_storeu_si512(to + (at + 4) * ldto + r, second[i]);
      }
    }
}
#endif

/* B = Xᵀ for X (n, k), k a multiple of PAIR: words are taken as they lie, a cache line of each row after the other. */
static __attribute__((unused)) void pack_transposed(const num *x, long ldx, long n, long k, word *b) {
  for (long j = 0; j < n; j += PANEL) {
    const long width = width_of(n, j), own = n - j < width ? n - j : width, words = k / PAIR;
#if PAIR == 2
    for (long first = 0; first < words; first += 16) {
      const long many = words - first < 16 ? words - first : 16;
      const __mmask16 there = (__mmask16)((1u << many) - 1);
      for (long i = 0; i < width; i += 16) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++)
          v[r] = _mm512_maskz_loadu_epi32(i + r < own ? there : 0, x + (j + i + r) * ldx + first * PAIR);
        turn_words(v);
#pragma GCC unroll 16
        for (int p = 0; p < 16; p++)
          if (p < many) _mm512_storeu_si512(b + (first + p) * width + i, v[p]);
      }
    }
#else
    for (long first = 0; first < words; first += 16) {
      const long end = words - first < 16 ? words : first + 16;
      for (long i = 0; i < own; i++)
        for (long p = first; p < end; p++) memcpy(b + p * width + i, x + (j + i) * ldx + p * PAIR, sizeof(word));
    }
    for (long p = 0; p < words; p++)
      for (long i = own; i < width; i++) b[p * width + i] = 0;
#endif
    b += words * width;
  }
}

/* B = X for X (k, n). */
static __attribute__((unused)) void pack_rows(const num *x, long ldx, long k, long n, word *b) {
  for (long j = 0; j < n; j += PANEL) {
    long width = width_of(n, j), own = n - j < width ? n - j : width;
    for (long p = 0; p < k; p += PAIR, b += width) {
      const num *row = x + p * ldx + j;
#ifdef ROUNDS
      for (long i = 0; i < width; i += 16) {
        const __mmask16 there = i + 16 > own ? (__mmask16)((1u << (own > i ? own - i : 0)) - 1) : 0xffff;
        const __m256i upper = _mm256_maskz_loadu_epi16(there, row + i);
        const __m256i lower = _mm256_maskz_loadu_epi16(p + 1 < k ? there : 0, row + ldx + i);
        _mm512_storeu_si512(b + i, _mm512_or_si512(_mm512_cvtepu16_epi32(upper), _mm512_slli_epi32(_mm512_cvtepu16_epi32(lower), 16)));
      }
#else
      memcpy(b, row, own * sizeof(word));
      for (long i = own; i < width; i++) b[i] = 0;
#endif
    }
  }
}

/* Memory of this thread's own, kept for the next call; null where there is none left. */
static __attribute__((unused)) char *scratch(size_t bytes) {
  static _Thread_local char *held;
  static _Thread_local size_t size;
  if (size < bytes) {
    free(held);
    size = UP(bytes, 1 << 16);
    held = aligned_alloc(64, size);
    if (!held) size = 0;
  }
  return held;
}
#endif
