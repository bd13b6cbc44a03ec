// Where to cut a block before it is rounded on a grid around zero: kernels/clips.py.
//
// Each candidate's squared error is summed by halves, so in one order on every machine. What is cut off is cut off by all later candidates,
// too, and by more: once that alone is no less than the least error so far, none of them is better.
#include "codes.h"

namespace thinwire {
namespace {

// Of a block over its largest magnitude, `width` values: errors of one candidate, and those of the values beyond its ends.
INLINE void errors_of(const float* RESTRICT unit, int64_t width, float step, float low, float last, float* RESTRICT all, float* RESTRICT cut) {
    const float high = last * step + low;
    for (int64_t i = 0; i < width; ++i) {
        float code = ((unit[i] - low) / step + MAGIC) - MAGIC;
        code = code > 0 ? code : 0;
        code = code < last ? code : last;
        const float error = (code * step + low) - unit[i], square = error * error;
        all[i] = square;
        cut[i] = unit[i] > high || unit[i] < low ? square : 0.0f;
    }
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// x (n,) -> of each block, the fraction of its largest magnitude at which cutting it errs least. Candidates fall: (count,) each.
EXPORT void grid_clips(const float* x, int64_t n, int64_t block, float last, int64_t count, const float* fractions, const float* steps,
                       const float* lows, float* out, int threads) {
    const int64_t blocks = (n + block - 1) / block;
    int64_t width = 1;
    while (width < block) width *= 2;
    in_threads(blocks, n, threads, [=](int64_t begin, int64_t end) {
        alignas(64) float unit[WIDEST], all[WIDEST], cut[WIDEST];
        for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * block, m = std::min(block, n - at);
            const uint32_t most = m == LANE ? largest(x + at, LANE) : largest(x + at, m);
            out[b] = fractions[0];
            if (most == 0 || most >= INFINITE) continue;  // the step is zero, or NaN, whatever the fraction
            const float absmax = of_bits(most);
            for (int64_t i = 0; i < m; ++i) unit[i] = x[at + i] / absmax;
            std::fill(unit + m, unit + block, 0.0f);
            float least = of_bits(INFINITE);
            for (int64_t k = 0; k < count; ++k) {
                if (block == LANE) {
                    errors_of(unit, LANE, steps[k], lows[k], last, all, cut);
                } else {
                    errors_of(unit, block, steps[k], lows[k], last, all, cut);
                    std::fill(all + block, all + width, 0.0f);
                    std::fill(cut + block, cut + width, 0.0f);
                }
                const float error = width == LANE ? folded(all, LANE) : folded(all, width);
                if (error < least) {
                    least = error;
                    out[b] = fractions[k];
                } else if ((width == LANE ? folded(cut, LANE) : folded(cut, width)) >= least) {
                    break;
                }
            }
        }
    });
}
