// Scalar quantisation on a grid around zero, a step a block: reference.grid_encode and its relatives.
//
// A payload is m steps (float32), then n codes of `bits` bits, the first in the lowest bits. Blocks end on whole bytes (or there is one).
#include "codes.h"

namespace thinwire {
namespace {

struct Grid {
    int bits;
    float top, last;  // the level of zero, the highest code
    Grid(int bits, bool rise) : bits(bits) {
        const int count = (1 << bits) - (rise ? 0 : 1);
        last = static_cast<float>(count - 1);
        top = last / 2;
    }
    int64_t nbytes(int64_t n) const { return (n * bits + 7) / 8; }
    uint8_t zero() const { return static_cast<uint8_t>(bits_of(top + MAGIC)); }
};

constexpr float SHARES = 65536 - 0x1p-6f;  // of a step: so little below 2^16 that no rounding leads beyond the grid, and nothing need be cut

struct Lots {
    uint32_t key0, key1;
};

// A step, and what to multiply by in place of dividing: x · lift · inverse. Tiny steps have no inverse in float32 but that of their lift.
struct Step {
    float step, lift, inverse;
    bool usable;
};
INLINE Step of_step(float step) {
    if (!(step > 0) || bits_of(step) >= INFINITE) return {step, 1, 0, false};
    const float lift = step < 0x1p-100f ? 0x1p64f : 1.0f;
    return {step, lift, 1.0f / (step * lift), true};
}
INLINE Step step_of(uint32_t absmax, const Grid& grid) {
    return of_step(absmax >= INFINITE ? of_bits(QUIET_NAN) : of_bits(absmax) / grid.top);
}

// FREE: steps are not of the largest magnitude, so values may lie beyond the grid. LEFT: what the codes leave unsaid of x.
template <bool LOTS, bool LIFT, bool FREE, bool LEFT, typename Kept>
INLINE void codes_loop(const float* RESTRICT x, int64_t n, const Step& step, const Grid& grid, const Half* RESTRICT halves,
                       uint8_t* RESTRICT codes, Kept* RESTRICT left) {
    const float lift = step.lift, size = step.step, top = grid.top;
    if (LOTS) {
        const float inverse = step.inverse * SHARES, zero = top * 65536 + 0.5f, last = grid.last * 65536;
        for (int64_t i = 0; i < n; ++i) {
            float v = (LIFT ? x[i] * lift : x[i]) * inverse + zero;
            if (FREE || LIFT) {
                v = v > 0 ? v : 0;
                v = v < last ? v : last;
            }
            const int32_t code = (static_cast<int32_t>(v) + halves[i]) >> 16;
            codes[i] = static_cast<uint8_t>(code);
            if (LEFT) left[i] = as_kept<true>(x[i] - (static_cast<float>(code) - top) * size, left);
        }
    } else {
        const float inverse = step.inverse, last = grid.last;
        for (int64_t i = 0; i < n; ++i) {
            float v = (LIFT ? x[i] * lift : x[i]) * inverse + top;
            if (FREE || LIFT) {  // (a step below the normal numbers is coarse)
                v = v > 0 ? v : 0;
                v = v < last ? v : last;
            }
            const float rounded = v + MAGIC;
            codes[i] = static_cast<uint8_t>(bits_of(rounded));
            if (LEFT) left[i] = as_kept<true>(x[i] - ((rounded - MAGIC) - top) * size, left);
        }
    }
}

#if defined(__AVX512F__)
// codes_loop to nearest of a whole lane whose rest is kept as bfloat16: that goes from registers past the caches.
INLINE void codes_past(const float* x, const Step& step, const Grid& grid, uint8_t* codes, Brief* left) {
    alignas(64) static constexpr Brief UPPER[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i upper = _mm512_load_si512(UPPER), half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1);
    const __m512 inverse = _mm512_set1_ps(step.inverse), size = _mm512_set1_ps(step.step), top = _mm512_set1_ps(grid.top);
    const __m512 magic = _mm512_set1_ps(MAGIC);
    for (int64_t i = 0; i < LANE; i += 32) {
        __m512i rest[2];  // as `as_kept` rounds, in the upper halves
        for (int k = 0; k < 2; ++k) {
            const __m512 y = _mm512_load_ps(x + i + 16 * k), rounded = _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(y, inverse), top), magic);
            const __m512 said = _mm512_mul_ps(_mm512_sub_ps(_mm512_sub_ps(rounded, magic), top), size);
            const __m512i bits = _mm512_castps_si512(_mm512_sub_ps(y, said));
            rest[k] = _mm512_add_epi32(_mm512_add_epi32(bits, half), _mm512_and_si512(_mm512_srli_epi32(bits, 16), one));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i + 16 * k), _mm512_cvtepi32_epi8(_mm512_castps_si512(rounded)));
        }
        _mm512_stream_si512(reinterpret_cast<__m512i*>(left + i), _mm512_permutex2var_epi16(rest[0], upper, rest[1]));
    }
}
#endif

