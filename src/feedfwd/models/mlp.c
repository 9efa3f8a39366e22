/* Forward and backward pass of a plain multilayer perceptron whose activation is linear on either side of zero (ReLU,
   leaky ReLU, none). Activations stand as columns, H = σ(W H + b). Every product here is A · B with rows of B
   contiguous: of each tile of the result a few rows are summed in registers while B streams by. Each number is one
   thread's, summed in one order, so that the number of threads changes no bit. `mlp_native.py` calls this. */
#include <omp.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define ROWS 4                                  /* of a tile */
#define VECTORS (LANES / 4 < 2 ? 2 : LANES / 4) /* of a tile's row: as many as the machine has registers for */
#define DEPTH (6144 / (VECTORS * LANES))        /* rows of B that stay in the first cache: 24 KiB */
#define UP(n) (((n) + LANES - 1) / LANES * LANES)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int mask __attribute__((vector_size(4 * LANES), aligned(4)));
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec choose(mask m, vec a, vec b) { return (vec)((m & (mask)a) | (~m & (mask)b)); }

const int lanes = LANES;

/* Rows of all buffers but weights and gradients are padded with zeros to whole vectors; those of h and d are `ld` apart:
   not a large power of two, which would lay them all into the same few places of the cache. */
typedef struct {
  int layers, n, ld;                        /* n examples */
  float slope;                              /* σ(z) = z for z > 0, slope · z else; the last layer has none */
  const int *sizes;                         /* layers + 1 */
  const float *const *weight, *const *bias; /* (O, I); (O) or NULL */
  float *const *weight_gradient, *const *bias_gradient;
  float *const *h;  /* (size, n), layers + 1: inputs, hidden layers, outputs */
  float *const *d;  /* the same: gradients of W h + b; d[0] isn't used */
  float *const *ht; /* (n, size): hidden layers as rows; ht[0] isn't used */
} net;

/* One tile of c = a · b (+ bias), or of c += a · b where it is `begun`: a(m, k) = a[m · am + k · ak], b (K, ·), c (·, ·),
   of which `width` columns exist. */
INLINE void tile(int rows, int vectors, int width, int K, int begun, const float *a, long am, long ak, const float *b,
                 long ldb, float *c, long ldc, const float *bias) {
  vec sum[ROWS][VECTORS];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++)
      if (!begun)
        sum[i][j] = (vec){0} + (bias ? bias[i] : 0.0f);
      else if (width < vectors * LANES)
        memcpy(&sum[i][0], c + i * ldc, 4 * width);
      else
        sum[i][j] = load(c + i * ldc + j * LANES);
  for (int k = 0; k < K; k++) {
    vec right[VECTORS];
    for (int j = 0; j < vectors; j++) right[j] = load(b + k * ldb + j * LANES);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < vectors; j++) sum[i][j] += a[i * am + k * ak] * right[j];
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < vectors; j++)
      if (width < vectors * LANES)
        memcpy(c + i * ldc, &sum[i][0], 4 * width);
      else
        store(c + i * ldc + j * LANES, sum[i][j]);
}

/* Rows m0 … m1 of c = a · b (+ bias), N columns; the rows of b are padded. */
static void product(int m0, int m1, int N, int K, const float *a, long am, long ak, const float *b, long ldb, float *c,
                    long ldc, const float *bias) {
  int n = 0, m;
#define TILE(rows, vectors, width)                                                                                \
  tile(rows, vectors, width, K - k < DEPTH ? K - k : DEPTH, k > 0, a + m * am + k * ak, am, ak, b + k * ldb + n, \
       ldb, c + m * ldc + n, ldc, bias ? bias + m : 0)
#define COLUMN(vectors, width)                                            \
  for (int k = 0; k < K; k += DEPTH) {                                    \
    for (m = m0; m + ROWS <= m1; m += ROWS) TILE(ROWS, vectors, width);   \
    for (; m < m1; m++) TILE(1, vectors, width);                          \
  }
  for (; n + VECTORS * LANES <= N; n += VECTORS * LANES) COLUMN(VECTORS, VECTORS * LANES)
  for (; n + LANES <= N; n += LANES) COLUMN(1, LANES)
  if (n < N) COLUMN(1, N - n)
}

