// Which entries are the largest, and where they stand: reference.largest, reference.above, and the codings of what/_places.py.
//
// Sizes are |v| as integers, which ascend as the numbers do; a NaN is above all, and all NaNs are equal. Of equals the first is taken.
#include <limits>

#include "common.h"
namespace thinwire {
namespace {

constexpr int64_t RUN = 1024, SAMPLE = 16384;

// Values of each type as integers: the largest finite one is below TOP, and an octave is a step of its exponent.
template <typename Value> struct Sizes;
template <> struct Sizes<float> {
    static constexpr uint32_t TOP = INFINITE, OCTAVE = 0x00800000;
};
template <> struct Sizes<Bf16> {
    static constexpr uint32_t TOP = 0x7f80, OCTAVE = 0x0080;
};
template <> struct Sizes<Fp16> {
    static constexpr uint32_t TOP = 0x7c00, OCTAVE = 0x0400;
};

INLINE uint32_t plain_size(float x) { return bits_of(x) & ~SIGN; }
template <typename Narrow> INLINE uint32_t plain_size(Narrow x) { return x.bits & 0x7fffu; }
template <typename Value> INLINE uint32_t size_of(Value x) { return std::min(plain_size(x), Sizes<Value>::TOP + 1); }

// Which of 64 values reach a bar, of at least 1: bit i for value i.
#if defined(__AVX512F__)
INLINE uint64_t reach(const float* x, uint32_t bar) {
    const __m512i bars = _mm512_set1_epi32(static_cast<int>(bar)), rest = _mm512_set1_epi32(static_cast<int>(~SIGN));
    uint64_t hit = 0;
    for (int k = 0; k < 4; ++k)
        hit |= static_cast<uint64_t>(_mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_loadu_si512(x + 16 * k), rest), bars)) << 16 * k;
    return hit;
}
template <typename Narrow> INLINE uint64_t reach(const Narrow* x, uint32_t bar) {
    const __m512i bars = _mm512_set1_epi16(static_cast<int16_t>(bar)), rest = _mm512_set1_epi16(0x7fff);
    uint64_t hit = 0;
    for (int k = 0; k < 2; ++k)
        hit |= static_cast<uint64_t>(_mm512_cmpge_epu16_mask(_mm512_and_si512(_mm512_loadu_si512(x + 32 * k), rest), bars)) << 32 * k;
    return hit;
}
#elif defined(__AVX2__)
INLINE uint64_t reach(const float* x, uint32_t bar) {
    const __m256i below = _mm256_set1_epi32(static_cast<int>(bar) - 1), rest = _mm256_set1_epi32(static_cast<int>(~SIGN));
    uint64_t hit = 0;
    for (int k = 0; k < 8; ++k) {
        const __m256i sizes = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * k)), rest);
        const auto eight = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(sizes, below))));
        hit |= static_cast<uint64_t>(eight) << 8 * k;
    }
    return hit;
}
template <typename Narrow> INLINE uint64_t reach(const Narrow* x, uint32_t bar) {
    const __m256i below = _mm256_set1_epi16(static_cast<int16_t>(bar - 1)), rest = _mm256_set1_epi16(0x7fff);
    const auto sixteen = [=](int k) {
        return _mm256_cmpgt_epi16(_mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * k)), rest), below);
    };
    const auto both = [=](int k) {  // packed, the halves of both come in turns
        return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(sixteen(k), sixteen(k + 1)), 0xd8)));
    };
    return both(0) | static_cast<uint64_t>(both(2)) << 32;
}
#else
template <typename Value> INLINE uint64_t reach(const Value* x, uint32_t bar) {
    uint64_t hit = 0;
    for (int i = 0; i < 64; ++i) hit |= static_cast<uint64_t>(plain_size(x[i]) >= bar) << i;
    return hit;
}
#endif

