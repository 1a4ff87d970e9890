// The cut on a CPU: the rule of pyramid.py, a crop at a time.
//
// Rows are sampled across once each, into scratch memory that stays in the cache; then crop rows
// are weighted means of those. Indices are clamped as whole numbers, so that nothing is read outside
// the store.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

namespace {

const int MOST_TAPS = 4;
const int LANES = 16;  // crop rows are padded to a multiple of it, so that no loop has a rest
const int AHEAD = 4;   // by so many rows memory is asked beforehand, which spares a quarter

struct Rule {
    int32_t most_levels;
    float least, exact, halved, sharp;
};

// What the samples of one side of a crop fall on: tap after tap, an index and a weight for each.
struct Side {
    int32_t *at;
    float *weights;
    int taps, first, last;
};

float clamped(float value, float low, float high) {
    value = value > low ? value : low;  // so is what isn't a number
    return value < high ? value : high;
}

int clamped(int value, int low, int high) {
    value = value > low ? value : low;
    return value < high ? value : high;
}

void lay_out(Side &side, float low, float high, float reach, int limit, int size, int padded) {
    const int last = limit - 1, from = reach > 0 ? -1 : 0;
    const float step = (high - low) / size;
    side.taps = reach > 0 ? MOST_TAPS : 2;
    side.first = last, side.last = 0;
    for (int tap = 0; tap < side.taps; ++tap) {
        int32_t *at = side.at + tap * padded;
        float *weights = side.weights + tap * padded;
        for (int j = 0; j < size; ++j) {
            const float middle = low + (j + 0.5f) * step - 0.5f;
            const float place = clamped(middle, -2.0f, last + 2.0f), floored = floorf(place);
            const float off = (place - floored) - (tap + from);
            float weight = 0;
            for (int sample = -1; sample <= 1; ++sample) {
                const float part = 1 - fabsf(off + sample * reach);
                weight += part > 0 ? part : 0;
            }
            weights[j] = weight * (1.0f / 3);
            at[j] = clamped((int)floored + tap + from, 0, last);
            side.first = at[j] < side.first ? at[j] : side.first;
            side.last = at[j] > side.last ? at[j] : side.last;
        }
        for (int j = size; j < padded; ++j) at[j] = 0, weights[j] = 0;
    }
}

template <int TAPS>
void across(const float *__restrict row, const Side &side, int padded, float *__restrict into) {
    const int32_t *__restrict at = side.at;
    const float *__restrict weights = side.weights;
    float *__restrict red = into, *__restrict green = into + padded;
    float *__restrict blue = into + 2 * padded;
    for (int j = 0; j < padded; ++j) {
        float r = 0, g = 0, b = 0;
        for (int tap = 0; tap < TAPS; ++tap) {
            const int32_t packed = (int32_t)row[at[tap * padded + j]];
            const float weight = weights[tap * padded + j];
            r += (packed & 255) * weight;
            g += ((packed >> 8) & 255) * weight;
            b += (packed >> 16) * weight;
        }
        red[j] = r, green[j] = g, blue[j] = b;
    }
}

template <int TAPS>
void down(const float *const *rows, const float *weights, int size, float *__restrict into) {
    for (int j = 0; j < size; ++j) {
        float sum = 0;
        for (int tap = 0; tap < TAPS; ++tap) sum += rows[tap][j] * weights[tap];
        into[j] = sum * (1.0f / 255);
    }
}

float reach_of(float shrink, float scale, int level, const Rule &rule) {
    if (level == 0 && !(shrink >= rule.sharp)) return 0;
    const float spread = (shrink * shrink + 2) * (scale * scale);
    return sqrtf(clamped((spread - (level ? rule.halved : rule.exact)) / 8, 0.0f, 1.0f));
}

void cut_one(const float *pixels, int height, int width, const float *box, int size, int padded,
             const Rule &rule, Side &x, Side &y, float *scratch, float *crop) {
    const float across_shrink = fabsf(box[2] - box[0]) / size;
    const float down_shrink = fabsf(box[3] - box[1]) / size;
    float scale = 1;
    int level = 0;
    for (; level + 1 < rule.most_levels && (height > 1 || width > 1); ++level) {
        const float finer = scale / 2;
        if (!((across_shrink * down_shrink + 2) * (finer * finer) >= rule.least)) break;
        pixels += (int64_t)height * width;
        height = (height + 1) / 2, width = (width + 1) / 2, scale = finer;
    }
    const float reach_x = reach_of(across_shrink, scale, level, rule);
    const float reach_y = reach_of(down_shrink, scale, level, rule);
    lay_out(x, box[0] * scale, box[2] * scale, reach_x, width, size, padded);
    lay_out(y, box[1] * scale, box[3] * scale, reach_y, height, size, padded);

    // Where samples lie close, each row between the first and the last serves several.
    const int span = y.last - y.first + 1;
    const bool close = span <= y.taps * size;
    for (int k = 0; k < (close ? span : y.taps * size); ++k) {
        const int at = close ? y.first + k : y.at[(k / size) * padded + k % size];
        const float *row = pixels + (int64_t)at * width, *later = row + (int64_t)AHEAD * width;
        for (int j = x.first; close && j <= x.last; j += LANES) __builtin_prefetch(later + j);
        float *into = scratch + (int64_t)k * 3 * padded;
        x.taps == 2 ? across<2>(row, x, padded, into) : across<MOST_TAPS>(row, x, padded, into);
    }
    for (int channel = 0; channel < 3; ++channel) {
        for (int j = 0; j < size; ++j) {
            const float *rows[MOST_TAPS];
            float weights[MOST_TAPS];
            for (int tap = 0; tap < y.taps; ++tap) {
                const int k = close ? y.at[tap * padded + j] - y.first : tap * size + j;
                rows[tap] = scratch + ((int64_t)k * 3 + channel) * padded;
                weights[tap] = y.weights[tap * padded + j];
            }
            float *into = crop + ((int64_t)channel * size + j) * size;
            y.taps == 2 ? down<2>(rows, weights, size, into)
                        : down<MOST_TAPS>(rows, weights, size, into);
        }
    }
}

}  // namespace

// Cut crops, (count, 3, size, size) in [0, 1]; returns 0, or 1 where there is too little memory.
extern "C" int cut(const float *pixels, const int64_t *offsets, const int32_t *heights,
                   const int32_t *widths, const float *boxes, int64_t count, int32_t size,
                   int32_t most_levels, float least, float exact, float halved, float sharp,
                   float *crops) {
    const Rule rule = {most_levels, least, exact, halved, sharp};
    const int padded = (size + LANES - 1) / LANES * LANES;
    const int64_t of_side = MOST_TAPS * padded, of_rows = (int64_t)MOST_TAPS * size * 3 * padded;
    float *memory = (float *)malloc((4 * of_side + of_rows) * 4);
    if (!memory) return 1;
    float *at = memory, *weights = at + 2 * of_side, *scratch = weights + 2 * of_side;
    Side x = {(int32_t *)at, weights, 0, 0, 0};
    Side y = {(int32_t *)at + of_side, weights + of_side, 0, 0, 0};
    for (int64_t i = 0; i < count; ++i) {
        cut_one(pixels + offsets[i], heights[i], widths[i], boxes + 4 * i, size, padded, rule, x, y,
                scratch, crops + i * 3 * size * size);
    }
    free(memory);
    return 0;
}