// At most LANE codes; `first` is the first value's place in the span, which its lot goes by.
template <bool LOTS, bool FREE, bool LEFT, typename Kept>
INLINE void codes_of(const float* x, int64_t n, const Step& step, const Grid& grid, int64_t first, Lots lots, uint8_t* codes, Kept* left) {
    if (!step.usable) {
        std::memset(codes, grid.zero(), n);
        if (LEFT)
            for (int64_t i = 0; i < n; ++i) left[i] = as_kept<false>(x[i] - (static_cast<float>(grid.zero()) - grid.top) * step.step, left);
        return;
    }
    alignas(64) uint32_t drawn[LANE / 2 + 1];
    const Half* halves = reinterpret_cast<const Half*>(drawn) + (first & 1);
    if (LOTS) {  // value i takes a half of draw i / 2, the lower one where i is even
        const auto begin = static_cast<uint32_t>(first >> 1);
        const int64_t count = ((first & 1) + n + 1) / 2;
        for (int64_t i = 0; i < count; ++i) drawn[i] = draw(begin + static_cast<uint32_t>(i), lots.key0, lots.key1);
    }
    if (step.lift == 1)
        codes_loop<LOTS, false, FREE, LEFT>(x, n, step, grid, halves, codes, left);
    else
        codes_loop<LOTS, true, FREE, LEFT>(x, n, step, grid, halves, codes, left);
}

template <bool ADD>
INLINE void values_of(const uint8_t* RESTRICT codes, int64_t n, float step, float top, float* RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) {
        const float value = (static_cast<float>(codes[i]) - top) * step;
        out[i] = ADD ? out[i] + value : value;
    }
}

// A lane of a block, `m` values of it: codes, packed into `out`; what they leave unsaid into `left`. Either goes past the caches if it may.
template <bool LOTS, bool FREE, bool LEFT, typename Kept = float>
INLINE void lane_encode(const float* x, int64_t m, const Step& step, const Grid& grid, int64_t first, Lots lots, uint8_t* out, bool past,
                        Kept* left = nullptr, bool left_past = false) {
    alignas(64) uint8_t buffer[LANE], bits[LANE];
    past = past && m == LANE && grid.bits % 2 == 0;  // whole lines
    left_past = left_past && m == LANE;
    uint8_t* codes = grid.bits == 8 && !past ? out : buffer;
    if (!LEFT || !left_past) {
        codes_of<LOTS, FREE, LEFT>(x, m, step, grid, first, lots, codes, left);
#if defined(__AVX512F__)
    } else if (!LOTS && sizeof(Kept) == sizeof(Brief) && step.usable && step.lift == 1) {
        codes_past(x, step, grid, codes, reinterpret_cast<Brief*>(left));
#endif
    } else {
        alignas(64) Kept rest[LANE];
        codes_of<LOTS, FREE, LEFT>(x, LANE, step, grid, first, lots, codes, rest);
        streamed(rest, left, sizeof(rest));
    }
    if (grid.bits == 8) {
        if (past) streamed(buffer, out, LANE);
        return;
    }
    if (m % 8) std::memset(buffer + m, 0, 8 - m % 8);
    packed(buffer, m, grid.bits, past ? bits : out);
    if (past) streamed(bits, out, LANE / 8 * grid.bits);
}

template <bool LOTS, bool FREE, typename In>
INLINE void block_encode(const In* x, int64_t n, const Step& step, const Grid& grid, int64_t first, Lots lots, uint8_t* out, bool past) {
    alignas(64) float room[NARROW<In> ? LANE : 1];
    for (int64_t at = 0; at < n; at += LANE) {
        if (n - at >= LANE)
            lane_encode<LOTS, FREE, false>(widened(x + at, LANE, room), LANE, step, grid, first + at, lots, out + at * grid.bits / 8, past);
        else
            lane_encode<LOTS, FREE, false>(widened(x + at, n - at, room), n - at, step, grid, first + at, lots, out + at * grid.bits / 8, past);
    }
}

