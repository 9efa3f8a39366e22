/* Attention from the products that give queries, keys and values to the heads' results, and back: rotary positions,
   scores, softmax and products of a head in one go, so that nothing between them leaves the processor's cache. The forward
   keeps the logarithm of each query's sum alone, from which the backward has the probabilities again (Dao et al. 2022,
   arXiv 2205.14135). A head is one thread's work: results don't depend on the number of threads.

   Queries (B, T, H, D), keys and values (B, T, K, D), y (B, T, H, D), lse (B, H, T). cos, sin (T, D/2) or null. documents (B, T) or null. */
#include "lanes.c"
#include <omp.h>

#ifdef AMX
#define BLOCK 64 /* rows worked on at a time: a multiple of what tiles and their depth take, */
#else
#define BLOCK 48 /* or of the six that stay in registers, and of PAIR */
#endif
#define KEYS 512   /* of the forward, and */
#define AHEAD 16    /* rows: a token's heads lie too far from the next one's for the processor to foresee */
#define QUERIES 128 /* of the backward that they meet at a time; multiples of PANEL */

typedef struct {
  const num *from[3]; /* queries, keys, values: a token's heads side by side, and so far from one token to the next */
  long stride[3];
  num *to[3]; /* their gradients, likewise */
  long to_stride[3];
  const float *cos, *sin;
  const int64_t *documents;
  long rows, tokens, heads, kv_heads, width, window;
  int causal, threads;
} task;

INLINE long first_key(const task *t, long query) { return t->window && query >= t->window ? query - t->window + 1 : 0; }
INLINE long end_of_keys(const task *t, long query) {
  long end = t->causal ? query + 1 : t->window ? query + t->window : t->tokens;
  return end < t->tokens ? end : t->tokens;
}
/* The same from the key's side: it is the same rule with the causal direction turned. */
INLINE long first_query(const task *t, long key) {
  return t->causal ? key : t->window && key >= t->window ? key - t->window + 1 : 0;
}
INLINE long end_of_queries(const task *t, long key) {
  long end = t->window ? key + t->window : t->tokens;
  return end < t->tokens ? end : t->tokens;
}

enum { Q, K, V };
INLINE const num *head_of(const task *t, int which, long row, long head) {
  return t->from[which] + row * t->tokens * t->stride[which] + head * t->width;
}
INLINE num *gradient_of(const task *t, int which, long row, long head, long token) {
  return t->to[which] + (row * t->tokens + token) * t->to_stride[which] + head * t->width;
}

/* The rows of a head, turned by their positions; rows beyond the last one are zero. */
static void turned(const task *t, const num *x, long stride, long first, long count, long with_zeros, num *out) {
  long half = t->width / 2;
  for (long i = 0; i < count; i++) {
    const num *a = x + (first + i) * stride, *b = a + half;
    num *o = out + i * t->width;
    for (long d = 0; i + AHEAD < count && d < t->width; d += 64 / sizeof(num)) __builtin_prefetch(a + AHEAD * stride + d);
    if (!t->cos) {
      memcpy(o, a, t->width * sizeof(num));
      continue;
    }
    const float *c = t->cos + (first + i) * half, *s = t->sin + (first + i) * half;
    long d = 0;
#ifdef ROUNDS
    for (; d + LANES <= half; d += LANES) {
      const vec first = widened(a + d), second = widened(b + d), cosine = vector(c + d), sine = vector(s + d);
      put(first * cosine - second * sine, o + d);
      put(second * cosine + first * sine, o + half + d);
    }
#endif
    for (long e = d; e < half; e++) o[e] = store(load(a[e]) * c[e] - load(b[e]) * s[e]);
    for (long e = d; e < half; e++) o[half + e] = store(load(b[e]) * c[e] + load(a[e]) * s[e]);
  }
  memset(out + count * t->width, 0, (with_zeros - count) * t->width * sizeof(num));
}

