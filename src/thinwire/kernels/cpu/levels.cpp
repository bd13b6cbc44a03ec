// Codes of a fixed table of levels, and a scale a block: kernels/levels.py.
//
// A payload is m scales (float32), then n codes of `bits` bits, the first in the lowest bits. A value over its block's scale lies above so
// many of the `edges`, ascending; that number is its place in the table. Few edges are compared one by one, eight values at a time; of many,
// `bins` has how many lie below all values of the same upper 16 bits, and at most `steps` more are compared.
#include "codes.h"

namespace thinwire {
namespace {

struct Table {
    const float *levels, *edges;  // edges: `count`, and a NaN
    int64_t count;
    const uint8_t *codes, *bins;
    int steps;
    float top;
};

// How many edges are less than each value; or, REACHED, not more.
template <bool REACHED> INLINE void places_of(const float* RESTRICT q, int64_t n, const Table& table, int32_t* RESTRICT places) {
    const float* edges = table.edges;
    int64_t i = 0;
    if (!table.bins)
        for (; i + 2 * EIGHT <= n; i += 2 * EIGHT) {
            const Eight a = eight(q + i), b = eight(q + i + EIGHT);
            Places low{}, high{};
            for (int64_t k = 0; k < table.count; ++k) {
                const Eight edge = Eight{} + edges[k];
                low -= REACHED ? a >= edge : a > edge;
                high -= REACHED ? b >= edge : b > edge;
            }
            *reinterpret_cast<LoosePlaces*>(places + i) = low;
            *reinterpret_cast<LoosePlaces*>(places + i + EIGHT) = high;
        }
    for (; i < n; ++i) {
        int32_t place = table.bins ? table.bins[bits_of(q[i]) >> 16] : 0;
        const int steps = table.bins ? table.steps : static_cast<int>(table.count);
        for (int k = 0; k < steps; ++k) place += REACHED ? q[i] >= edges[place] : q[i] > edges[place];
        places[i] = place;
    }
}

// The same, where one step is enough: no loop in the loop.
template <bool REACHED> INLINE void places_by_bin(const float* RESTRICT q, int64_t n, const Table& table, int32_t* RESTRICT places) {
    for (int64_t i = 0; i < n; ++i) {
        const int32_t place = table.bins[bits_of(q[i]) >> 16];
        places[i] = place + (REACHED ? q[i] >= table.edges[place] : q[i] > table.edges[place]);
    }
}

template <bool LOTS> INLINE void lane_codes(const float* q, int64_t n, const Table& table, int64_t first, uint32_t key0, uint32_t key1, uint8_t* codes) {
    alignas(64) int32_t places[LANE];
    if (table.bins && table.steps == 1)
        places_by_bin<LOTS>(q, n, table, places);
    else
        places_of<LOTS>(q, n, table, places);
    if (LOTS) {
        alignas(64) float noise[LANE], low[LANE], gap[LANE];
        noise_of(first, n, key0, key1, noise);
        for (int64_t i = 0; i < n; ++i) {
            low[i] = table.levels[places[i]];
            gap[i] = table.levels[places[i] + 1];
        }
        for (int64_t i = 0; i < n; ++i) places[i] += noise[i] < (q[i] - low[i]) / (gap[i] - low[i]);
    }
    for (int64_t i = 0; i < n; ++i) codes[i] = table.codes[places[i]];
}

// A float of 8 bits, to nearest, half to even, as torch rounds: |x| is at most the largest. TINY: what is added to a magnitude below the
// smallest normal, so that its lowest bits are those of the result.
template <int MANTISSA, int BIAS> INLINE void lane_floats(const float* RESTRICT q, int64_t n, uint8_t* RESTRICT codes) {
    constexpr int CUT = 23 - MANTISSA;
    constexpr uint32_t SMALLEST = static_cast<uint32_t>(128 - BIAS) << 23, TINY = static_cast<uint32_t>(127 - BIAS + CUT + 1) << 23;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = bits_of(q[i]), size = bits & ~SIGN;
        const uint32_t tiny = bits_of(of_bits(size) + of_bits(TINY)) - TINY;
        const uint32_t normal = (size + (static_cast<uint32_t>(BIAS - 127) << 23) + ((1u << (CUT - 1)) - 1) + (size >> CUT & 1)) >> CUT;
        codes[i] = static_cast<uint8_t>((size < SMALLEST ? tiny : normal) | bits >> 31 << 7);
    }
}

// format: 0 by the table, 1 e4m3, 2 e5m2.
template <bool LOTS, typename In>
void encode(const In* x, int64_t n, int64_t block, int bits, int format, const Table& table, uint32_t key0, uint32_t key1, uint8_t* payload,
            int threads) {
    const int64_t blocks = (n + block - 1) / block, group = group_of(n, block, LANE);
    uint8_t* out = payload + 4 * blocks;
    in_threads((n + group - 1) / group, n, threads, [=, &table](int64_t begin, int64_t end) {
        alignas(64) float room[LANE], q[LANE];
        alignas(64) uint8_t codes[LANE];
        for (int64_t from = begin * group; from < std::min(end * group, n); from += group) {
            const int64_t to = std::min(from + group, n);
            for (int64_t b = from / block; b * block < to; ++b) {
                const uint32_t most = largest_of(x + b * block, std::min(block, n - b * block));
                store(payload + 4 * b, most < INFINITE ? of_bits(most) / table.top : of_bits(QUIET_NAN));
            }
            for (int64_t at = from; at < to; at += LANE) {
                const int64_t m = std::min(LANE, to - at);
                prefetched(x + at, m);
                const float *own = widened(x + at, m, room), top = table.top;
                in_blocks(at, m, block, [&](int64_t i, int64_t last, int64_t b) {
                    const auto scale = load<float>(payload + 4 * b);
                    if (!(scale > 0)) return static_cast<void>(std::fill(q + i, q + last, 0.0f));
                    for (; i < last; ++i) {
                        const float v = own[i] / scale, low = v < -top ? -top : v;
                        q[i] = low > top ? top : low;
                    }
                });
                if (format == 1)
                    lane_floats<3, 7>(q, m, codes);
                else if (format == 2)
                    lane_floats<2, 15>(q, m, codes);
                else if (m == LANE)
                    lane_codes<LOTS>(q, LANE, table, at, key0, key1, codes);
                else
                    lane_codes<LOTS>(q, m, table, at, key0, key1, codes);
                if (bits == 8) {
                    std::memcpy(out + at, codes, m);
                } else {
                    if (m % 8) std::memset(codes + m, 0, 8 - m % 8);
                    packed(codes, m, bits, out + at * bits / 8);
                }
            }
        }
    });
}

}  // namespace
}  // namespace thinwire
using namespace thinwire;