INLINE uint32_t block_largest(const float* x, int64_t n) { return n == LANE ? largest(x, LANE) : largest(x, n); }
template <typename In> INLINE uint32_t block_largest(const In* x, int64_t n) {
    int16_t most = 0;  // the order of magnitudes is that of their bits, before they are widened, too
    const auto each = [&](int64_t i) {
        const auto size = static_cast<int16_t>(x[i].bits & 0x7fff);
        most = size > most ? size : most;
    };
    if (n == LANE)
        for (int64_t i = 0; i < LANE; ++i) each(i);
    else
        for (int64_t i = 0; i < n; ++i) each(i);
    return bits_of(wide(In{static_cast<uint16_t>(most)}));
}

// The next block's step is found before this block's codes, so that its divisions do not keep them waiting.
template <bool LOTS, bool FREE, typename In>
void encode(const In* x, const float* steps, int64_t n, int64_t block, const Grid& grid, Lots lots, uint8_t* payload, int threads) {
    const int64_t blocks = (n + block - 1) / block;
    uint8_t* codes = payload + 4 * blocks;
    const bool past = block % LANE == 0 && goes_past(codes, n);
    in_threads(blocks, n, threads, [=, &grid](int64_t begin, int64_t end) {
        const auto step_at = [=, &grid](int64_t b) {
            if (FREE) return of_step(steps[b]);
            const Step step = step_of(block_largest(x + b * block, std::min(block, n - b * block)), grid);
            prefetched(x + b * block, block);
            return step;
        };
        Step step = step_at(begin);
        for (int64_t b = begin; b < end; ++b) {
            const Step next = b + 1 < end ? step_at(b + 1) : step;
            const int64_t at = b * block, m = std::min(block, n - at);
            store(payload + 4 * b, step.step);
            block_encode<LOTS, FREE>(x + at, m, step, grid, at, lots, codes + at * grid.bits / 8, past);
            step = next;
        }
    });
}

// A residual as it was and as it will be: of a lane, y is its sum with x, and the codes are written with what they leave unsaid.
template <typename Kept> struct Residual {
    const Kept* before;
    Kept* left;
    bool past, past_codes;
    Residual(const Kept* before, Kept* left, int64_t n, int64_t block, const uint8_t* codes)
        : before(before), left(left), past(block % LANE == 0 && goes_past(left, n, LATER)), past_codes(past && goes_past(codes, n)) {}

    template <typename In> INLINE uint32_t sum(const In* x, int64_t at, int64_t m, float decay, float* to) const {
        return summed(x + at, before + at, decay, m, to);
    }
    // Two floats read and one written are better left to the processor's own prefetcher.
    template <typename In> INLINE void soon(const In* x, int64_t at, int64_t m) const {
        if (sizeof(Kept) < sizeof(float)) prefetched(x + at, m);
    }
    INLINE void soon(int64_t at, int64_t m) const {
        if (sizeof(Kept) < sizeof(float)) prefetched(before + at, m);
    }
    template <bool LOTS> INLINE bool lane(const float* y, int64_t m, const Step& step, const Grid& grid, int64_t at, Lots lots, uint8_t* out) const {
        const bool whole = m == LANE;
        lane_encode<LOTS, false, true>(y, m, step, grid, at, lots, out, whole && past_codes, left + at, whole && past);
        return kept_finite(step.step, 1.0f, left + at, m);
    }
};
template <> struct Residual<Eighths> {
    Eighths before, left;
    bool past_codes;
    Residual(Eighths before, Eighths left, int64_t n, int64_t block, const uint8_t* codes)
        : before(before), left(left), past_codes(block % LANE == 0 && goes_past(codes, n)) {}

    template <typename In> INLINE uint32_t sum(const In* x, int64_t at, int64_t m, float decay, float* to) const {
        alignas(64) float was[LANE];
        before.values(at, m, was);
        return summed(x + at, was, decay, m, to);
    }
    template <typename In> INLINE void soon(const In* x, int64_t at, int64_t m) const { prefetched(x + at, m); }
    INLINE void soon(int64_t at, int64_t m) const { prefetched(before.codes + at, m); }
    template <bool LOTS> INLINE bool lane(const float* y, int64_t m, const Step& step, const Grid& grid, int64_t at, Lots lots, uint8_t* out) const {
        alignas(64) float rest[LANE];
        lane_encode<LOTS, false, true>(y, m, step, grid, at, lots, out, m == LANE && past_codes, rest, false);
        left.keep(rest, at, m);
        return kept_finite(step.step, 1.0f, rest, m);
    }
};

