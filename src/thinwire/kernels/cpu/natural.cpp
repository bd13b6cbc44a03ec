// Signs and exponents: kernels/coarse.py. A payload is n exponents, a byte each, and n bits, 1 where a value is below zero.
#include "codes.h"

namespace thinwire {
namespace {

constexpr uint32_t MANTISSA = 0x007fffffu, LAST = 254, LOST = 255;  // of what is not finite

// A lane: the exponent, and one more where the draw is less than the mantissa's fraction.
INLINE void exponents(const float* RESTRICT x, const float* RESTRICT noise, int64_t n, uint8_t* RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t size = bits_of(x[i]) & ~SIGN;
        const float fraction = static_cast<float>(static_cast<int32_t>(size & MANTISSA)) * 0x1p-23f;
        const uint32_t power = (size >> 23) + (noise[i] < fraction ? 1 : 0), most = power > LAST ? LAST : power;
        out[i] = static_cast<uint8_t>(size >= INFINITE ? LOST : most);
    }
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// x (n,) of a kind -> payload; to nearest, or at random.
EXPORT void natural_encode(const void* x, int kind, int64_t n, int lots, uint32_t key0, uint32_t key1, uint8_t* payload, int threads) {
    given_as(kind, x, [&](const auto* from) {
        in_threads((n + LANE - 1) / LANE, n, threads, [=](int64_t begin, int64_t end) {
            alignas(64) float room[LANE], noise[LANE];
            if (!lots) std::fill(noise, noise + LANE, 0.5f);
            for (int64_t at = begin * LANE; at < std::min(end * LANE, n); at += LANE) {
                const int64_t m = std::min(LANE, n - at);
                const float* own = widened(from + at, m, room);
                if (lots) noise_of(at, m, key0, key1, noise);
                if (m == LANE)
                    exponents(own, noise, LANE, payload + at);
                else
                    exponents(own, noise, m, payload + at);
                bits_below_zero(own, m, payload + n + at / 8);
            }
        });
    });
}

// payload -> out (n,), or added to it.
EXPORT void natural_decode(const uint8_t* payload, int64_t n, int add, float* out, int threads) {
    const bool past = !add && goes_past(out, n);
    in_threads((n + LANE - 1) / LANE, n, threads, [=](int64_t begin, int64_t end) {
        alignas(64) float lane[LANE];
        for (int64_t at = begin * LANE; at < std::min(end * LANE, n); at += LANE) {
            const int64_t m = std::min(LANE, n - at);
            const uint8_t *codes = payload + at, *bits = payload + n + at / 8;
            for (int64_t i = 0; i < m; ++i) lane[i] = of_bits(codes[i] == LOST ? QUIET_NAN : static_cast<uint32_t>(codes[i]) << 23);
            for (int64_t i = 0; i < m; i += EIGHT) turn_by(bits[i / 8], lane + i);
            put(lane, m, add, past, out + at);
        }
    });
}
