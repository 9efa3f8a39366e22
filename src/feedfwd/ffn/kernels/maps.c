/* The three products of a linear map of T tokens by tiles (AMX). Tokens are bf16 and weights fp32 throughout: a weight is
   rounded as it is packed, and its gradient is stored as it was added up, so that no copy of either in bf16 is ever made.
   Results don't depend on the number of threads. */
#include "lanes.c"
#include <omp.h>

/* --- y = x Wᵀ + b and ∂x = ∂y W: a thread takes some tokens and all weights, a panel at a time, so that what it writes is what
   it reads in the next sweep; where tokens are few it takes some panels ------------------------------------------------- */

#define OWN 128    /* tokens of a thread, at least */
#define TOKENS 256 /* that are worked on at a time */

/* A panel of Wᵀ for W (·, K): `width` rows of W side by side. */
static void pack_turned_weights(const float *w, long K, long width, word *b) {
  for (long k = 0; k < K; k += 32)
    for (long i = 0; i < width; i += 16) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++) {
        const float *row = w + (i + r) * K + k;
        v[r] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
      }
      turn_words(v);
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) memcpy(b + (k / 2 + p) * width + i, &v[p], sizeof(v[p]));
    }
}

/* A panel of W (K, N) from where w points on. */
static void pack_weights(const float *w, long N, long K, long width, word *b) {
  const __m512i together = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                            20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (long k = 0; k < K; k += 2, b += width)
    for (long i = 0; i < width; i += 16) {
      const float *upper = w + k * N + i;
      const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(upper + N), _mm512_loadu_ps(upper));
      const __m512i words = _mm512_permutexvar_epi16(together, (__m512i)both);
      memcpy(b + i, &words, sizeof(words));
    }
}

/* Sums of some tokens, with the bias, to where they belong. */
INLINE void finish(const float *sums, long width, const float *bias, num *y, long ldy, long rows) {
  for (long r = 0; r < rows; r++)
    for (long c = 0; c < width; c += LANES) {
      const vec added = bias ? _mm512_loadu_ps(bias + c) : _mm512_setzero_ps();
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(sums + r * PANEL + c) + added);
      memcpy(y + r * ldy + c, &rounded, sizeof(rounded));
    }
}

/* Weights of so many rows, one below the other, each with its bias or none. */
typedef struct {
  const float *weight, *bias;
  long rows;
} stacked;

typedef struct {
  const num *x, *last; /* `last`: the tokens that fill no tile, and zeros */
  const stacked *weights;
  num *y;
  long ldx, many, T, K, N; /* `many` weights */
  int turned;
} product;

/* The panel of B that begins at column j. */
static void pack(const product *t, long j, word *b) {
  const stacked *own = t->weights;
  long first = 0;
  if (t->turned) {
    for (; j - first >= own->rows; own++) first += own->rows;
    pack_turned_weights(own->weight + (j - first) * t->K, t->K, width_of(t->N, j), b);
  } else
    for (; own < t->weights + t->many; b += own->rows / PAIR * width_of(t->N, j), own++)
      pack_weights(own->weight + j, t->N, own->rows, width_of(t->N, j), b);
}

/* Tokens i … end times that panel. */
static void multiply(const product *t, long i, long end, long j, const word *b, float *sums) {
  const long whole = t->T / SIDE * SIDE, width = width_of(t->N, j);
  const stacked *own = t->weights;
  long first = 0;
  while (t->turned && j - first >= own->rows) first += own++->rows;
  const float *bias = t->turned && own->bias ? own->bias + j - first : 0;
  TOUCH;
  for (long k = 0; k < t->K; k += NEAR)
    for (long r = i; r < end; r += 2 * SIDE) {
      const long down = whole - r >= 2 * SIDE ? 2 : 1, deep = t->K - k < NEAR ? t->K - k : NEAR;
      const word *right = b + k / PAIR * width;
      float *c = sums + (r - i) * PANEL;
      if (r < whole) by_tiles(down * SIDE, deep, t->x + r * t->ldx + k, t->ldx, right, width, c, PANEL, k > 0);
      if (whole < t->T && r <= whole && whole < r + 2 * SIDE)
        by_tiles(SIDE, deep, t->last + k, t->K, right, width, sums + (whole - i) * PANEL, PANEL, k > 0);
      if (k + deep == t->K) finish(c, width, bias, t->y + r * t->N + j, t->N, end - r < 2 * SIDE ? end - r : 2 * SIDE);
    }
}

/* y (T, N) = x B + bias for x (T, K), where B is Wᵀ for W (N, K), or W (K, N) and no bias. W is stacked of `many`; their rows, K
   and N are multiples of 32. Not 0 where there is no memory. */