/* A gradient (fp32) of a turned row, turned back. */
static void turned_back(const task *t, const float *x, long token, num *out) {
  long half = t->width / 2;
  if (!t->cos) {
    for (long d = 0; d < t->width; d++) out[d] = store(x[d]);
    return;
  }
  const float *c = t->cos + token * half, *s = t->sin + token * half;
  long d = 0;
#ifdef ROUNDS
  for (; d + LANES <= half; d += LANES) {
    const vec first = vector(x + d), second = vector(x + half + d), cosine = vector(c + d), sine = vector(s + d);
    put(first * cosine + second * sine, out + d);
    put(second * cosine - first * sine, out + half + d);
  }
#endif
  for (long e = d; e < half; e++) out[e] = store(x[e] * c[e] + x[half + e] * s[e]);
  for (long e = d; e < half; e++) out[half + e] = store(x[half + e] * c[e] - x[e] * s[e]);
}

/* -infinity where one doesn't see the other: outside first … end, or in another document. s begins at `at`. */
static void hide(const task *t, float *s, long at, long width, long first, long end, const int64_t *documents, long own) {
  for (long j = 0; j < first - at && j < width; j++) s[j] = -INFINITY;
  for (long j = end > at ? end - at : 0; j < width; j++) s[j] = -INFINITY;
  if (documents) {
    int64_t mine = documents[own];
    long last = at + width < t->tokens ? width : t->tokens - at;
    for (long j = 0; j < last; j++) s[j] = documents[at + j] == mine ? s[j] : -INFINITY;
  }
}

/* So many columns as whole panels, or as many as there are. */
INLINE long panels(long wanted, long there) { return UP(wanted, PANEL) < there ? UP(wanted, PANEL) : there; }

INLINE float power(float x) {
  float e = exponential(x);
  return x < -86.0f ? 0.0f : e;
}

/* From scores of one query, what they count: exp(score scale - shift) as products take it, and their sum. */
INLINE float weigh(const float *scores, long width, float scale, float shift, num *out) {
  vec added = {0.0f};
  for (long j = 0; j < width; j += LANES) {
#ifdef ROUNDS
    const vec e = power_of_two(vector(scores + j) * (scale * LOG2E) - shift * LOG2E);
    put(e, out + j);
#else
    vec e;
    for (long l = 0; l < LANES; l++) e[l] = power(scores[j + l] * scale - shift);
    for (long l = 0; l < LANES; l++) out[j + l] = store(e[l]);
#endif
    added += e;
  }
  return total_of(added);
}

/* From scores of one key and ∂P: P, for which `base` has each query's log-sum, and dS, for which `mean` has the rest. */
INLINE void weigh_back(const float *scores, const float *back, const float *base, const float *mean, float scale, long width,
                       num *p, num *ds) {
#ifdef ROUNDS
  for (long j = 0; j < width; j += LANES) {
    const vec e = power_of_two((vector(scores + j) * scale - vector(base + j)) * LOG2E);
    put(e, p + j);
    put(e * ((vector(back + j) - vector(mean + j)) * scale), ds + j);
  }
#else
  for (long j = 0; j < width; j++) {
    float e = power(scores[j] * scale - base[j]);
    p[j] = store(e);
    ds[j] = store(e * (back[j] - mean[j]) * scale);
  }
#endif
}

