/* The three products of a linear map of T tokens by tiles (AMX). Tokens are bf16 and weights fp32 throughout: a weight is
   rounded as it is packed, and its gradient is stored as it was added up, so that no copy of either in bf16 is ever made.

   All three are C = A B, with B packed into panels of 32 columns. A thread takes a part of C: it packs as many of its columns of B
   as stay in its second cache, then takes 32 rows after 32 rows, all panels of each. So A stays in the nearest cache, and C is
   written along its rows, which a processor foresees; down its columns it waits for memory longer than it multiplies. Results
   don't depend on the number of threads.

   Compiled for one activation (-DSIGMA=silu) it holds the two products of a feed-forward layer that the activation meets, which
   bend what they have added up before it leaves the nearest cache. */
#include "lanes.c"
#ifdef SIGMA
#define IN_VECTORS
#include "activations.c"
#endif

#define ROWS (2 * SIDE)
#define BLOCK (ROWS * PANEL)
#define HELD (640 << 10) /* numbers of B at a time */
#define DEEP 256         /* of those rows of A and columns of B at a time that the nearest cache can't hold */
#define LINE (NEAR + 32) /* numbers from one row to the next of what is copied there: of a power of two, rows share cache lines */

/* Columns of B at a time, where it is so many rows deep: parts of about one size. */
static long held(long deep, long columns) {
  const long most = HELD / deep / PANEL * PANEL, parts = most > PANEL ? (columns + most - 1) / most : (columns + PANEL - 1) / PANEL;
  return UP((columns + parts - 1) / parts, PANEL);
}

/* A thread's part of C, and how many there are down and across. */
typedef struct {
  long down, across, rows, columns; /* rows and columns of a part, but of the last ones */
} grid;

/* The grid whose parts take least, where 32 rows of A take `of_rows` to prepare and 32 columns of B `of_columns`, beside the 3
   of their product: about a cycle for each of the `deep` numbers of a row or column. */
static grid grid_of(long rows, long columns, long deep, long of_rows, long of_columns, int threads) {
  grid best = {0};
  long least = 0;
  const long high = (rows + ROWS - 1) / ROWS, wide = (columns + PANEL - 1) / PANEL;
  for (long down = 1; down <= threads; down++) {
    if (threads % down) continue;
    const long across = threads / down, r = (high + down - 1) / down, c = (wide + across - 1) / across;
    const long parts = (c * PANEL - 1) / held(deep, c * PANEL) + 1; /* of B, each of which takes all of A */
    const long cost = r * c * 3 + r * of_rows * parts + c * of_columns;
    if (!least || cost < least) least = cost, best = (grid){down, across, r * ROWS, c * PANEL};
  }
  return best;
}

/* --- y = x Wᵀ + b and ∂x = ∂y W ---------------------------------------------------------------------------------------- */

/* A panel of Wᵀ for W (·, K): 32 rows of W side by side. */
static void pack_turned_weights(const float *w, long K, word *b) {
  for (long i = 0; i < PANEL; i += 16)
    for (long k = 0; k < K; k += 32) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++) {
        const float *row = w + (i + r) * K + k;
        _mm_prefetch((const char *)(row + 16 * K), _MM_HINT_T0);
        _mm_prefetch((const char *)(row + 16 * K + 16), _MM_HINT_T0);
        v[r] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
      }
      turn_words(v);
#pragma GCC unroll 16
      for (int p = 0; p < 16; p++) memcpy(b + (k / 2 + p) * PANEL + i, &v[p], sizeof(v[p]));
    }
}

/* Sixteen rows of W (·, N), two and two side by side, in as many panels as `columns` fill, each `of_panel` words after the other. */
static void pack_weights(const float *w, long N, long columns, word *b, long of_panel) {
  const __m512i together = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                            20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (long j = 0; j < columns; j += PANEL, b += of_panel)
#pragma GCC unroll 8
    for (long k = 0; k < 8; k++)
#pragma GCC unroll 2
      for (long i = 0; i < PANEL; i += 16) {
        const float *upper = w + 2 * k * N + j + i;
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(upper + N), _mm512_loadu_ps(upper));
        const __m512i words = _mm512_permutexvar_epi16(together, (__m512i)both);
        memcpy(b + k * PANEL + i, &words, sizeof(words));
      }
}

