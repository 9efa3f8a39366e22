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

/* LayerNorm of total = x + branch: y = w (total - mean) s + b with s = 1 / √(variance + ε), in fp32 to y and rounded to `low`. */
void layer_forward(const float *x, const num *branch, const float *w, const float *b, float *total, float *y, num *low,
                   float *mean, float *scale, long N, long D, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long i = 0; i < N; i++) {
    float *row = total + i * D, sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (long d = 0; d < D; d++) sum += row[d] = x[i * D + d] + load(branch[i * D + d]);
    const float m = mean[i] = sum / D;
#pragma omp simd reduction(+ : squares)
    for (long d = 0; d < D; d++) squares += (row[d] - m) * (row[d] - m);
    const float s = scale[i] = 1.0f / sqrtf(squares / D + eps);
    for (long d = 0; d < D; d++) {
      const float out = (row[d] - m) * s * w[d] + b[d];
      y[i * D + d] = out;
      low[i * D + d] = store(out);
    }
  }
}

/* With g = w (∂y + ∂low), ∂low null where nobody took it, and z = (total - mean) s: ∂x = s (g - mean(g) - z mean(g z)), which the branch gets too. dw and db
   (N / ROWS rounded up, D) are the rows' shares of ∂w and ∂b. */
void layer_backward(const float *dy, const num *dlow, const float *total, const float *w, const float *mean, const float *scale,
                    float *dx, num *dbranch, float *dw, float *db, long N, long D, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long first = 0; first < N; first += ROWS) {
    float *of_w = dw + first / ROWS * D, *of_b = db + first / ROWS * D;
    memset(of_w, 0, D * sizeof(float));
    memset(of_b, 0, D * sizeof(float));
    for (long i = first; i < N && i < first + ROWS; i++) {
      const float *row = total + i * D, m = mean[i], s = scale[i];
      float *out = dx + i * D, sum = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : sum, along)
      for (long d = 0; d < D; d++) {
        const float back = dy[i * D + d] + (dlow ? load(dlow[i * D + d]) : 0.0f), z = (row[d] - m) * s;
        of_w[d] += back * z;
        of_b[d] += back;
        out[d] = back * w[d];
        sum += out[d];
        along += out[d] * z;
      }
      sum /= D;
      along /= D;
      for (long d = 0; d < D; d++) {
        out[d] = s * (out[d] - sum - (row[d] - m) * s * along);
        dbranch[i * D + d] = store(out[d]);
      }
    }
  }
}