static int forward_head(const task *t, long row, long head, num *y, float *lse) {
  const long T = t->tokens, D = t->width, wide = UP(D, LANES), padded = UP(T, LANES);
  const float scale = 1.0f / sqrtf((float)D);
  const int64_t *documents = t->documents ? t->documents + row * T : 0;
  const long kv_head = head / (t->heads / t->kv_heads);
  char *memory = scratch(4 * (padded * (D / PAIR) + packed(padded, D) + BLOCK * (KEYS + wide)) +
                         sizeof(num) * (padded * D + BLOCK * (KEYS + D)) + 8 * 64);
  if (!memory) return 1;
  word *keys = (word *)memory, *values = keys + padded * (D / PAIR);
  float *s = (float *)(values + packed(padded, D)), *sum = s + BLOCK * KEYS;
  num *p = (num *)(sum + BLOCK * wide), *q = p + BLOCK * KEYS, *k = q + BLOCK * D;
  turned(t, head_of(t, K, row, kv_head), t->stride[K], 0, T, padded, k);
  pack_transposed(k, D, padded, D, keys);
  pack_rows(head_of(t, V, row, kv_head), t->stride[V], T, D, values);
  for (long q0 = 0; q0 < T; q0 += BLOCK) {
    const long rows = T - q0 < BLOCK ? T - q0 : BLOCK, last = q0 + rows - 1;
    const long low = first_key(t, q0) / PANEL * PANEL, high = end_of_keys(t, last);
    float most[BLOCK], total[BLOCK];
    turned(t, head_of(t, Q, row, head), t->stride[Q], q0, rows, rows, q);
    for (long i = 0; i < rows; i++) most[i] = -INFINITY, total[i] = 0.0f;
    for (long k0 = low; k0 < high; k0 += KEYS) {
      const long width = panels(high - k0 < KEYS ? high - k0 : KEYS, padded - k0);
      for (long j = 0; j < width; j += PANEL)
        panel(rows, D, q, D, keys + (k0 + j) * (D / PAIR), width_of(padded, k0 + j), s + j, KEYS, 0);
      for (long i = 0; i < rows; i++) {
        float *scores = s + i * KEYS, largest = most[i];
        hide(t, scores, k0, width, first_key(t, q0 + i), end_of_keys(t, q0 + i), documents, q0 + i);
#pragma omp simd reduction(max : largest)
        for (long j = 0; j < width; j++) largest = scores[j] > largest ? scores[j] : largest;
        const float shift = largest == -INFINITY ? 0.0f : largest * scale;
        const float added = weigh(scores, width, scale, shift, p + i * KEYS);
        const float before = k0 == low ? 0.0f : power(most[i] * scale - shift);
        total[i] = total[i] * before + added;
        most[i] = largest;
        if (k0 != low)
          for (long d = 0; d < wide; d++) sum[i * wide + d] *= before;
      }
      const long own = UP((T - k0 < width ? T - k0 : width), PAIR);
      for (long d = 0; d < D; d += PANEL)
        panel(rows, own, p, KEYS, values + UP(T, PAIR) / PAIR * d + k0 / PAIR * width_of(D, d), width_of(D, d), sum + d,
              wide, k0 != low);
    }
    for (long i = 0; i < rows; i++) {
      num *out = y + ((row * T + q0 + i) * t->heads + head) * D;
      const float one = 1.0f / total[i];
      for (long d = 0; d < D; d++) out[d] = store(sum[i * wide + d] * one);
      lse[(row * t->heads + head) * T + q0 + i] = most[i] * scale + logf(total[i]);
    }
  }
  return 0;
}

/* All query heads of one key head. With S = q kᵀ / √D, P = exp(S - lse), dP = ∂y vᵀ and dS = P ⊙ (dP - rowsum(∂y ⊙ y)):
   ∂v = Pᵀ ∂y, ∂k = dSᵀ q / √D, ∂q = dS k / √D. Pᵀ and dSᵀ are what is worked on, keys by queries. */