/* 32 numbers as bf16, and the first and second half of them as fp32. */
INLINE __m512i rounded(vec first, vec second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }
INLINE vec first_of(__m512i v) { return as_fp32(_mm512_castsi512_si256(v)); }
INLINE vec second_of(__m512i v) { return as_fp32(_mm512_extracti64x4_epi64(v, 1)); }

/* Such sums of a token, with the bias. */
INLINE __m512i biased(const float *sums, const float *bias) {
  const vec none = _mm512_setzero_ps(), first = bias ? vector(bias) : none, second = bias ? vector(bias + LANES) : none;
  return rounded(vector(sums) + first, vector(sums + LANES) + second);
}

/* Sums of some tokens to where they belong. */
INLINE void finish(const float *sums, const float *bias, num *y, long ldy, long rows) {
  for (long r = 0; r < rows; r++) _mm512_storeu_si512(y + r * ldy, biased(sums + r * PANEL, bias));
}

/* Weights of so many rows, one below the other, each with its bias or none. */
typedef struct {
  const float *weight, *bias;
  long rows;
} stacked;

/* What becomes of the sums: y; or z and a = σ(z), where gated of two sums; or of the sums, ∂a, and z both a and ∂z. */
enum { Y, BENT, BENT_BACK };

typedef struct {
  const num *x;
  const stacked *weights;
  num *to, *z; /* y or a; z */
  long ldx, T, K, N, ldz;
  int turned;
} product;

/* The weight that holds row `row` of all, which becomes its own. */
INLINE const stacked *weight_of(const product *t, long *row) {
  const stacked *own = t->weights;
  for (; *row >= own->rows; own++) *row -= own->rows;
  return own;
}

INLINE const float *bias_of(const product *t, long row) {
  const stacked *own = weight_of(t, &row);
  return t->turned && own->bias ? own->bias + row : 0;
}

#ifdef SIGMA
/* z to where it belongs, past the caches where that can be: it is read in the backward. */
INLINE void keep(__m512i v, num *z) {
  if ((uintptr_t)z % sizeof(v)) _mm512_storeu_si512(z, v);
  else _mm512_stream_si512((__m512i *)z, v);
}

/* z, for gated layers gate and up, from the sums of some tokens, and a. */
INLINE void bend(const int gated, const float *sums, const float *bias, const float *up_bias, num *z, num *up, long ldz, num *a,
                 long lda, long rows) {
  for (long r = 0; r < rows; r++, sums += PANEL, z += ldz, up += ldz, a += lda) {
    const __m512i own = biased(sums, bias), of_up = gated ? biased(sums + BLOCK, up_bias) : own;
    vec first = SIGMA(first_of(own)).value, second = SIGMA(second_of(own)).value;
    if (gated) first *= first_of(of_up), second *= second_of(of_up);
    _mm512_storeu_si512(a, rounded(first, second));
    keep(own, z);
    if (gated) keep(of_up, up);
  }
}

/* From ∂a: a, and ∂z over z. */
INLINE void bend_back(const int gated, const float *sums, num *z, num *up, long ldz, num *a, long lda, long rows) {
  for (long r = 0; r < rows; r++, sums += PANEL, z += ldz, up += ldz, a += lda) {
    const __m512i own = _mm512_loadu_si512(z), of_up = gated ? _mm512_loadu_si512(up) : own;
    const both first = SIGMA(first_of(own)), second = SIGMA(second_of(own));
    const vec d = vector(sums), e = vector(sums + LANES);
    if (gated) {
      const vec y = first_of(of_up), x = second_of(of_up);
      _mm512_storeu_si512(a, rounded(first.value * y, second.value * x));
      _mm512_storeu_si512(z, rounded(d * y * first.slope, e * x * second.slope));
      _mm512_storeu_si512(up, rounded(d * first.value, e * second.value));
    } else {
      _mm512_storeu_si512(a, rounded(first.value, second.value));
      _mm512_storeu_si512(z, rounded(d * first.slope, e * second.slope));
    }
  }
}
#endif

