/* From N rows of V logits to the gradient of their cross-entropy, in their own place: what torch's softmax and five small
   operations do, in one visit to each row.

     lse = log Σ_v exp logit_v,  c = 1 + 2 z lse,  logit_v ← p_v - [v = target] / c  with  p_v = exp(logit_v - lse) */
#include "lanes.c"

/* Rows lie ld numbers apart; log_p (N): of the targets. */
void softmax(num *logits, long ld, const int64_t *targets, float *lse, float *log_p, float z, long N, long V, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long i = 0; i < N; i++) {
    num *row = logits + i * ld;
    float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
    for (long v = 0; v < V; v++) largest = load(row[v]) > largest ? load(row[v]) : largest;
#pragma omp simd reduction(+ : sum)
    for (long v = 0; v < V; v++) sum += exponential(load(row[v]) - largest);
    lse[i] = largest + logf(sum);
    log_p[i] = load(row[targets[i]]) - lse[i];
    for (long v = 0; v < V; v++) row[v] = store(exponential(load(row[v]) - lse[i]));
    row[targets[i]] = store(expf(log_p[i]) - 1.0f / (1.0f + 2.0f * z * lse[i]));
  }
}
