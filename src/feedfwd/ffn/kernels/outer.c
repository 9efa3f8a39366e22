/* C = Aᵀ B for A (T, N) and B (T, K), T long: how the gradients of weights come about. A thread works on a band of C's rows:
   a stretch of A is turned so that its products go along rows, and meets the same stretch of B while both are in the cache.
   An element of C is added up stretch by stretch: results don't depend on the number of threads. */
#include "lanes.c"

#define STRETCH 256 /* of T, */
#define LINE (STRETCH + 32) /* numbers from one row of what is turned to the next: a power of two would share cache lines */
#define BAND 256    /* of N and */
#define ACROSS 1024 /* of K: what is worked on at a time */

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

/* to (columns, STRETCH) ← from (rows, columns)ᵀ, 32 rows by 32 columns at a time; zeros below the last row. */
static void turn(const num *from, long ldfrom, long rows, long columns, num *to) {
  for (long c = 0; c < columns; c += 32) {
    const __mmask32 own = columns - c < 32 ? (__mmask32)((1u << (columns - c)) - 1) : 0xffffffffu;
    for (long r = 0; r < rows; r += 32) {
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
        if (at < columns) _mm512_storeu_si512(to + at * LINE + r, first[i]);
        if (at + 4 < columns) _mm512_storeu_si512(to + (at + 4) * LINE + r, second[i]);
      }
    }
  }
}

static int band(const num *a, long lda, const num *b, long ldb, long T, long rows, long columns, num *c, long ldc) {
  const long wide = UP(columns, LANES);
  char *memory = scratch(4 * rows * wide + sizeof(num) * rows * LINE + 4 * packed(STRETCH, columns) + 3 * 64);
  if (!memory) return 1;
  float *sums = (float *)memory;
  num *turned = (num *)(sums + rows * wide);
  word *right = (word *)(turned + rows * LINE);
  for (long t = 0; t < T; t += STRETCH) {
    const long many = T - t < STRETCH ? T - t : STRETCH, deep = UP(many, PAIR);
    turn(a + t * lda, lda, many, rows, turned);
    pack_rows(b + t * ldb, ldb, many, columns, right);
    for (long j = 0; j < columns; j += PANEL)
      panel(rows, deep, turned, LINE, right + deep / PAIR * j, width_of(columns, j), sums + j, wide, t > 0);
  }
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < columns; j++) c[i * ldc + j] = store(sums[i * wide + j]);
  return 0;
}

/* The number of bands that found no memory. */
int outer(const num *a, const num *b, num *c, long T, long N, long K, long lda, long ldb, int threads) {
  int failed = 0;
  const long share = UP((N + threads - 1) / threads, 64), high = share < BAND ? share : BAND;
  const long down = (N + high - 1) / high, across = (K + ACROSS - 1) / ACROSS;
#pragma omp parallel num_threads(threads) reduction(+ : failed) if (threads > 1)
  {
    begin_products();
#pragma omp for schedule(dynamic) nowait
    for (long i = 0; i < down * across; i++) {
      const long n = i / across * high, k = i % across * ACROSS;
      failed += band(a + n, lda, b + k, ldb, T, N - n < high ? N - n : high, K - k < ACROSS ? K - k : ACROSS, c + n * K + k, K);
    }
    end_products();
  }
  return failed;
}