// Of the last n < 64 values.
template <typename Value> INLINE uint64_t reach_few(const Value* x, int64_t n, uint32_t bar) {
    uint64_t hit = 0;
    for (int64_t i = 0; i < n; ++i) hit |= static_cast<uint64_t>(plain_size(x[i]) >= bar) << i;
    return hit;
}

// Entries whose size is at least a bar, in the order of their places.
struct Candidates {
    std::vector<int32_t> place;
    std::vector<uint32_t> size;
    int64_t count = 0;

    void room(int64_t wanted) {
        if (static_cast<int64_t>(place.size()) >= wanted) return;
        place.resize(std::max<size_t>(wanted, place.size() * 2));
        size.resize(place.size());
    }

    // Of x (n,), whose first value stands at `first`, after those that are here. False where there are more than `most` in all: no more are
    // sought then.
    template <typename Value> bool gather(const Value* x, int64_t n, int64_t first, uint32_t bar, int64_t most) {
        uint64_t hits[RUN / 64];
        for (int64_t run = 0; run < n; run += RUN) {
            const int64_t m = std::min(RUN, n - run), words = m / 64;
            int64_t more = 0;
            // First which of 64 values reach the bar, without a branch, then those alone.
            for (int64_t word = 0; word < words; ++word) {
                const Value* own = x + run + 64 * word;
                prefetched(own, 64);
                hits[word] = reach(own, bar);
                more += __builtin_popcountll(hits[word]);
            }
            if (m % 64) {
                hits[words] = reach_few(x + run + 64 * words, m % 64, bar);
                more += __builtin_popcountll(hits[words]);
            }
            if (count + more > most) return false;
            room(count + more);
            int32_t* to = place.data() + count;
            uint32_t* of = size.data() + count;
            for (int64_t word = 0; 64 * word < m; ++word)
                for (uint64_t hit = hits[word]; hit; hit &= hit - 1) {
                    const int64_t at = run + 64 * word + __builtin_ctzll(hit);
                    *to++ = static_cast<int32_t>(first + at);
                    *of++ = size_of(x[at]);
                }
            count += more;
        }
        return true;
    }
};

INLINE int64_t at_least(const uint32_t* sizes, int64_t n, uint32_t bar) {
    uint32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += sizes[i] >= bar;
    return count;
}

// The k-th largest of a few, at once: the smallest of those that fewer than k surpass.
constexpr int64_t FEW = 32;
template <int64_t WIDTH> INLINE uint32_t kth_within(const uint32_t* sizes, int64_t n, int64_t k) {
    int32_t all[WIDTH] = {}, more[WIDTH] = {};
    std::memcpy(all, sizes, 4 * n);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < WIDTH; ++i) more[i] += all[j] > all[i];
    int32_t least = std::numeric_limits<int32_t>::max();
    for (int64_t i = 0; i < WIDTH; ++i) least = more[i] < k && all[i] < least ? all[i] : least;  // what fills up is surpassed by all
    return static_cast<uint32_t>(least);
}
INLINE uint32_t kth_of_few(const uint32_t* sizes, int64_t n, int64_t k) {
    return n <= 8 ? kth_within<8>(sizes, n, k) : n <= 16 ? kth_within<16>(sizes, n, k) : kth_within<FEW>(sizes, n, k);
}

// A bar that k of the sizes reach, or the k-th largest size itself where its equals make that impossible; all are at least `low`.
uint32_t kth(const Candidates& found, int64_t k, uint32_t low) {
    const uint32_t* sizes = found.size.data();
    if (found.count == k) return *std::min_element(sizes, sizes + k);
    if (found.count <= FEW) return kth_of_few(sizes, found.count, k);
    uint32_t high = low;  // reached by none; `low` is reached by k or more
    for (int64_t i = 0; i < found.count; ++i) high = std::max(high, sizes[i]);
    ++high;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        const int64_t count = at_least(sizes, found.count, middle);
        if (count == k) return middle;
        (count > k ? low : high) = middle;
    }
    return low;
}

