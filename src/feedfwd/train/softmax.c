/* From N rows of V logits to the gradient of their cross-entropy, in their own place: what torch's softmax and five small
   operations do, in one visit to each row.

     lse = log Σ_v exp logit_v,  c = 1 + 2 z lse,  logit_v ← p_v - [v = target] / c  with  p_v = exp(logit_v - lse) */
#include "lanes.c"

/* Σ_v exp(row_v - shift), and where `out` is given each of them there, as row's own. */
static float powers(const num *row, long V, float shift, num *out) {
  float sum = 0.0f;
  long v = 0;
#ifdef ROUNDS
  vec added = {0.0f};
  for (; v + LANES <= V; v += LANES) {
    const vec e = power_of_two((widened(row + v) - shift) * LOG2E);
    if (out) put(e, out + v);
    else added += e;
  }
  sum = total_of(added);
#endif
  if (out)
    for (; v < V; v++) out[v] = store(exponential(load(row[v]) - shift));
  else {
#pragma omp simd reduction(+ : sum)
    for (long w = v; w < V; w++) sum += exponential(load(row[w]) - shift);
  }
  return sum;
}

/* Rows lie ld numbers apart; log_p (N): of the targets. */
void softmax(num *logits, long ld, const int64_t *targets, float *lse, float *log_p, float z, long N, long V, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long i = 0; i < N; i++) {
    num *row = logits + i * ld;
    float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (long v = 0; v < V; v++) largest = load(row[v]) > largest ? load(row[v]) : largest;
    lse[i] = largest + logf(powers(row, V, largest, 0));
    log_p[i] = load(row[targets[i]]) - lse[i];
    powers(row, V, lse[i], row);
    row[targets[i]] = store(expf(log_p[i]) - 1.0f / (1.0f + 2.0f * z * lse[i]));
  }
}
