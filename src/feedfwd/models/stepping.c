/* A vector times a matrix, y = b + x W: W is (inputs, outputs), row by row, y is (outputs).

   Nothing but a walk through W, which the memory should pace. Each thread walks down a band of columns that it keeps
   the sums of in its first cache, four rows at a time. Sums are taken in one order whatever the number of threads. */

#include <string.h>

static void band(const float *restrict x, const float *restrict w, const float *restrict b, float *restrict y,
                 long inputs, long outputs, long first, long last) {
    long k = 0;
    if (b) memcpy(y + first, b + first, (last - first) * sizeof *y);
    else memset(y + first, 0, (last - first) * sizeof *y);
    for (; k + 4 <= inputs; k += 4) {
        const float *r = w + k * outputs, *s = r + outputs, *t = s + outputs, *u = t + outputs;
        const float p = x[k], q = x[k + 1], m = x[k + 2], n = x[k + 3];
#pragma omp simd
        for (long j = first; j < last; j++) y[j] += (p * r[j] + q * s[j]) + (m * t[j] + n * u[j]);
    }
    for (; k < inputs; k++)
        for (long j = first; j < last; j++) y[j] += x[k] * w[k * outputs + j];
}

void product(const float *x, const float *w, const float *b, float *y, long inputs, long outputs, int threads) {
    const long lines = (outputs + 15) / 16; /* of 64 bytes, none of which two threads write to */
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int i = 0; i < threads; i++) {
        const long first = 16 * (lines * i / threads), end = 16 * (lines * (i + 1) / threads);
        band(x, w, b, y, inputs, outputs, first, end < outputs ? end : outputs);
    }
}