// The k largest of what was found, by place: all above the bar, and of those at it the first. Returns the bar.
template <typename Value> uint32_t take(const Candidates& found, int64_t k, uint32_t low, const Value* x, int64_t* places, float* values) {
    const uint32_t bar = kth(found, k, low);
    int64_t equal = k - at_least(found.size.data(), found.count, bar + 1);
    for (int64_t i = 0, done = 0; done < k; ++i) {  // without a branch: which are taken is not to be guessed
        const uint32_t size = found.size[i];
        const bool alike = size == bar && equal > 0;
        places[done] = found.place[i];
        values[done] = wide(x[found.place[i]]);
        done += size > bar || alike;
        equal -= alike;
    }
    return bar;
}

// Of x (n,): what was found above a bar, fewer than k, and the first of those at it, by place.
template <typename Value>
void take_equals(const Candidates& found, int64_t k, uint32_t bar, const Value* x, int64_t n, int64_t* places, float* values) {
    int64_t equal = k - found.count, next = 0, done = 0;
    const auto told = [&](int64_t place) {
        places[done] = place;
        values[done++] = wide(x[place]);
    };
    for (int64_t word = 0; word < n && equal; word += 64) {
        uint64_t hit = n - word < 64 ? reach_few(x + word, n - word, bar) : reach(x + word, bar);
        for (; hit && equal; hit &= hit - 1) {
            const int64_t at = word + __builtin_ctzll(hit);
            const bool higher = next < found.count && found.place[next] == at;
            told(at);
            next += higher;
            equal -= !higher;
        }
    }
    while (next < found.count) told(found.place[next++]);
}

// A bar that a few more than k of the values will likely reach, by a sample of them.
template <typename Value> uint32_t guess(const Value* x, int64_t n, int64_t k) {
    const int64_t some = std::min<int64_t>(SAMPLE, n / 32);
    std::vector<uint32_t> sample(some);
    for (int64_t i = 0; i < some; ++i) sample[i] = size_of(x[i * n / some]);
    const double share = static_cast<double>(k) / static_cast<double>(n) * static_cast<double>(some);
    double root = 1;
    while (root * root < share) root *= 1.1;
    const int64_t wanted = std::min<int64_t>(static_cast<int64_t>(share + 4 * root) + 8, some - 1);
    std::nth_element(sample.begin(), sample.begin() + wanted, sample.end(), [](uint32_t a, uint32_t b) { return a > b; });
    return sample[wanted];
}

// A step of a bar: a good tenth of it, or less.
template <typename Value> INLINE uint32_t step_of(uint32_t bar) { return std::max<uint32_t>(1, std::min(Sizes<Value>::OCTAVE * 3 / 32, bar / 12)); }

struct Ends {
    uint32_t low, high;
};
template <typename Value> Ends ends_of(const Value* x, int64_t n) {
    using Size = std::conditional_t<NARROW<Value>, int16_t, int32_t>;
    Size low = std::numeric_limits<Size>::max(), high = 0;
    for (int64_t i = 0; i < n; ++i) {
        const auto size = static_cast<Size>(plain_size(x[i]));
        low = size < low ? size : low;
        high = size > high ? size : high;
    }
    constexpr uint32_t TOP = Sizes<Value>::TOP;
    return {std::min<uint32_t>(static_cast<uint32_t>(low), TOP + 1), std::min<uint32_t>(static_cast<uint32_t>(high), TOP + 1)};
}

constexpr int WAYS = 4;