static int backward_head(const task *t, long row, long kv_head, const num *y, const float *lse, const num *dy) {
  const long T = t->tokens, D = t->width, wide = UP(D, LANES), padded = UP(T, LANES), H = t->heads;
  const long deep = UP(T, 32); /* what keys by columns take a row */
  const float scale = 1.0f / sqrtf((float)D);
  const int64_t *documents = t->documents ? t->documents + row * T : 0;
  const long group = H / t->kv_heads, rows_of_y = H * D, inner = UP(T, PAIR) / PAIR;
  const num *value = head_of(t, V, row, kv_head);
  const long sizes[] = {
      /* keys by rows and by columns, queries */ padded * D * sizeof(num), D * deep * sizeof(num), padded * D * sizeof(num),
      /* queries and ∂y, transposed and by rows */ 4 * padded * (D / PAIR), 4 * padded * (D / PAIR),
      4 * packed(T, D), 4 * packed(T, D),
      /* ∂k, ∂v, ∂qᵀ */ 4 * T * wide, 4 * T * wide, 4 * D * padded,
      /* S and dP, P and dS, dS packed */ 4 * BLOCK * QUERIES, 4 * BLOCK * QUERIES, BLOCK * QUERIES * sizeof(num),
      BLOCK * QUERIES * sizeof(num), 4 * BLOCK * QUERIES,
      /* lse and rowsum(∂y ⊙ y), a row of ∂q */ 4 * padded, 4 * padded, 4 * D * LANES};
  enum { PARTS = sizeof(sizes) / sizeof(*sizes) };
  char *part[PARTS];
  size_t all = 0;
  for (int i = 0; i < PARTS; i++) all += UP(sizes[i], 64);
  if (!(part[0] = scratch(all))) return 1;
  for (int i = 1; i < PARTS; i++) part[i] = part[i - 1] + UP(sizes[i - 1], 64);
  num *k = (num *)part[0], *kt = (num *)part[1], *q = (num *)part[2], *p = (num *)part[12], *ds = (num *)part[13];
  word *qt = (word *)part[3], *dyt = (word *)part[4], *qr = (word *)part[5], *dyr = (word *)part[6], *dsr = (word *)part[14];
  float *dk = (float *)part[7], *dv = (float *)part[8], *dqt = (float *)part[9], *s = (float *)part[10];
  float *dp = (float *)part[11], *base = (float *)part[15], *mean = (float *)part[16], *dq = (float *)part[17];

  turned(t, head_of(t, K, row, kv_head), t->stride[K], 0, T, padded, k);
#if PAIR == 2
  turn(k, D, padded, D, kt, deep);
#else
  for (long i = 0; i < padded; i += LANES)
    for (long d = 0; d < D; d++)
      for (long l = 0; l < LANES; l++) kt[d * deep + i + l] = k[(i + l) * D + d];
#endif
  memset(dk, 0, sizes[7]);
  memset(dv, 0, sizes[8]);
  for (long head = kv_head * group; head < (kv_head + 1) * group; head++) {
    const num *dy_head = dy + (row * T * H + head) * D, *y_head = y + (row * T * H + head) * D;
    turned(t, head_of(t, Q, row, head), t->stride[Q], 0, T, padded, q);
    pack_transposed(q, D, padded, D, qt);
    pack_rows(q, D, T, D, qr);
    pack_transposed(dy_head, rows_of_y, T, D, dyt);
    pack_rows(dy_head, rows_of_y, T, D, dyr);
    for (long i = 0; i < padded; i++) base[i] = mean[i] = 0.0f;
    for (long i = 0; i < T; i++) {
      vec sum = {0.0f};
      for (long d = 0; d < D; d++) dq[d] = load(dy_head[i * rows_of_y + d]) * load(y_head[i * rows_of_y + d]);
      for (long d = D; d < wide; d++) dq[d] = 0.0f;
      for (long d = 0; d < wide; d += LANES) sum += vector(dq + d);
      mean[i] = total_of(sum);
      base[i] = lse[(row * H + head) * T + i];
    }
    memset(dqt, 0, sizes[9]);
    for (long k0 = 0; k0 < T; k0 += BLOCK) {
      const long rows = T - k0 < BLOCK ? T - k0 : BLOCK;
      const long low = first_query(t, k0) / PANEL * PANEL, high = end_of_queries(t, k0 + rows - 1);
      for (long q0 = low; q0 < high; q0 += QUERIES) {
        const long width = panels(high - q0 < QUERIES ? high - q0 : QUERIES, padded - q0);
        for (long j = 0; j < width; j += PANEL) {
          const long own = width_of(padded, q0 + j);
          panel(rows, D, k + k0 * D, D, qt + (q0 + j) * (D / PAIR), own, s + j, QUERIES, 0);
          panel(rows, D, value + k0 * t->stride[V], t->stride[V], dyt + (q0 + j) * (D / PAIR), own, dp + j, QUERIES, 0);
        }
        for (long i = 0; i < rows; i++) {
          float *scores = s + i * QUERIES;
          hide(t, scores, q0, width, first_query(t, k0 + i), end_of_queries(t, k0 + i), documents, k0 + i);
          weigh_back(scores, dp + i * QUERIES, base + q0, mean + q0, scale, width, p + i * QUERIES, ds + i * QUERIES);
        }
        const long own = UP(T - q0 < width ? T - q0 : width, PAIR);
        for (long d = 0; d < D; d += PANEL) {
          const long at = inner * d + q0 / PAIR * width_of(D, d), columns = width_of(D, d);
          panel(rows, own, p, QUERIES, dyr + at, columns, dv + k0 * wide + d, wide, 1);
          panel(rows, own, ds, QUERIES, qr + at, columns, dk + k0 * wide + d, wide, 1);
        }
        pack_rows(ds, QUERIES, rows, width, dsr);
        for (long j = 0; j < width; j += PANEL)
          panel(D, UP(rows, PAIR), kt + k0, deep, dsr + UP(rows, PAIR) / PAIR * j, width_of(width, j), dqt + q0 + j, padded, 1);
      }
    }
    for (long i = 0; i < T; i += LANES) {
      long d = 0;
#if PAIR == 2
      for (; d + 16 <= D; d += 16) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++) v[r] = _mm512_loadu_si512(dqt + (d + r) * padded + i);
        turn_words(v);
#pragma GCC unroll 16
        for (int l = 0; l < 16; l++) _mm512_storeu_si512(dq + l * D + d, v[l]);
      }
#endif
      for (; d < D; d++)
        for (long l = 0; l < LANES; l++) dq[l * D + d] = dqt[d * padded + i + l];
      for (long l = 0; l < LANES && i + l < T; l++) turned_back(t, dq + l * D, i + l, gradient_of(t, Q, row, head, i + l));
    }
  }
  for (long i = 0; i < T; i++) {
    num *out_v = gradient_of(t, V, row, kv_head, i);
    turned_back(t, dk + i * wide, i, gradient_of(t, K, row, kv_head, i));
    for (long d = 0; d < D; d++) out_v[d] = store(dv[i * wide + d]);
  }
  return 0;
}

