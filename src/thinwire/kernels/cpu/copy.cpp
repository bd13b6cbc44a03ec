// A gradient's copy into its bucket, with a look at its values on the way; a residual's into eight bits, and back. One pass each.
#include "common.h"
namespace thinwire {
namespace {

// out = x · by, and the largest magnitude of it as an integer; in bfloat16 rounded half to even. `out` may be `x`.
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
INLINE uint32_t product(const Brief* x, int64_t n, float by, Brief* out) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; ++i) {
        const Brief y = as_kept<false>(wide(x[i]) * by, out);
        const int32_t size = y & 0x7fff;
        out[i] = y;
        most = size > most ? size : most;
    }
    return static_cast<uint32_t>(most) << 16;
}

template <typename Value> bool scaled_in(const Value* x, int64_t n, float by, Value* out, int threads) {
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

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// out = x · by; whether all of it is finite. brief: both are bfloat16.
EXPORT int scaled(const void* x, int brief, int64_t n, float by, void* out, int threads) {
    if (brief) return scaled_in(static_cast<const Brief*>(x), n, by, static_cast<Brief*>(out), threads);
    return scaled_in(static_cast<const float*>(x), n, by, static_cast<float*>(out), threads);
}

// x (n,) -> a residual in eight bits, and back.
EXPORT void int8_pack(const float* x, int64_t n, uint8_t* out, int threads) {
    const Eighths kept(out, n);
    const int64_t lanes = (n + LANE - 1) / LANE;
    in_threads(lanes, n, threads, [=](int64_t begin, int64_t end) {
        for (int64_t at = begin * LANE; at < std::min(end * LANE, n); at += LANE) kept.keep(x + at, at, std::min(LANE, n - at));
    });
}
EXPORT void int8_unpack(const uint8_t* in, int64_t n, float* out, int threads) {
    const Eighths kept(in, n);
    const int64_t lanes = (n + LANE - 1) / LANE;
    in_threads(lanes, n, threads, [=](int64_t begin, int64_t end) {
        for (int64_t at = begin * LANE; at < std::min(end * LANE, n); at += LANE) kept.values(at, std::min(LANE, n - at), out + at);
    });
}
