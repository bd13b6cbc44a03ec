// Which entries are the largest, and where they stand: reference.largest, reference.above, and the codings of what/_places.py.
//
// Sizes are |v| as integers, which ascend as the numbers do; a NaN is above all, and all NaNs are equal. Of equals the first is taken.
#include "common.h"
namespace thinwire {
namespace {

constexpr int64_t RUN = 1024, SAMPLE = 16384, SHORT = 512;

INLINE uint32_t size_of(float x) { return std::min(bits_of(x) & ~SIGN, INFINITE + 1); }

// Which of 64 values reach a bar: bit i for value i.
#if defined(__AVX512F__)
INLINE uint64_t reach(const float* x, uint32_t bar) {
    const __m512i bars = _mm512_set1_epi32(static_cast<int>(bar)), rest = _mm512_set1_epi32(static_cast<int>(~SIGN));
    uint64_t hit = 0;
    for (int k = 0; k < 4; ++k)
        hit |= static_cast<uint64_t>(_mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_loadu_si512(x + 16 * k), rest), bars)) << 16 * k;
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
#endif

// Entries whose size is at least a bar, in the order of their places.
struct Candidates {
    std::vector<int32_t> place;
    std::vector<uint32_t> size;
    int64_t count = 0;

    void clear() { count = 0; }
    void room(int64_t more) {
        if (static_cast<int64_t>(place.size()) >= count + more) return;
        const auto wanted = std::max<size_t>(count + more, place.size() * 2);
        place.resize(wanted);
        size.resize(wanted);
    }

    // Of x (n,), whose first value stands at `first`.
    void gather(const float* x, int64_t n, int64_t first, uint32_t bar) {
        for (int64_t at = 0; at < n; at += RUN) {
            const int64_t m = std::min(RUN, n - at);
            room(m + 16);
            collect(x + at, m, first + at, bar);
        }
    }

  private:
    // First which of 64 values reach the bar, without a branch, then those alone: at a hundredth of the values a branch for each 16 is guessed
    // wrong too often.
    void collect(const float* x, int64_t n, int64_t first, uint32_t bar) {
        int32_t* to = place.data();
        uint32_t* of = size.data();
        int64_t found = count, i = 0;
#if defined(__AVX2__)
        uint64_t hits[RUN / 64];
        for (; i + 64 <= n; i += 64) {
            prefetched(x + i, 64);
            hits[i / 64] = reach(x + i, bar);
        }
        for (int64_t word = 0; word < i / 64; ++word)
            for (uint64_t hit = hits[word]; hit; hit &= hit - 1) {
                const int64_t at = 64 * word + __builtin_ctzll(hit);
                to[found] = static_cast<int32_t>(first + at);
                of[found++] = size_of(x[at]);
            }
#endif
        for (; i < n; ++i) {
            const uint32_t here = size_of(x[i]);
            to[found] = static_cast<int32_t>(first + i);
            of[found] = here;
            found += here >= bar;
        }
        count = found;
    }

};

INLINE int64_t at_least(const uint32_t* sizes, int64_t n, uint32_t bar) {
    uint32_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += sizes[i] >= bar;
    return count;
}

#if defined(__AVX2__)
INLINE int64_t reaching(const float* x, int64_t n, uint32_t bar) {  // n whole words of 64
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 64) count += __builtin_popcountll(reach(x + i, bar));
    return count;
}
#endif