#if defined(__AVX2__)
// The k largest of WAYS chunks of 64 side by side: for each the highest bar that k reach, to 1/512 of an octave, within an octave of where
// the last one was. Every search takes the same steps, so no branch is guessed wrong and none waits for another; where more than k are left,
// the bar is then found exactly, and of its equals the first are taken. Bit c: chunk c has its k.
template <typename Value> INLINE int side_by_side(const Value* x, int64_t k, uint32_t* bar, int64_t* places, float* values) {
    const uint32_t from = std::clamp<uint32_t>(*bar, NARROW<Value> ? 16 : 512, Sizes<Value>::TOP - Sizes<Value>::OCTAVE);
    const uint32_t span = std::min(Sizes<Value>::OCTAVE, 0x80000000u >> __builtin_clz(from)), finest = std::max<uint32_t>(1, span >> 9);
    const uint32_t least = std::max<uint32_t>(1, from - span);
    const auto reaching = [=](int c, uint32_t higher) { return static_cast<int64_t>(__builtin_popcountll(reach(x + 64 * c, higher))); };
    uint32_t at[WAYS];
    for (int c = 0; c < WAYS; ++c) at[c] = least;
    for (uint32_t step = span; step >= finest; step >>= 1)
        for (int c = 0; c < WAYS; ++c) at[c] = reaching(c, at[c] + step) >= k ? at[c] + step : at[c];
    int done = 0;
    for (int c = 0; c < WAYS; ++c, places += k, values += k) {
        const Value* own = x + 64 * c;
        uint32_t low = at[c];
        uint64_t hit = reach(own, low);
        if (const int64_t count = __builtin_popcountll(hit); count != k) {
            if (count < k)
                low = 0;  // there may be no others but zeros
            else
                for (uint32_t step = finest >> 1; step; step >>= 1) low = reaching(c, low + step) >= k ? low + step : low;
            const uint64_t higher = reach(own, low + 1);
            uint64_t equal = (low ? reach(own, low) : ~uint64_t{0}) & ~higher;
            int64_t more = k - __builtin_popcountll(higher);
            if (more < 0 || more > __builtin_popcountll(equal)) continue;
            for (hit = higher; more; --more, equal &= equal - 1) hit |= equal & -equal;
        }
        for (int64_t i = 0; i < k; ++i, hit &= hit - 1) {
            places[i] = __builtin_ctzll(hit);
            values[i] = wide(own[places[i]]);
        }
        done |= 1 << c;
        if (low) *bar = low;
    }
    return done;
}
#endif

// Where the bar of the next chunk is sought first: chunks are alike.
struct Hint {
    uint32_t bar = 0;
    bool equals = false;  // the last one's k-th had more equals than were taken
};

// The k largest of x (n,). A bar is sought that k reach, and not many more, from the last chunk's on; where equals leave none, the first of them
// are taken.
template <typename Value>
void largest_of(const Value* x, int64_t n, int64_t k, Hint& hint, Candidates& found, int64_t* places, float* values) {
    constexpr uint32_t TOP = Sizes<Value>::TOP;
    const int64_t most = std::min(std::max(2 * k + 64, n / 64), k + n / 4);  // so many are worth being told apart
    uint32_t low = 0, high = TOP + 2, at = std::clamp<uint32_t>(hint.bar, 1, TOP + 1);  // k or more reach `low`, fewer `high`
    uint32_t beyond = high;  // none reaches it
    bool once_more = hint.equals, looked = false;
    for (;;) {
        uint32_t held = at;  // what was found reaches this
        found.count = 0;
        const bool few = found.gather(x, n, 0, at, most), enough = !few || found.count >= k;
        (enough ? low : high) = at;
        if (few && enough) {
            const uint32_t bar = take(found, k, low, x, places, values);
            hint = {bar - std::min(bar, step_of<Value>(bar)), false};
            return;
        }
        if (high - low > 1 && enough && once_more) {  // the last chunk's equals may be this one's, too
            once_more = false;
            ++at;
            continue;
        }
        if (n <= 256 && !enough && !looked) {  // few may be no zeros
            held = 0, found.count = 0;
            if (found.gather(x, n, 0, 1, FEW)) {
                if (found.count >= k) {
                    hint = {take(found, k, 1, x, places, values), false};
                } else {
                    take_equals(found, k, 0, x, n, places, values);
                    hint = {0, true};
                }
                return;
            }
        }
        if (high - low > 1 && !looked) {
            const Ends ends = ends_of(x, n);
            low = std::max(low, ends.low);
            beyond = ends.high + 1;
            high = std::min(high, beyond);
            at = enough || !found.count ? high - static_cast<uint32_t>((high - low) * (static_cast<double>(k + most) / static_cast<double>(2 * n)))
                                        : at - step_of<Value>(at);  // a little lower, or as though they were spread evenly, as where they are sorted
            looked = true;
        } else {
            at = low + (high - low) / 2;
        }
        if (high - low > 1) {
            at = std::clamp(at, low + 1, high - 1);
            continue;
        }
        if (high >= beyond || held != high) found.count = 0;
        if (high < beyond && held != high) found.gather(x, n, 0, high, most);
        take_equals(found, k, low, x, n, places, values);
        hint = {low, true};
        return;
    }
}