// Whether what is left is finite. The next block's y and step are found before this block's codes; y of a long block is found once more.
template <bool LOTS, typename In, typename Kept>
bool encode_left(const In* x, const Residual<Kept>& residual, float decay, int64_t n, int64_t block, const Grid& grid, Lots lots, uint8_t* payload,
                 int threads) {
    const int64_t blocks = (n + block - 1) / block;
    uint8_t* codes = payload + 4 * blocks;
    std::atomic<bool> finite{true};
    in_threads(blocks, n, threads, [=, &grid, &finite](int64_t begin, int64_t end) {
        alignas(64) float y[2][LANE];
        const auto lane_of = [&](int64_t at, int64_t m, float* to) {
            return m == LANE ? residual.sum(x, at, LANE, decay, to) : residual.sum(x, at, m, decay, to);
        };
        const auto step_at = [&](int64_t b, float* to) {
            const int64_t at = b * block, m = std::min(block, n - at);
            residual.soon(x, at, m);
            uint32_t most = lane_of(at, std::min(m, LANE), to);
            residual.soon(at, m);
            for (int64_t i = LANE; i < m; i += LANE) most = std::max(most, lane_of(at + i, std::min(m - i, LANE), to));
            return step_of(most, grid);
        };
        bool all = true;
        Step step = step_at(begin, y[begin & 1]);
        for (int64_t b = begin; b < end; ++b) {
            const Step next = b + 1 < end ? step_at(b + 1, y[(b + 1) & 1]) : step;
            const int64_t at = b * block, m = std::min(block, n - at);
            store(payload + 4 * b, step.step);
            for (int64_t i = 0; i < m; i += LANE) {
                float* own = y[b & 1];
                uint8_t* out = codes + (at + i) * grid.bits / 8;
                const int64_t some = std::min(LANE, m - i);
                if (m > LANE) lane_of(at + i, some, own);
                if (some == LANE)
                    all &= residual.template lane<LOTS>(own, LANE, step, grid, at + i, lots, out);
                else
                    all &= residual.template lane<LOTS>(own, some, step, grid, at + i, lots, out);
            }
            step = next;
        }
        if (!all) finite = false;
    });
    return finite;
}

template <bool ADD, typename Out>
INLINE void block_decode(const uint8_t* codes, int64_t n, float step, const Grid& grid, Out* out) {
    alignas(64) uint8_t buffer[LANE];
    alignas(64) float room[NARROW<Out> ? LANE : 1];
    for (int64_t at = 0; at < n; at += LANE) {
        const int64_t m = std::min(LANE, n - at);
        const uint8_t* own = codes + at;
        if (grid.bits != 8) {
            if (m == LANE)
                unpacked(codes + at * grid.bits / 8, LANE, grid.bits, buffer);
            else
                unpacked(codes + at * grid.bits / 8, m, grid.bits, buffer);
            own = buffer;
        }
        const auto some = [&](int64_t m) {
            if constexpr (NARROW<Out>) {
                values_of<false>(own, m, step, grid.top, room);
                put_narrow<ADD>(room, m, out + at);
            } else
                values_of<ADD>(own, m, step, grid.top, out + at);
        };
        m == LANE ? some(LANE) : some(m);
    }
}

template <bool ADD, typename Out> void decode(const uint8_t* payload, int64_t n, int64_t block, const Grid& grid, Out* out, int threads) {
    const int64_t blocks = (n + block - 1) / block;
    const uint8_t* codes = payload + 4 * blocks;
    const bool past = !ADD && block % LANE == 0 && goes_past(out, n);
    in_threads(blocks, n, threads, [=, &grid](int64_t begin, int64_t end) {
        alignas(64) Out lane[LANE];
        for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * block, m = std::min(block, n - at);
            const float step = load<float>(payload + 4 * b);
            const uint8_t* own = codes + at * grid.bits / 8;
            if (past && m % LANE == 0) {
                for (int64_t i = 0; i < m; i += LANE) {
                    block_decode<false>(own + i * grid.bits / 8, LANE, step, grid, lane);
                    streamed(lane, out + at + i, sizeof(lane));
                }
            } else {
                if (ADD) prefetched(out + at, m);
                block_decode<ADD>(own, m, step, grid, out + at);
            }
        }
    });
}