// A bar that k of the sizes reach, or the k-th largest size itself where its equals make that impossible; all are at least `low`.
uint32_t kth(const Candidates& found, int64_t k, uint32_t low) {
    const uint32_t* sizes = found.size.data();
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

// The k largest, by place: all above the bar, and of those at it the first.
void take(const Candidates& found, int64_t k, uint32_t low, const float* x, int64_t first, int64_t* places, float* values) {
    const uint32_t bar = kth(found, k, low);
    int64_t equal = k - at_least(found.size.data(), found.count, bar + 1);
    for (int64_t i = 0, done = 0; done < k; ++i) {  // without a branch: which are taken is not to be guessed
        const uint32_t size = found.size[i];
        const bool alike = size == bar && equal > 0;
        places[done] = found.place[i] - first;
        values[done] = x[found.place[i] - first];
        done += size > bar || alike;
        equal -= alike;
    }
}

// A bar that a few more than k of the values will likely reach, by a sample of them.
uint32_t guess(const float* x, int64_t n, int64_t k) {
    std::vector<uint32_t> sample(SAMPLE);
    for (int64_t i = 0; i < SAMPLE; ++i) sample[i] = size_of(x[i * n / SAMPLE]);
    const double share = static_cast<double>(k) / static_cast<double>(n) * SAMPLE;
    double root = 1;
    while (root * root < share) root *= 1.1;
    const int64_t wanted = std::min<int64_t>(static_cast<int64_t>(share + 4 * root) + 8, SAMPLE - 1);
    std::nth_element(sample.begin(), sample.begin() + wanted, sample.end(), [](uint32_t a, uint32_t b) { return a > b; });
    return sample[wanted];
}

// Half the number: one less in its exponent.
INLINE uint32_t halved(uint32_t bar) { return bar > 0x00800000u ? bar - 0x00800000u : 0; }

#if defined(__AVX2__)
// The k largest of a short chunk, of whole words of 64: a bar that exactly k reach is sought from where the last chunk's was. False where equals
// leave none.
bool short_chunk(const float* x, int64_t n, int64_t k, uint32_t* bar, int64_t* places, float* values) {
    constexpr uint32_t FAR = 0x00200000;  // a quarter
    uint32_t low = 0, high = INFINITE + 2, at = std::clamp<uint32_t>(*bar, 1, INFINITE + 1);
    for (int64_t count; (count = reaching(x, n, at)) != k;) {
        (count > k ? low : high) = at;
        if (high - low <= 1) return false;
        const uint32_t middle = low + (high - low) / 2;
        const uint32_t near = count > k ? at + FAR : at - FAR;
        at = high - low <= 2 * FAR || near <= low || near >= high ? middle : near;
    }
    *bar = at;
    for (int64_t word = 0; word < n; word += 64)
        for (uint64_t hit = reach(x + word, at); hit; hit &= hit - 1) {
            const int64_t place = word + __builtin_ctzll(hit);
            *places++ = place;
            *values++ = x[place];
        }
    return true;
}
#endif

constexpr int WAYS = 4;

#if defined(__AVX2__)
// The k largest of WAYS chunks of 64 side by side: for each the highest bar that k reach, to 1/512 of an octave, within an octave of where
// the last one was. Every search takes the same steps, so no branch is guessed wrong and none waits for another. Bit c: chunk c has its k.
INLINE int words(const float* const* x, int64_t k, uint32_t* bar, int64_t* places, float* values) {
    constexpr uint32_t SPAN = 0x00800000, FINEST = 0x00004000;
    const uint32_t least = std::clamp<uint32_t>(*bar, SPAN + 1, INFINITE - SPAN) - SPAN;
    uint32_t at[WAYS];
    for (int c = 0; c < WAYS; ++c) at[c] = least;
    for (uint32_t step = SPAN; step >= FINEST; step >>= 1)
        for (int c = 0; c < WAYS; ++c) {
            const uint32_t higher = at[c] + step;
            at[c] = __builtin_popcountll(reach(x[c], higher)) >= k ? higher : at[c];
        }
    int done = 0;
    for (int c = 0; c < WAYS; ++c, places += k, values += k) {
        uint64_t hit = reach(x[c], at[c]);
        if (__builtin_popcountll(hit) != k) continue;
        for (int64_t i = 0; i < k; ++i, hit &= hit - 1) {
            places[i] = __builtin_ctzll(hit);
            values[i] = x[c][places[i]];
        }
        done |= 1 << c;
        *bar = at[c];
    }
    return done;
}
#endif

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

// The k largest of each chunk; ready(c, room) gives a chunk, once. ROOM: it puts it there, and there is room for the chunks that wait.
template <bool ROOM, typename Ready>
void topk(const Ready& ready, int64_t chunks, int64_t per, int64_t k, int64_t* places, float* values, int threads) {
    in_threads(chunks, chunks * per, threads, [=](int64_t begin, int64_t end) {
        Candidates found;
        uint32_t bar = 0;
        const float* waiting[WAYS] = {};
        std::vector<float> room(ROOM ? WAYS * per : 0);
        const auto place = [&](int64_t c) { return room.data() + (ROOM ? c % WAYS * per : 0); };
        int done = 0, there = 0;  // of the chunks from c on, a bit each: those that have their k, and those that are ready
        for (int64_t c = begin; c < end; ++c, done >>= 1, there >>= 1) {
#if defined(__AVX2__)
            if (per == 64 && !there && end - c >= WAYS) {
                const float* own[WAYS];
                for (int w = 0; w < WAYS; ++w) waiting[(c + w) % WAYS] = own[w] = ready(c + w, place(c + w));
                there = (1 << WAYS) - 1;
                done = words(own, k, &bar, places + c * k, values + c * k);
            }
            if (done & 1) continue;
#endif
            const float* own = there & 1 ? waiting[c % WAYS] : ready(c, place(c));
#if defined(__AVX2__)
            if (per <= SHORT && per % 64 == 0 && short_chunk(own, per, k, &bar, places + c * k, values + c * k)) continue;
#endif
            if (per > 2 * SAMPLE) bar = guess(own, per, k);
            for (;; bar = halved(bar)) {
                found.clear();
                found.gather(own, per, 0, bar);
                if (found.count >= k) break;
            }
            const uint32_t low = bar;
            take(found, k, low, own, 0, places + c * k, values + c * k);
            uint32_t least = INFINITE + 1;  // chunks are alike: begin the next a little below the smallest that was taken of this one
            for (int64_t i = 0; i < k; ++i) least = std::min(least, size_of(values[c * k + i]));
            bar = least < INFINITE ? bits_of(of_bits(least) * 0.92f) : 0;
        }
    });
}

}  // namespace
}  // namespace thinwire

