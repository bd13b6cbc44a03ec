// A gradient's copy into its bucket, with a look at its values on the way: one pass where a product and a search would be two.
#include "common.h"
namespace thinwire {
namespace {

// out = x · by, and the largest magnitude of it as an integer. `out` may be `x`.
INLINE uint32_t product(const float* x, int64_t n, float by, float* out) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float y = x[i] * by;
        const int32_t size = static_cast<int32_t>(bits_of(y) & ~SIGN);
        out[i] = y;
        most = size > most ? size : most;
    }
    return static_cast<uint32_t>(most);
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// out = x · by; whether all of it is finite.
EXPORT int scaled(const float* x, int64_t n, float by, float* out, int threads) {
    std::atomic<bool> finite{true};
    const int64_t lanes = (n + LANE - 1) / LANE;
    in_threads(lanes, n, threads, [&](int64_t begin, int64_t end) {
        uint32_t most = 0;
        for (int64_t at = begin * LANE; at < std::min(end * LANE, n); at += LANE) {
            prefetched(x + at, std::min(LANE, n - at));
            most = std::max(most, product(x + at, std::min(LANE, n - at), by, out + at));
        }
        if (most >= INFINITE) finite = false;
    });
    return finite;
}