struct Bits {  // written in order
    uint8_t* out;
    uint64_t held = 0;
    int count = 0;
    void put(uint64_t value, int bits) {
        held |= value << count;
        count += bits;
        for (; count >= 8; count -= 8, held >>= 8) *out++ = static_cast<uint8_t>(held);
    }
    void end() {
        if (count) *out = static_cast<uint8_t>(held);
    }
};

INLINE uint64_t bits_at(const uint8_t* in, int64_t nbytes, int64_t at, int bits) {  // bits <= 56
    uint64_t word = 0;
    if (at / 8 + 8 <= nbytes)
        word = load<uint64_t>(in + at / 8);  // of a size that the compiler knows: no call
    else
        std::memcpy(&word, in + at / 8, nbytes - at / 8);
    return word >> at % 8 & ((uint64_t{1} << bits) - 1);
}

INLINE int64_t bytes_of(int64_t bits) { return (bits + 7) / 8; }

enum { PACKED, BITMAP, FANO };
enum { FINE, COUNT, BEYOND, DISORDER };

// A coding of `k` places below `per` in each chunk: `low` bits of a place as they are, `unary` bits of a chunk's high parts.
struct Coding {
    int64_t chunks, k, per;
    int coding, low;
    int64_t unary;
    int64_t width() const { return coding == BITMAP ? per : unary; }     // bits of marks in a chunk
    int64_t lows() const { return bytes_of(chunks * k * low); }          // bytes of what stands as it is
    int64_t marks() const { return bytes_of(chunks * width()); }
};

// take(i, place) for each place of a chunk, in order. FINE, or what is wrong; what was wrong has not been taken.
template <typename Take> INLINE int each_place(const uint8_t* in, const Coding& how, int64_t chunk, const Take& take) {
    const int64_t lows = how.lows(), k = how.k;
    int64_t last = -1, done = 0, at = chunk * k * how.low;
    const auto joined = [&](int64_t high) {
        const auto rest = static_cast<int64_t>(how.low ? bits_at(in, lows, at, how.low) : 0);
        at += how.low;
        return high << how.low | rest;
    };
    const auto told = [&](int64_t place) {
        if (place >= how.per) return BEYOND;
        if (place <= last) return DISORDER;
        take(done++, last = place);
        return FINE;
    };
    if (how.coding == PACKED) {
        for (int64_t i = 0; i < k; ++i)
            if (const int wrong = told(joined(0))) return wrong;
        return FINE;
    }
    const uint8_t* marks = how.coding == BITMAP ? in : in + lows;
    const int64_t width = how.width(), nbytes = how.marks(), first = chunk * width;
    const auto word_at = [=](int64_t i) {
        return bits_at(marks, nbytes, first + i, static_cast<int>(std::min<int64_t>(56, width - i)));
    };
    if (width <= 56 && k * how.low <= 56) {  // a chunk in two words, one for each of its two parts
        uint64_t word = word_at(0), rests = how.low ? bits_at(in, lows, at, static_cast<int>(k * how.low)) : 0;
        if (__builtin_popcountll(word) != k) return COUNT;
        const uint64_t rest = (uint64_t{1} << how.low) - 1;
        for (; done < k; word &= word - 1, rests >>= how.low) {
            const int64_t mark = __builtin_ctzll(word), high = how.coding == BITMAP ? mark : mark - done;
            if (const int wrong = told(high << how.low | static_cast<int64_t>(rests & rest))) return wrong;
        }
        return FINE;
    }
    int64_t count = 0;
    for (int64_t i = 0; i < width; i += 56) count += __builtin_popcountll(word_at(i));
    if (count != k) return COUNT;
    for (int64_t i = 0; i < width; i += 56)
        for (uint64_t word = word_at(i); word; word &= word - 1) {
            const int64_t mark = i + __builtin_ctzll(word);
            if (const int wrong = told(joined(how.coding == BITMAP ? mark : mark - done))) return wrong;
        }
    return FINE;
}