INLINE int map_part(const int end_as, const int gated, const product *t, long i, long end, long j, long right) {
  if (i >= end || j >= right) return 0; /* fewer rows or columns than parts */
  const int sides = gated && end_as == BENT ? 2 : 1; /* sums of which a takes one */
  const long K = t->K, N = t->N, of_panel = K / PAIR * PANEL, wide = held(sides * K, right - j);
  const long chunk = K > NEAR ? DEEP : K; /* in parts, the sums of all panels wait for the next */
  const long blocks = wide / PANEL * sides, waiting = K > NEAR ? blocks : sides;
  char *memory = scratch(sizeof(num) * ROWS * LINE + 4 * (blocks * of_panel + waiting * BLOCK));
  if (!memory) return 1;
  num *copy = (num *)memory;
  word *b = (word *)(copy + ROWS * LINE);
  float *sums = (float *)(b + blocks * of_panel);
  begin_products();
  for (; j < right; j += wide) {
    const long here = (right - j < wide ? right - j : wide) / PANEL;
    if (t->turned)
      for (long p = 0; p < here * sides; p++) {
        long row = j + p / sides * PANEL + p % sides * N;
        const stacked *own = weight_of(t, &row);
        pack_turned_weights(own->weight + row * K, K, b + p * of_panel);
      }
    else
      for (long k = 0; k < K; k += 16) {
        long row = k;
        const stacked *own = weight_of(t, &row);
        pack_weights(own->weight + row * N + j, N, here * PANEL, b + k / PAIR * PANEL, of_panel);
      }
    for (long r = i; r < end; r += ROWS) {
      const long rows = end - r < ROWS ? end - r : ROWS;
      for (long k = 0; k < K; k += chunk) {
        const long deep = K - k < chunk ? K - k : chunk;
        const int copied = K <= NEAR || rows < ROWS; /* reading whole rows once is faster than as tiles want them */
        const num *left = copied ? copy : t->x + r * t->ldx + k;
        for (long n = 0; copied && n < ROWS; n++)
          if (n < rows) memcpy(copy + n * LINE, t->x + (r + n) * t->ldx + k, sizeof(num) * deep);
          else memset(copy + n * LINE, 0, sizeof(num) * deep);
        for (long p = 0; p < here; p++) {
          const long column = j + p * PANEL;
          float *c = sums + (K > NEAR ? p * sides * BLOCK : 0);
          if (end_as == BENT_BACK) /* what of z comes next: its rows lie too far apart to be foreseen */
            for (long n = 0; n < rows; n++) {
              const num *z = t->z + (r + n) * t->ldz + column + PANEL;
              _mm_prefetch((const char *)z, _MM_HINT_T1);
              if (gated) _mm_prefetch((const char *)(z + N), _MM_HINT_T1);
            }
          for (int side = 0; side < sides; side++)
            by_tiles(rows > SIDE ? ROWS : SIDE, deep, left, copied ? LINE : t->ldx,
                     b + (p * sides + side) * of_panel + k / PAIR * PANEL, PANEL, c + side * BLOCK, PANEL, k > 0);
          if (k + deep < K) continue;
          num *to = t->to + r * N + column;
          if (end_as == Y) finish(c, bias_of(t, column), to, N, rows);
#ifdef SIGMA
          num *z = t->z + r * t->ldz + column;
          if (end_as == BENT)
            bend(gated, c, bias_of(t, column), gated ? bias_of(t, column + N) : 0, z, z + N, t->ldz, to, N, rows);
          if (end_as == BENT_BACK) bend_back(gated, c, z, z + N, t->ldz, to, N, rows);
#endif
        }
      }
    }
  }
  if (end_as == BENT) _mm_sfence(); /* what went past the caches is there for other threads */
  end_products();
  return 0;
}