/* t (columns, ldt) = xᵀ, x (rows, ldx), in squares that stay in the cache. */
static void transpose(int rows, int columns, const float *x, long ldx, float *t, long ldt) {
  for (int r0 = 0; r0 < rows; r0 += 16)
    for (int c0 = 0; c0 < columns; c0 += 16) {
      int r1 = r0 + 16, c1 = c0 + 16;
      if (r1 <= rows && c1 <= columns) {
        float in[16][16], out[16][16];
        for (int i = 0; i < 16; i++) memcpy(in[i], x + (r0 + i) * ldx + c0, sizeof in[i]);
        for (int i = 0; i < 16; i++)
          for (int j = 0; j < 16; j++) out[j][i] = in[i][j];
        for (int j = 0; j < 16; j++) memcpy(t + (c0 + j) * ldt + r0, out[j], sizeof out[j]);
      } else {
        for (int r = r0; r < r1 && r < rows; r++)
          for (int c = c0; c < c1 && c < columns; c++) t[c * ldt + r] = x[r * ldx + c];
      }
    }
}

typedef struct { int first, last; } range;

/* This thread's share of `total`, in whole units where there are enough of them. */
static range share(int total, int unit) {
  int threads = omp_get_num_threads(), thread = omp_get_thread_num();
  if (total < unit * threads) unit = 1;
  long units = (total + unit - 1) / unit;
  int first = units * thread / threads * unit, last = units * (thread + 1) / threads * unit;
  return (range){first < total ? first : total, last < total ? last : total};
}

/* v times the slope that belongs to z. NaN stays NaN, and a slope of zero is ReLU's: 0 whatever it meets. */
INLINE vec sloped(vec v, vec z, float slope) {
  return choose(z <= 0, slope == 0 ? (vec){0} : slope * v, v);
}

/* x (n, sizes[0]) to h[layers]. */
void forward(const net *p, const float *x, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int *size = p->sizes, n = p->n, ld = p->ld;
    range mine = share(size[0], 16);
    transpose(n, mine.last - mine.first, x + mine.first, UP(size[0]), p->h[0] + (long)mine.first * ld, ld);
    for (int l = 0; l < p->layers; l++) {
#pragma omp barrier
      mine = share(size[l + 1], 16);
      float *h = p->h[l + 1];
      product(mine.first, mine.last, UP(n), size[l], p->weight[l], size[l], 1, p->h[l], ld, h, ld, p->bias[l]);
      if (l + 1 == p->layers) break;
      for (long i = (long)mine.first * ld; i < (long)mine.last * ld; i += LANES) {
        vec z = load(h + i);
        store(h + i, sloped(z, z, p->slope));
      }
      transpose(mine.last - mine.first, n, h + (long)mine.first * ld, ld, p->ht[l + 1] + mine.first, UP(size[l + 1]));
    }
  }
}

/* d[layers], zero beyond column n, to the gradients of all weights and biases. */
void backward(const net *p, const float *x, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int *size = p->sizes, n = p->n, ld = p->ld;
    for (int l = p->layers; l > 0; l--) {
      const float *d = p->d[l];
      int below = size[l - 1];
      if (l > 1) { /* Wᵀ d, times the slope */
        range mine = share(below, 16);
        float *out = p->d[l - 1];
        product(mine.first, mine.last, UP(n), size[l], p->weight[l - 1], 1, below, d, ld, out, ld, 0);
        for (long i = (long)mine.first * ld; i < (long)mine.last * ld; i += LANES)
          store(out + i, sloped(load(out + i), load(p->h[l - 1] + i), p->slope));
      }
      range mine = share(size[l], ROWS);
      const float *rows = l > 1 ? p->ht[l - 1] : x;
      product(mine.first, mine.last, below, n, d, ld, 1, rows, UP(below), p->weight_gradient[l - 1], below, 0);
      if (p->bias_gradient[l - 1])
        for (int m = mine.first; m < mine.last; m++) {
          vec sums = {0};
          for (int i = 0; i < ld; i += LANES) sums += load(d + (long)m * ld + i);
          float sum = 0;
          for (int i = 0; i < LANES; i++) sum += sums[i];
          p->bias_gradient[l - 1][m] = sum;
        }
#pragma omp barrier
    }
  }
}