using namespace thinwire;

// The k largest of each `per` values: places within their chunk, ascending, and values, both (chunks, k).
EXPORT void topk_chunks(const void* given, int kind, int64_t chunks, int64_t per, int64_t k, int64_t* places, float* values, int threads) {
    given_as(kind, given, [=](const auto* x) {
        using In = std::remove_cv_t<std::remove_pointer_t<decltype(x)>>;
        const auto ready = [=](int64_t c, float* room) {
            const float* own = nullptr;
            for (int64_t i = 0; i < per; i += LANE) {
                if (per <= SHORT) prefetched(x + c * per + i, per - i);
                const float* lane = widened(x + c * per + i, std::min(LANE, per - i), room + (NARROW<In> ? i : 0));
                own = i ? own : lane;
                if (!NARROW<In> && per > SHORT) break;
            }
            return own;
        };
        topk<NARROW<In>>(ready, chunks, per, k, places, values, threads);
    });
}

// The same of y = x + decay · before, which is left in `y`.
EXPORT void topk_chunks_sum(const void* given, int kind, const float* before, float decay, int64_t chunks, int64_t per, int64_t k, int64_t* places,
                            float* values, float* y, int threads) {
    given_as(kind, given, [=](const auto* x) {
        const auto ready = [=](int64_t c, float*) {
            const int64_t at = c * per;
            for (int64_t i = at; i < at + per; i += LANE) {
                const int64_t m = std::min(LANE, at + per - i);
                prefetched(x + i, m);
                prefetched(before + i, m);
                summed(x + i, before + i, decay, m, y + i);
            }
            return static_cast<const float*>(y + at);
        };
        topk<false>(ready, chunks, per, k, places, values, threads);
    });
}

// The places, ascending, and values of entries of size `bar` or more; how many there are. Of more than `most`, nothing is written.
EXPORT int64_t above(const float* x, int64_t n, uint32_t bar, int64_t most, int64_t* places, float* values, int threads) {
    const int64_t ways = std::max<int64_t>(1, std::min<int64_t>(n / SHARE, threads));
    std::vector<Candidates> found(ways);
    in_threads(ways, n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t way = begin; way < end; ++way) {
            const int64_t at = n * way / ways;
            found[way].gather(x + at, n * (way + 1) / ways - at, at, bar);
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