// x (n,) of a kind -> payload. levels, codes: of each place; edges: count and a NaN; bins: (2^16,) or null; format: 0, or a float's.
EXPORT void levels_encode(const void* x, int kind, int64_t n, int64_t block, int bits, int format, float top, const float* levels,
                          const float* edges, int64_t count, const uint8_t* codes, const uint8_t* bins, int steps, int lots, uint32_t key0,
                          uint32_t key1, uint8_t* payload, int threads) {
    const Table table{levels, edges, count, codes, bins, steps, top};
    given_as(kind, x, [&](const auto* from) {
        (lots ? encode<true, std::decay_t<decltype(*from)>> : encode<false, std::decay_t<decltype(*from)>>)(from, n, block, bits, format, table,
                                                                                                           key0, key1, payload, threads);
    });
}

// payload -> out (n,), or added to it: the level of each code, of `values`, times its block's scale.
EXPORT void levels_decode(const uint8_t* payload, int64_t n, int64_t block, int bits, const float* values, int add, float* out, int threads) {
    const int64_t blocks = (n + block - 1) / block;
    const uint8_t* in = payload + 4 * blocks;
    const bool past = !add && goes_past(out, n);
    float pairs[256][2];  // of the two codes in a byte
    if (bits == 4)
        for (int byte = 0; byte < 256; ++byte) {
            pairs[byte][0] = values[byte & 15];
            pairs[byte][1] = values[byte >> 4];
        }
    in_threads((n + LANE - 1) / LANE, n, threads, [=, &pairs](int64_t begin, int64_t end) {
        alignas(64) float lane[LANE + 2];
        alignas(64) uint8_t codes[LANE];
        for (int64_t at = begin * LANE; at < std::min(end * LANE, n); at += LANE) {
            const int64_t m = std::min(LANE, n - at);
            if (bits == 4) {
                const uint8_t* own = in + at / 2;
                for (int64_t i = 0; i < (m + 1) / 2; ++i) std::memcpy(lane + 2 * i, pairs[own[i]], 8);
            } else {
                const uint8_t* own = in + at;
                if (bits < 8) {
                    unpacked(in + at * bits / 8, m, bits, codes);
                    own = codes;
                }
                for (int64_t i = 0; i < m; ++i) lane[i] = values[own[i]];
            }
            in_blocks(at, m, block, [&](int64_t i, int64_t last, int64_t b) {
                const auto scale = load<float>(payload + 4 * b);
                for (; i < last; ++i) lane[i] *= scale;
            });
            put(lane, m, add, past, out + at);
        }
    });
}
