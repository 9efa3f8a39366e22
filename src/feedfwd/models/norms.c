/* RMSNorm of N rows of D numbers, one sweep over memory each way: y = w x s with s = 1 / √(mean(x²) + ε), and where there is a
   branch, of x + branch, which is written to `sum`. x is fp32; y, the branch and their gradients are in the precision that
   this file is compiled for. */
#include "lanes.c"

#define ROWS 64 /* whose share of ∂w one thread adds up: results don't depend on the number of threads */

void forward(const float *x, const num *branch, float *sum, const float *w, num *y, float *scale, long N, long D, float eps,
             int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long i = 0; i < N; i++) {
    const float *row = x + i * D;
    num *out = y + i * D;
    float squares = 0.0f;
    if (branch) {
      float *to = sum + i * D;
      for (long d = 0; d < D; d++) to[d] = row[d] + load(branch[i * D + d]);
      row = to;
    }
#pragma omp simd reduction(+ : squares)
    for (long d = 0; d < D; d++) squares += row[d] * row[d];
    const float s = scale[i] = 1.0f / sqrtf(squares / D + eps);
    for (long d = 0; d < D; d++) out[d] = store(row[d] * s * w[d]);
  }
}

/* ∂x = s (w ∂y - x s² mean(w ∂y x)), or that and dsum, which dbranch gets too; dw (N / ROWS rounded up, D) are the rows'
   shares of ∂w. */
void backward(const num *dy, const float *dsum, const float *x, const float *w, const float *scale, float *dx, num *dbranch,
              float *dw, long N, long D, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long first = 0; first < N; first += ROWS) {
    float *share = dw + first / ROWS * D;
    memset(share, 0, D * sizeof(float));
    for (long i = first; i < N && i < first + ROWS; i++) {
      const float *row = x + i * D, s = scale[i];
      const num *back = dy + i * D;
      float *out = dx + i * D, along = 0.0f;
#pragma omp simd reduction(+ : along)
      for (long d = 0; d < D; d++) along += load(back[d]) * w[d] * row[d];
      along *= s * s / D;
      for (long d = 0; d < D; d++) {
        const float g = load(back[d]);
        out[d] = s * (g * w[d] - row[d] * along);
        share[d] += g * row[d] * s;
      }
      if (dsum)
        for (long d = 0; d < D; d++) dbranch[i * D + d] = store(out[d] += dsum[i * D + d]);
    }
  }
}
