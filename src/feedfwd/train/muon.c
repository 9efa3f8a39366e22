/* An update of Muon, matrix by matrix: momentum, direction, Newton-Schulz steps and the step itself, while a matrix is in
   the processor's cache. A matrix is one thread's work: results don't depend on the number of threads. */
#include "lanes.c"

typedef struct {
  float *weight, *momentum; /* rows by columns */
  const float *gradient;
  float *moment; /* of each row, or of each column where they are more; null: not evened out */
  long rows, columns;
  float step; /* lr times the update's size */
} matrix;

typedef struct {
  const float (*quintics)[3];
  long quintic_count;
  float momentum, decay, smooth; /* decay: 1 - lr · weight decay; smooth: of `moment` */
  int threads;
} settings;

#define CHUNK 64 /* rows of a product held in fp32 before they are stored */
#define BAND 32  /* rows of the matrix itself worked on at a time */
#define LINE(x) (UP(x, 32) | 32) /* from one row to the next: a power of two would let rows share cache lines */

#if PAIR == 2
#define transpose turn
#else
/* to (columns, rows) ← from (rows, columns), block by block, so that both sides' lines stay near. */
static void transpose(const num *from, long ldfrom, long rows, long columns, num *to, long ldto) {
  for (long r = 0; r < rows; r += BAND)
    for (long c = 0; c < columns; c += BAND)
      for (long j = c; j < columns && j < c + BAND; j++)
        for (long i = r; i < rows && i < r + BAND; i++) to[j * ldto + i] = from[i * ldfrom + j];
}
#endif

/* first · before + third · sums, of which `before` may be where it goes. */
INLINE void put_sum(float first, const num *before, float third, const float *sums, long many, num *out) {
  long c = 0;
#ifdef ROUNDS
  for (; c + LANES <= many; c += LANES) put(first * widened(before + c) + third * vector(sums + c), out + c);
#endif
  for (; c < many; c++) out[c] = store(first * load(before[c]) + third * sums[c]);
}

/* G ← A Aᵀ or first · A + third · A A for a symmetric A: of a symmetric result what lies on and below the panels'
   diagonal is computed, the rest mirrored. b holds Aᵀ packed. */
static void symmetric(long m, long k, const num *a, long lda, const word *b, float first, float third, num *to, long ldto,
                      float *sums) {
  for (long j = 0; j < m; j += PANEL) {
    const long width = width_of(m, j), own = m - j < width ? m - j : width;
    for (long i = j; i < m; i += CHUNK) {
      const long rows = m - i < CHUNK ? m - i : CHUNK;
      panel(rows, k, a + i * lda, lda, b + UP(k, PAIR) / PAIR * j, width, sums, PANEL, 0);
      for (long r = 0; r < rows; r++)
        put_sum(first, a + (i + r) * lda + j, third, sums + r * PANEL, own, to + (i + r) * ldto + j);
      const long below = i > j ? 0 : own; /* the diagonal */
      if (rows > below) transpose(to + (i + below) * ldto + j, ldto, rows - below, own, to + j * ldto + i + below, ldto);
    }
  }
}

/* Every column of x (m, n) gets the root mean square of the others, by a moving mean of its squares; the whole keeps its size.
   x is multiplied by what comes into `factor` (n). */
static void even_out(const num *x, long ldx, long m, long n, float *moment, float smooth, float *factor) {
  memset(factor, 0, n * sizeof(float));
  for (long i = 0; i < m; i++)
    for (long j = 0; j < n; j++) factor[j] += load(x[i * ldx + j]) * load(x[i * ldx + j]);
  float before = 0.0f, after = 0.0f;
  for (long j = 0; j < n; j++) {
    const float mean = factor[j] / m;
    moment[j] = smooth * moment[j] + (1.0f - smooth) * mean;
    const float square = 1.0f / (moment[j] < 1e-10f ? 1e-10f : moment[j]);
    before += mean;
    after += mean * square;
    factor[j] = sqrtf(square);
  }
  const float scale = after > 0.0f ? sqrtf(before / after) : 0.0f;
  for (long j = 0; j < n; j++) factor[j] *= scale;
}