/* Where there are rows enough, a thread takes those whose tokens it has in its own cache from the product before: the first
   thread the first ones. Else every head goes to whoever is free. */
static void share_out(const task *t, long heads) {
  const int own = t->rows >= 4 * t->threads;
  omp_set_schedule(own ? omp_sched_static : omp_sched_dynamic, own ? (t->rows + t->threads - 1) / t->threads * heads : 1);
}

/* Both give the number of heads that found no memory. */
int forward(const task *t, num *y, float *lse) {
  int failed = 0;
  const long jobs = t->rows * t->heads;
  share_out(t, t->heads);
#pragma omp parallel num_threads(t->threads) reduction(+ : failed) if (t->threads > 1)
  {
    begin_products();
#pragma omp for schedule(runtime) nowait
    for (long i = 0; i < jobs; i++) failed += forward_head(t, i / t->heads, i % t->heads, y, lse);
    end_products();
  }
  return failed;
}

int backward(const task *t, const num *y, const float *lse, const num *dy) {
  int failed = 0;
  const long jobs = t->rows * t->kv_heads;
  share_out(t, t->kv_heads);
#pragma omp parallel num_threads(t->threads) reduction(+ : failed) if (t->threads > 1)
  {
    begin_products();
#pragma omp for schedule(runtime) nowait
    for (long i = 0; i < jobs; i++) failed += backward_head(t, i / t->kv_heads, i % t->kv_heads, y, lse, dy);
    end_products();
  }
  return failed;
}