template <bool LOTS>
void sum_encode(const uint8_t* const* payloads, int count, int64_t n, int64_t block, const Grid& grid, Lots lots, uint8_t* out, int threads) {
    const int64_t blocks = (n + block - 1) / block;
    in_threads(blocks, n, threads, [=, &grid](int64_t begin, int64_t end) {
        std::vector<float> total(std::min(block, n));
        for (int64_t b = begin; b < end; ++b) {
            const int64_t at = b * block, m = std::min(block, n - at), head = 4 * blocks + at * grid.bits / 8;
            block_decode<false>(payloads[0] + head, m, load<float>(payloads[0] + 4 * b), grid, total.data());
            for (int k = 1; k < count; ++k) block_decode<true>(payloads[k] + head, m, load<float>(payloads[k] + 4 * b), grid, total.data());
            const Step step = step_of(block_largest(total.data(), m), grid);
            store(out + 4 * b, step.step);
            block_encode<LOTS, false>(total.data(), m, step, grid, at, lots, out + head, false);
        }
    });
}

}  // namespace
}  // namespace thinwire

using namespace thinwire;

// x (n,), of a kind of `given_as` -> payload. steps: (m,), or null for largest magnitude / top.
EXPORT void grid_encode(const void* values, int kind, const float* steps, int64_t n, int64_t block, int bits, int rise, int lots, uint32_t key0,
                        uint32_t key1, uint8_t* payload, int threads) {
    const Grid grid(bits, rise);
    given_as(kind, values, [&](const auto* x) {
        const Lots drawn{key0, key1};
        if (steps)
            lots ? encode<true, true>(x, steps, n, block, grid, drawn, payload, threads)
                 : encode<false, true>(x, steps, n, block, grid, drawn, payload, threads);
        else
            lots ? encode<true, false>(x, steps, n, block, grid, drawn, payload, threads)
                 : encode<false, false>(x, steps, n, block, grid, drawn, payload, threads);
    });
}

// y = x + decay · before -> payload, and left = y - what it decodes to; whether all of that is finite. left may be before.
// form: of before and left, as in `kept_as`; in eight bits, blocks end where lanes do, or there is one.
EXPORT int grid_encode_left(const void* values, int kind, const void* before, int form, float decay, int64_t n, int64_t block, int bits, int rise,
                            int lots, uint32_t key0, uint32_t key1, uint8_t* payload, void* left, int threads) {
    const Grid grid(bits, rise);
    return given_as(kind, values, [&](const auto* x) {
        return kept_as(form, before, left, n, [&](auto from, auto to) {
            using Kept = std::remove_pointer_t<decltype(to)>;
            const Residual<Kept> residual(from, to, n, block, payload + 4 * ((n + block - 1) / block));
            return lots ? encode_left<true>(x, residual, decay, n, block, grid, {key0, key1}, payload, threads)
                        : encode_left<false>(x, residual, decay, n, block, grid, {key0, key1}, payload, threads);
        });
    });
}

// payload -> out (n,), of a kind of `put_as`, or added to it.
EXPORT void grid_decode(const uint8_t* payload, int64_t n, int64_t block, int bits, int rise, int add, void* to, int kind, int threads) {
    const Grid grid(bits, rise);
    put_as(kind, to, [&](auto* out) {
        add ? decode<true>(payload, n, block, grid, out, threads) : decode<false>(payload, n, block, grid, out, threads);
    });
}

// The payload of the sum of what `count` payloads decode to, added in order.
EXPORT void grid_sum_encode(const uint8_t* const* payloads, int count, int64_t n, int64_t block, int bits, int rise, int lots,
                            uint32_t key0, uint32_t key1, uint8_t* out, int threads) {
    const Grid grid(bits, rise);
    (lots ? sum_encode<true> : sum_encode<false>)(payloads, count, n, block, grid, {key0, key1}, out, threads);
}