int map(const num *x, long ldx, const stacked *w, long many, int turned, num *y, long T, long K, long N, int threads) {
  const long whole = T / SIDE * SIDE, panels = (N + PANEL - 1) / PANEL, of_panel = K / PAIR * PANEL;
  const long share = T >= OWN * threads ? UP((T + threads - 1) / threads, 2 * SIDE) : T;
  char *memory = scratch(sizeof(num) * SIDE * K + threads * 4 * (of_panel + TOKENS * PANEL));
  if (!memory) return 1;
  word *packed_of_all = (word *)memory;
  float *sums_of_all = (float *)(packed_of_all + threads * of_panel);
  num *last = (num *)(sums_of_all + threads * TOKENS * PANEL);
  memset(last, 0, sizeof(num) * SIDE * K);
  for (long i = whole; i < T; i++) memcpy(last + (i - whole) * K, x + i * ldx, sizeof(num) * K);
  const product t = {x, last, w, y, ldx, many, T, K, N, turned};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const long own = omp_get_thread_num();
    word *b = packed_of_all + own * of_panel;
    float *sums = sums_of_all + own * TOKENS * PANEL;
    begin_products();
    if (share < T) {
      const long end = T < (own + 1) * share ? T : (own + 1) * share;
      for (long j = 0; j < N && own * share < T; j += PANEL) {
        pack(&t, j, b);
        for (long i = own * share; i < end; i += TOKENS) multiply(&t, i, end - i < TOKENS ? end : i + TOKENS, j, b, sums);
      }
    } else {
#pragma omp for schedule(dynamic) nowait
      for (long p = 0; p < panels; p++) {
        pack(&t, p * PANEL, b);
        for (long i = 0; i < T; i += TOKENS) multiply(&t, i, T - i < TOKENS ? T : i + TOKENS, p * PANEL, b, sums);
      }
    }
    end_products();
  }
  return 0;
}

/* --- ∂W = ∂yᵀ x: a thread works on a band of its rows. A stretch of ∂y is turned so that its products go along rows, and
   meets the same stretch of x while both are in the cache; an element is added up stretch by stretch --------------------- */

#define STRETCH 256 /* of T, */
#define LINE (STRETCH + 32) /* numbers from one row of what is turned to the next: a power of two would share cache lines */
#define BAND 256    /* of N and */
#define ACROSS 1024 /* of K: what is worked on at a time */

/* Sums of the rows of what was turned. */
static void sum_up(const num *turned, long rows, long many, float *sums, int add) {
  for (long i = 0; i < rows; i++) {
    vec sum = {0.0f};
    for (long t = 0; t < many; t += 32) {
      __m512i words;
      memcpy(&words, turned + i * LINE + t, sizeof(words));
      sum = _mm512_dpbf16_ps(sum, (__m512bh)words, (__m512bh)_mm512_set1_epi16(0x3f80)); /* times one */
    }
    sums[i] = (add ? sums[i] : 0.0f) + total_of(sum);
  }
}

static int band(const num *a, long lda, const num *b, long ldb, long T, long rows, long columns, float *c, long ldc, int add,
                float *sum) {
  const long wide = UP(columns, LANES);
  const int direct = columns == wide; /* else what a panel writes beyond the last column would be another's */
  char *memory = scratch((direct ? 0 : 4 * rows * wide) + sizeof(num) * rows * LINE + 4 * packed(STRETCH, columns) + 3 * 64);
  if (!memory) return 1;
  num *turned = (num *)memory;
  word *right = (word *)(turned + rows * LINE);
  float *sums = direct ? c : (float *)(right + packed(STRETCH, columns));
  for (long t = 0; t < T; t += STRETCH) {
    const long many = T - t < STRETCH ? T - t : STRETCH, deep = UP(many, PAIR);
    turn(a + t * lda, lda, many, rows, turned, LINE);
    if (sum) sum_up(turned, rows, many, sum, t > 0);
    pack_rows(b + t * ldb, ldb, many, columns, right);
    for (long j = 0; j < columns; j += PANEL)
      panel(rows, deep, turned, LINE, right + deep / PAIR * j, width_of(columns, j), sums + j, direct ? ldc : wide,
            t > 0 || (direct && add));
  }
  if (!direct)
    for (long i = 0; i < rows; i++)
      for (long j = 0; j < columns; j++) c[i * ldc + j] = (add ? c[i * ldc + j] : 0.0f) + sums[i * wide + j];
  return 0;
}

/* C = Aᵀ B or C += Aᵀ B for A (T, N) and B (T, K), and unless null the sums of A's columns. The number of bands that found no
   memory. */
int outer(const num *a, long lda, const num *b, long ldb, float *c, int add, float *sum, long T, long N, long K, int threads) {
  int failed = 0;
  const long share = (N + threads - 1) / threads, bands = (share + BAND - 1) / BAND; /* of a thread, all alike */
  const long high = UP((share + bands - 1) / bands, 2 * SIDE);
  const long down = (N + high - 1) / high, across = (K + ACROSS - 1) / ACROSS;
#pragma omp parallel num_threads(threads) reduction(+ : failed) if (threads > 1)
  {
    begin_products();
#pragma omp for schedule(dynamic) nowait
    for (long i = 0; i < down * across; i++) {
      const long n = i / across * high, k = i % across * ACROSS;
      failed += band(a + n, lda, b + k, ldb, T, N - n < high ? N - n : high, K - k < ACROSS ? K - k : ACROSS, c + n * K + k, K, add,
                     sum && k == 0 ? sum + n : 0);
    }
    end_products();
  }
  return failed;
}