static int update(const settings *t, const matrix *of) {
  const int tall = of->rows >= of->columns; /* which of the two is told apart by `moment`, so that it is always x's columns */
  const long m = tall ? of->columns : of->rows, n = tall ? of->rows : of->columns, ldx = LINE(n), ldg = LINE(m), ldb = UP(m, 32);
  const long across = packed(UP(n, PAIR), m), down = packed(UP(m, PAIR), n), of_x = across > down ? across : down;
  const long of_gram = packed(UP(m, PAIR), m);
  char *memory = scratch(sizeof(num) * (m * ldx + 2 * m * ldg + BAND * ldb) + 4 * (of_x + of_gram + CHUNK * PANEL + n) + 8 * 64);
  if (!memory) return 1;
  word *x_packed = (word *)memory, *g_packed = x_packed + UP(of_x, 16);
  float *sums = (float *)(g_packed + UP(of_gram, 16));
  num *x = (num *)(sums + CHUNK * PANEL), *gram = x + m * ldx, *both = gram + m * ldg, *band = both + m * ldg;
  float *factor = (float *)(band + BAND * ldb);

  float squares = 0.0f;
  const float late = 1.0f - t->momentum;
  memset(x, 0, sizeof(num) * m * ldx);
  memset(gram, 0, sizeof(num) * m * ldg);
  memset(both, 0, sizeof(num) * m * ldg);
  for (long first = 0; first < of->rows; first += BAND) {
    const long many = of->rows - first < BAND ? of->rows - first : BAND;
    for (long i = 0; i < many; i++) {
      const float *g = of->gradient + (first + i) * of->columns;
      float *b = of->momentum + (first + i) * of->columns, added = 0.0f;
      num *row = tall ? band + i * ldb : x + (first + i) * ldx;
#pragma omp simd reduction(+ : added)
      for (long j = 0; j < of->columns; j++) {
        b[j] += (g[j] - b[j]) * late;
        const float d = b[j] - (b[j] - g[j]) * late;
        added += d * d;
        row[j] = store(d);
      }
      squares += added;
    }
    if (tall) transpose(band, ldb, many, m, x + first, ldx);
  }
  const float norm = sqrtf(squares), one = 1.0f / (norm < 1e-7f ? 1e-7f : norm);
  for (long i = 0; i < m * ldx; i++) x[i] = store(load(x[i]) * one);

  for (long s = 0; s < t->quintic_count; s++) {
    const float first = t->quintics[s][0], third = t->quintics[s][1], fifth = t->quintics[s][2];
    pack_transposed(x, ldx, m, UP(n, PAIR), x_packed);
    symmetric(m, UP(n, PAIR), x, ldx, x_packed, 0.0f, 1.0f, gram, ldg, sums);
    pack_transposed(gram, ldg, m, UP(m, PAIR), g_packed);
    symmetric(m, UP(m, PAIR), gram, ldg, g_packed, third, fifth, both, ldg, sums);
    pack_rows(x, ldx, m, n, x_packed);
    for (long j = 0; j < n; j += PANEL) {
      const long width = width_of(n, j), own = n - j < width ? n - j : width;
      for (long i = 0; i < m; i += CHUNK) {
        const long rows = m - i < CHUNK ? m - i : CHUNK;
        panel(rows, UP(m, PAIR), both + i * ldg, ldg, x_packed + UP(m, PAIR) / PAIR * j, width, sums, PANEL, 0);
        for (long r = 0; r < rows; r++) put_sum(first, x + (i + r) * ldx + j, 1.0f, sums + r * PANEL, own, x + (i + r) * ldx + j);
      }
    }
  }
  if (of->moment) even_out(x, ldx, m, n, of->moment, t->smooth, factor);
  else
    for (long j = 0; j < n; j++) factor[j] = 1.0f;
  for (long first = 0; first < of->rows; first += BAND) {
    const long many = of->rows - first < BAND ? of->rows - first : BAND;
    if (tall) transpose(x + first, ldx, m, many, band, ldb);
    for (long i = 0; i < many; i++) {
      const num *direction = tall ? band + i * ldb : x + (first + i) * ldx;
      float *w = of->weight + (first + i) * of->columns;
      const float step = of->step * (tall ? factor[first + i] : 1.0f);
      if (tall)
        for (long j = 0; j < of->columns; j++) w[j] = w[j] * t->decay - step * load(direction[j]);
      else
        for (long j = 0; j < of->columns; j++) w[j] = w[j] * t->decay - step * factor[j] * load(direction[j]);
    }
  }
  return 0;
}

/* The number of matrices that found no memory. */
int muon(const settings *t, const matrix *all, long count) {
  int failed = 0;
#pragma omp parallel num_threads(t->threads) reduction(+ : failed) if (t->threads > 1)
  {
    begin_products();
#pragma omp for schedule(dynamic) nowait
    for (long i = 0; i < count; i++) failed += update(t, all + i);
    end_products();
  }
  return failed;
}