// The k largest of each chunk, which ready(c) gives, once.
template <typename Ready> void topk(const Ready& ready, int64_t chunks, int64_t per, int64_t k, int64_t* places, float* values, int threads) {
    in_threads(chunks, chunks * per, threads, [=](int64_t begin, int64_t end) {
        Candidates found;
        Hint hint;
#if defined(__AVX2__)
        int64_t rest = 0;  // chunks until four side by side are tried again: where none was found, the next are likely not alike, either
#endif
        int there = 0, done = 0;  // of the chunks from c on, a bit each: those that are ready, and those that have their k
        const auto* first = ready(begin);
        for (int64_t c = begin; c < end; ++c, there >>= 1, done >>= 1) {
            const auto* own = c == begin ? first : there & 1 ? first + (c - begin) * per : ready(c);
#if defined(__AVX2__)
            if (per == 64 && !there && end - c >= WAYS && --rest < 0) {
                for (int w = 1; w < WAYS; ++w) ready(c + w);
                there = (1 << WAYS) - 1;
                done = side_by_side(own, k, &hint.bar, places + c * k, values + c * k);
                rest = done ? 0 : 15;
            }
            if (done & 1) continue;
#endif
            if (c == begin && per > 2 * SAMPLE) hint = {guess(own, per, k), true};
            largest_of(own, per, k, hint, found, places + c * k, values + c * k);
        }
    });
}

}  // namespace
}  // namespace thinwire

using namespace thinwire;

// The k largest of each `per` values: places within their chunk, ascending, and values, both (chunks, k).
EXPORT void topk_chunks(const void* given, int kind, int64_t chunks, int64_t per, int64_t k, int64_t* places, float* values, int threads) {
    given_as(kind, given, [=](const auto* x) { topk([=](int64_t c) { return x + c * per; }, chunks, per, k, places, values, threads); });
}

// The same of y = x + decay · before, which is left in `y`.
EXPORT void topk_chunks_sum(const void* given, int kind, const float* before, float decay, int64_t chunks, int64_t per, int64_t k, int64_t* places,
                            float* values, float* y, int threads) {
    given_as(kind, given, [=](const auto* x) {
        const auto ready = [=](int64_t c) {
            const int64_t at = c * per;
            for (int64_t i = at; i < at + per; i += LANE) {
                const int64_t m = std::min(LANE, at + per - i);
                prefetched(x + i, m);
                prefetched(before + i, m);
                summed(x + i, before + i, decay, m, y + i);
            }
            return static_cast<const float*>(y + at);
        };
        topk(ready, chunks, per, k, places, values, threads);
    });
}

// The places, ascending, and values of entries of size `bar` or more; how many there are. Of more than `most`, nothing is written.
EXPORT int64_t above(const float* x, int64_t n, uint32_t bar, int64_t most, int64_t* places, float* values, int threads) {
    const int64_t ways = std::max<int64_t>(1, std::min<int64_t>(n / SHARE, threads));
    std::vector<Candidates> found(ways);
    in_threads(ways, n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t way = begin; way < end; ++way) {
            const int64_t at = n * way / ways;
            found[way].gather(x + at, n * (way + 1) / ways - at, at, bar, n);
        }
    });
    int64_t count = 0;
    for (const auto& own : found) count += own.count;
    if (count > most) return count;
    for (const auto& own : found)
        for (int64_t i = 0; i < own.count; ++i) {
            *places++ = own.place[i];
            *values++ = x[own.place[i]];
        }
    return count;
}