/* All parts; the number of those that found no memory. */
static int multiply(const product *t, const int end_as, const int gated, int threads) {
  const grid g = grid_of(t->T, t->N, t->K, 6, 16, threads);
  int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : failed) if (threads > 1)
  for (long part = 0; part < threads; part++) {
    const long i = part / g.across * g.rows, j = part % g.across * g.columns;
    const long end = t->T < i + g.rows ? t->T : i + g.rows, right = t->N < j + g.columns ? t->N : j + g.columns;
#ifndef SIGMA
    failed += map_part(Y, 0, t, i, end, j, right);
#else
    if (end_as == BENT) failed += gated ? map_part(BENT, 1, t, i, end, j, right) : map_part(BENT, 0, t, i, end, j, right);
    else failed += gated ? map_part(BENT_BACK, 1, t, i, end, j, right) : map_part(BENT_BACK, 0, t, i, end, j, right);
#endif
  }
  return failed;
}

#ifdef SIGMA
/* a (T, N) = σ(z), z = x Wᵀ + bias for W (N, K); or a = σ(g) ⊙ u, z = [g | u] = x Wᵀ + bias for W (2N, K). */
int bent(const num *x, long ldx, const float *w, const float *bias, int gated, num *z, num *a, long T, long K, long N, int threads) {
  const stacked weight = {w, bias, gated ? 2 * N : N};
  const product t = {x, &weight, a, z, ldx, T, K, N, weight.rows, 1};
  return multiply(&t, BENT, gated, threads);
}

/* Backwards: with ∂a (T, N) = ∂y W for ∂y (T, K), W (K, N) and z as above, a again, and ∂z in z's place. */
int bent_back(const num *dy, long ldy, const float *w, int gated, num *z, num *a, long T, long K, long N, int threads) {
  const stacked weight = {w, 0, K};
  const product t = {dy, &weight, a, z, ldy, T, K, N, gated ? 2 * N : N, 0};
  return multiply(&t, BENT_BACK, gated, threads);
}
#else
/* y (T, N) = x B + bias for x (T, K), where B is Wᵀ for W (N, K), or W (K, N) and no bias. W is stacked of several; their rows,
   K and N are multiples of 32. */
int map(const num *x, long ldx, const stacked *w, int turned, num *y, long T, long K, long N, int threads) {
  const product t = {x, w, y, 0, ldx, T, K, N, 0, turned};
  return multiply(&t, Y, 0, threads);
}

/* --- ∂W = ∂yᵀ x: both are cut into stretches of tokens; an element of ∂W is added up stretch by stretch ----------------------- */

#define STRETCH 256 /* of T, so that a block of rows stays in the nearest cache; no more than */
#define ALL NEAR    /* are taken at once, which reads and writes C but once */
#define TURNED 128 /* rows at a time: of what is turned whole runs of memory are read */

/* Eight rows of X (·, n), `there` of them there, from word row `p` on into panels of `of_panel` words. */
static void pack_some(const num *x, long ldx, long there, long n, word *b, long of_panel) {
  const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                         35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (long j = 0; j < n; j += PANEL, b += of_panel) {
    const __mmask32 own = n - j < 32 ? (__mmask32)((1u << (n - j)) - 1) : 0xffffffffu;
#pragma GCC unroll 4
    for (long k = 0; k < 4; k++) {
      const __m512i upper = _mm512_maskz_loadu_epi16(2 * k < there ? own : 0, x + 2 * k * ldx + j);
      const __m512i lower = _mm512_maskz_loadu_epi16(2 * k + 1 < there ? own : 0, x + (2 * k + 1) * ldx + j);
      _mm512_storeu_si512(b + k * PANEL, _mm512_permutex2var_epi16(upper, first, lower));
      _mm512_storeu_si512(b + k * PANEL + 16, _mm512_permutex2var_epi16(upper, second, lower));
    }
  }
}

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

typedef struct {
  const num *a, *b;
  float *c, *sum;
  long lda, ldb, T, N, K;
  int add;
} gradient;

/* A block of C from its sums, past the caches: it is read when all of the backward is done. */
static void store_past(const float *sums, float *c, long ldc) {
  for (long r = 0; r < ROWS; r++)
    for (long i = 0; i < PANEL; i += LANES) _mm512_stream_ps(c + r * ldc + i, _mm512_load_ps(sums + r * PANEL + i));
}

/* Rows × columns of C from the sums of a whole block. */
static void store_part(const float *sums, long rows, long columns, float *c, long ldc, int add) {
  for (long r = 0; r < rows; r++)
    for (long i = 0; i < columns; i++) c[r * ldc + i] = (add ? c[r * ldc + i] : 0.0f) + sums[r * PANEL + i];
}

static int outer_part(const gradient *g, long n, long end, long k, long right) {
  if (n >= end || k >= right) return 0;
  const long stretch = g->T > ALL ? STRETCH : g->T, most = UP(stretch, DEPTH);
  const long wide = held(most, right - k), of_panel = most / PAIR * PANEL;
  char *memory = scratch(sizeof(num) * TURNED * LINE + 4 * (wide / PANEL * of_panel + BLOCK));
  if (!memory) return 1;
  num *turned = (num *)memory;
  word *b = (word *)(turned + TURNED * LINE);
  float *sums = (float *)(b + wide / PANEL * of_panel);
  const int aligned = ((uintptr_t)g->c & 63) == 0 && g->K % LANES == 0;
  begin_products();
  for (long t = 0; t < g->T; t += stretch)
    for (long j = k; j < right; j += wide) {
      const long many = g->T - t < stretch ? g->T - t : stretch, deep = UP(many, DEPTH);
      const long columns = right - j < wide ? right - j : wide;
      const int add = t > 0 || g->add;
      for (long r = 0; r < deep; r += 8)
        pack_some(g->b + (t + r) * g->ldb + j, g->ldb, many - r, columns, b + r / PAIR * PANEL, of_panel);
      for (long i = n; i < end; i += ROWS) {
        const long at = (i - n) % TURNED, rows = end - i < ROWS ? end - i : ROWS;
        const num *left = turned + at * LINE;
        if (!at) {
          const long high = end - i < TURNED ? end - i : TURNED;
          turn(g->a + t * g->lda + i, g->lda, many, high, turned, LINE);
          if (g->sum && j == 0) sum_up(turned, high, many, g->sum + i, t > 0);
        }
        for (long p = 0; p * PANEL < columns; p++) {
          const long own = columns - p * PANEL < PANEL ? columns - p * PANEL : PANEL;
          const int whole = rows == ROWS && own == PANEL, past = whole && aligned && !add;
          float *c = g->c + i * g->K + j + p * PANEL;
          if (whole && !past) by_tiles(ROWS, deep, left, LINE, b + p * of_panel, PANEL, c, g->K, add);
          else by_tiles(ROWS, deep, left, LINE, b + p * of_panel, PANEL, sums, PANEL, 0);
          if (past) store_past(sums, c, g->K);
          else if (!whole) store_part(sums, rows, own, c, g->K, add);
        }
      }
    }
  _mm_sfence();
  end_products();
  return 0;
}

/* C = Aᵀ B or C += Aᵀ B for A (T, N) and B (T, K), and unless null the sums of A's columns. The number of parts that found no
   memory. */
int outer(const num *a, long lda, const num *b, long ldb, float *c, int add, float *sum, long T, long N, long K, int threads) {
  const gradient t = {a, b, c, sum, lda, ldb, T, N, K, add};
  const grid g = grid_of(N, K, T < NEAR ? T : NEAR, 16, 8, threads);
  int failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : failed) if (threads > 1)
  for (long part = 0; part < threads; part++) {
    const long n = part / g.across * g.rows, k = part % g.across * g.columns;
    failed += outer_part(&t, n, N < n + g.rows ? N : n + g.rows, k, K < k + g.columns ? K : k + g.columns);
  }
  return failed;
}
#endif