// places (chunks, k), ascending below `per` in each chunk -> out, in the coding that is asked for.
EXPORT void places_write(const int64_t* places, int64_t chunks, int64_t k, int64_t per, int coding, int low, int64_t unary, uint8_t* out) {
    if (coding != BITMAP && low) {  // as they are: `low` bits each. fano: their low bits, then the high parts
        Bits bits{out};
        const uint64_t mask = (uint64_t{1} << low) - 1;
        for (int64_t i = 0, some; i < chunks * k; i += some) {  // as many as a word holds
            some = std::min<int64_t>(56 / low, chunks * k - i);
            uint64_t word = 0;
            for (int64_t j = 0; j < some; ++j) word |= (static_cast<uint64_t>(places[i + j]) & mask) << low * j;
            bits.put(word, static_cast<int>(low * some));
        }
        bits.end();
    }
    if (coding == PACKED) return;
    const int64_t width = coding == BITMAP ? per : unary;
    uint8_t* marks = coding == BITMAP ? out : out + bytes_of(chunks * k * low);
    const auto mark = [=](int64_t c, int64_t i) { return coding == BITMAP ? places[c * k + i] : (places[c * k + i] >> low) + i; };
    if (width <= 56) {
        Bits bits{marks};
        for (int64_t c = 0; c < chunks; ++c) {
            uint64_t word = 0;
            for (int64_t i = 0; i < k; ++i) word |= uint64_t{1} << mark(c, i);
            bits.put(word, static_cast<int>(width));
        }
        return bits.end();
    }
    std::memset(marks, 0, bytes_of(chunks * width));
    for (int64_t c = 0; c < chunks; ++c)
        for (int64_t i = 0; i < k; ++i) {
            const int64_t at = c * width + mark(c, i);
            marks[at / 8] |= static_cast<uint8_t>(1 << at % 8);
        }
}

// The inverse. FINE, or what is wrong: a chunk without k places, a place beyond its chunk, places that do not ascend.
EXPORT int places_read(const uint8_t* in, int64_t chunks, int64_t k, int64_t per, int coding, int low, int64_t unary, int64_t* places) {
    const Coding how{chunks, k, per, coding, low, unary};
    for (int64_t c = 0; c < chunks; ++c)
        if (const int wrong = each_place(in, how, c, [=](int64_t i, int64_t place) { places[c * k + i] = place; })) return wrong;
    return FINE;
}

// total (chunks, per) += values (chunks, k) at the places that are read. FINE, or what is wrong: then some may have been added.
EXPORT int places_add(const uint8_t* in, int64_t chunks, int64_t k, int64_t per, int coding, int low, int64_t unary, const float* values,
                      float* total) {
    const Coding how{chunks, k, per, coding, low, unary};
    for (int64_t c = 0; c < chunks; ++c) {
        const float* own = values + c * k;
        float* to = total + c * per;
        if (const int wrong = each_place(in, how, c, [=](int64_t i, int64_t place) { to[place] += own[i]; })) return wrong;
    }
    return FINE;
}

// y (chunks, per) = values - said, both (chunks, k), at their places; whether all of what is left there is finite.
EXPORT int places_leave(const int64_t* places, const float* values, const float* said, int64_t chunks, int64_t k, int64_t per, float* y,
                        int threads) {
    std::atomic<bool> finite{true};
    in_threads(chunks, chunks * per, threads, [&](int64_t begin, int64_t end) {
        uint32_t most = 0;
        for (int64_t c = begin; c < end; ++c)
            for (int64_t i = c * k; i < (c + 1) * k; ++i) {
                const float left = values[i] - said[i];
                most = std::max(most, size_of(left));
                y[c * per + places[i]] = left;
            }
        if (most >= INFINITE) finite = false;
    });
    return finite;
}
