/* Byte-pair encoding of a text as sentencepiece does it: the piece of the best rank first, of
 * equal ones the leftmost, pieces being looked up by their text.
 *
 * A merge makes a piece of the vocabulary, so that none crosses a place that no occurrence of a
 * piece covers. The text is cut at all such places; what lies between is short, is encoded on its
 * own, and is looked up in a table of what was encoded before.
 *
 * All memory is the caller's. U+2581 is written as a space, in pieces and in texts.
 */
#include <stdint.h>
#include <string.h>

#define KEY 22 /* bytes of a segment, and tokens of its encoding, that the table holds */
#define HELD 12
#define FEW 48 /* symbols of a segment above which a heap finds the next merge */
#define NONE (-1)
#define ROOT (-2) /* has no parent */

typedef struct {
    uint64_t key; /* 0: empty; else 1 + what is looked up */
    int32_t value, rank;
} Slot;

typedef struct {
    int32_t base;        /* the child by byte c, if it has one, is at base + c */
    int32_t parent, end; /* `end`: the symbol that ends here, or NONE */
} Node;

typedef struct {
    uint8_t bytes, tokens, key[KEY];
    uint16_t ids[HELD];
} Entry;

typedef struct {
    int32_t rank, left, bytes, symbol; /* of the piece that a merge makes */
} Merge;

typedef struct {
    int32_t symbol, start, bytes, before, after;
} Symbol;

typedef struct {
    const Node *trie;  /* of all symbols; the root is 0 */
    const Slot *pairs; /* (symbol, symbol) -> symbol, rank */
    Entry *cache;
    int64_t pair_mask, cache_mask;
    const int32_t *ids; /* token of a symbol; NONE where its bytes stand for it */
    int32_t bytes[256]; /* token of a byte */
    /* Normalization: a double array (darts-clone), the texts it points to, and switches. */
    const uint32_t *units;
    const uint8_t *texts;
    int64_t unit_count, text_bytes;
    int32_t prefix, squeeze;
    uint8_t plain[256]; /* this byte stays as it is before a byte of ASCII */
} Encoder;

static uint64_t mix(uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}

static const Slot *find(const Slot *slots, int64_t mask, uint64_t key) {
    for (uint64_t at = mix(++key);; at++) {
        const Slot *slot = slots + (at & mask);
        if (slot->key == key) return slot;
        if (!slot->key) return 0;
    }
}

/* Fill `slots` (zeros, more than `count`, a power of two) with keys, none twice. */
void niblick_bpe_table(Slot *slots, int64_t mask, const uint64_t *keys, const int32_t *values,
                       const int32_t *ranks, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint64_t at = mix(keys[i] + 1);
        while (slots[at & mask].key) at++;
        slots[at & mask] = (Slot){keys[i] + 1, values[i], ranks[i]};
    }
}

/* Lay out a trie whose edges are sorted by parent; nodes are numbered so that parents come first,
 * the root being 0. `places` (nodes) is scratch. The nodes used, or -1 where `room` is too small.
 */
int64_t niblick_bpe_trie(Node *trie, int64_t room, const int32_t *parents, const uint8_t *bytes,
                         const int32_t *ends, int64_t count, int32_t *places) {
    int64_t low = 1, high = 1;
    for (int64_t i = 0; i < room; i++) trie[i] = (Node){0, NONE, NONE};
    places[0] = 0, trie[0].parent = ROOT;
    for (int64_t i = 0, after; i < count; i = after) {
        for (after = i; after < count && parents[after] == parents[i];) after++;
        while (low < room && trie[low].parent != NONE) low++;
        int64_t base = low > bytes[i] ? low - bytes[i] : 0;
        for (int64_t tries = 0, fits = 0; !fits; base += !fits) {
            if (++tries == 256 && base < high) base = high;
            if (base + 256 > room) return -1;
            fits = 1;
            for (int64_t j = i; j < after && fits; j++) fits = trie[base + bytes[j]].parent == NONE;
        }
        const int32_t node = places[parents[i]];
        trie[node].base = (int32_t)base;
        for (int64_t j = i; j < after; j++) {
            const int64_t at = base + bytes[j];
            trie[at].parent = node, trie[at].end = ends[j], places[j + 1] = (int32_t)at;
            if (at >= high) high = at + 1;
        }
    }
    return high;
}

static int64_t character(const uint8_t *text, int64_t left) {
    const uint8_t c = *text;
    const int64_t size = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    return size < left ? size : left;
}

/* Bytes of the longest piece that `text` begins with, its first character of `size` bytes at least;
 * the symbol of that one. */
static inline int64_t longest(const Node *trie, const uint8_t *text, int64_t left, int64_t size,
                              int32_t *symbol) {
    int64_t best = size;
    int32_t node = 0;
    *symbol = NONE;
    for (int64_t at = 0; at < left;) {
        const int32_t child = trie[node].base + text[at++];
        if (trie[child].parent != node) break;
        node = child;
        if (trie[node].end == NONE) continue;
        if (at == size) *symbol = trie[node].end;
        if (at > best) best = at;
    }
    return best;
}

static int less(const Merge *a, const Merge *b) {
    return a->rank < b->rank || (a->rank == b->rank && a->left < b->left);
}

static void push(Merge *heap, int64_t *count, Merge item) {
    int64_t at = (*count)++;
    for (int64_t up; at && less(&item, heap + (up = (at - 1) / 2)); at = up) heap[at] = heap[up];
    heap[at] = item;
}

static Merge pop(Merge *heap, int64_t *count) {
    const Merge top = heap[0], last = heap[--*count];
    int64_t at = 0, down;
    for (; (down = 2 * at + 1) < *count; at = down) {
        if (down + 1 < *count && less(heap + down + 1, heap + down)) down++;
        if (!less(heap + down, &last)) break;
        heap[at] = heap[down];
    }
    heap[at] = last;
    return top;
}

/* The merge of symbol `left` with the one after it; rank INT32_MAX for none. */
static Merge merge_at(const Encoder *e, const Symbol *s, int32_t left) {
    Merge none = {INT32_MAX, left, 0, NONE};
    if (left == NONE || s[left].after == NONE) return none;
    const Symbol *a = s + left, *b = s + a->after;
    if (a->symbol == NONE || b->symbol == NONE) return none;
    const Slot *slot =
        find(e->pairs, e->pair_mask, (uint64_t)a->symbol << 32 | (uint32_t)b->symbol);
    if (!slot) return none;
    return (Merge){slot->rank, left, a->bytes + b->bytes, slot->value};
}

static void join(Symbol *s, const Merge *m) {
    Symbol *a = s + m->left, *b = s + a->after;
    a->symbol = m->symbol, a->bytes = m->bytes, a->after = b->after, b->bytes = 0;
    if (a->after != NONE) s[a->after].before = m->left;
}

static void merge_few(const Encoder *e, Symbol *s, int32_t count) {
    Merge waiting[FEW];
    for (int32_t i = 0; i < count; i++) waiting[i] = merge_at(e, s, i);
    for (;;) {
        int32_t best = NONE, rank = INT32_MAX;
        for (int32_t i = 0; i < count; i++)
            if (waiting[i].rank < rank) rank = waiting[i].rank, best = i;
        if (best == NONE) return;
        waiting[s[best].after].rank = INT32_MAX;
        join(s, waiting + best);
        waiting[best] = merge_at(e, s, best);
        if (s[best].before != NONE) waiting[s[best].before] = merge_at(e, s, s[best].before);
    }
}

static void merge_many(const Encoder *e, Symbol *s, int32_t count, Merge *heap) {
    int64_t size = 0;
    for (int32_t i = 0; i < count; i++) {
        const Merge m = merge_at(e, s, i);
        if (m.symbol != NONE) push(heap, &size, m);
    }
    while (size) {
        const Merge m = pop(heap, &size);
        const Symbol *a = s + m.left;
        if (!a->bytes || a->after == NONE || a->bytes + s[a->after].bytes != m.bytes) continue;
        join(s, &m);
        const int32_t around[2] = {a->before, m.left};
        for (int i = 0; i < 2; i++) {
            const Merge next = merge_at(e, s, around[i]);
            if (next.symbol != NONE) push(heap, &size, next);
        }
    }
}

static int64_t spell(const Encoder *e, int32_t symbol, const uint8_t *text, int64_t size,
                     uint16_t *out) {
    if (symbol != NONE && e->ids[symbol] != NONE) return *out = (uint16_t)e->ids[symbol], 1;
    for (int64_t i = 0; i < size; i++) out[i] = (uint16_t)e->bytes[text[i]];
    return size;
}

/* Encode one segment by its merges. `s` holds a symbol and `heap` three merges for each byte. */
static int64_t merged(const Encoder *e, const uint8_t *text, int64_t size, Symbol *s, Merge *heap,
                      uint16_t *out) {
    int32_t count = 0;
    for (int64_t at = 0; at < size; count++) {
        const int64_t step = character(text + at, size - at);
        Symbol *c = s + count;
        longest(e->trie, text + at, step, step, &c->symbol);
        c->start = (int32_t)at, c->bytes = (int32_t)step, c->before = count - 1,
        c->after = count + 1;
        at += step;
    }
    s[0].before = s[count - 1].after = NONE;
    count <= FEW ? merge_few(e, s, count) : merge_many(e, s, count, heap);
    int64_t tokens = 0;
    for (int32_t i = 0; i != NONE; i = s[i].after)
        tokens += spell(e, s[i].symbol, text + s[i].start, s[i].bytes, out + tokens);
    return tokens;
}

static int64_t segment(const Encoder *e, const uint8_t *text, int64_t size, Symbol *s, Merge *heap,
                       uint16_t *out) {
    if (size > KEY) return merged(e, text, size, s, heap, out);
    uint64_t hash = (uint64_t)size;
    for (int64_t i = 0; i < size; i++) hash = (hash ^ text[i]) * 0x9E3779B97F4A7C15u;
    Entry *entry = e->cache + ((hash ^ hash >> 32) & (uint64_t)e->cache_mask);
    if (entry->bytes == size && !memcmp(entry->key, text, (size_t)size)) {
        memcpy(out, entry->ids, 2 * entry->tokens);
        return entry->tokens;
    }
    const int64_t tokens = merged(e, text, size, s, heap, out);
    if (tokens <= HELD) {
        entry->bytes = (uint8_t)size, entry->tokens = (uint8_t)tokens;
        memcpy(entry->key, text, (size_t)size);
        memcpy(entry->ids, out, 2 * (size_t)tokens);
    }
    return tokens;
}

/* Encode `size` bytes of UTF-8 into `out`, of as many elements; the number of tokens. */
int64_t niblick_bpe_encode(const Encoder *e, const uint8_t *text, int64_t size, void *symbols,
                           void *heap, uint16_t *out) {
    int64_t start = 0, reach = 0, tokens = 0;
    int32_t symbol = NONE, first = NONE;
    for (int64_t at = 0; at < size;) {
        const int64_t step = character(text + at, size - at);
        const int64_t best = at + longest(e->trie, text + at, size - at, step, &symbol);
        if (reach <= at) { /* nothing covers this place */
            start = at, first = symbol;
        }
        if (best > reach) reach = best;
        at += step;
        if (reach > at) continue;
        if (at - start == step) tokens += spell(e, first, text + start, step, out + tokens);
        else tokens += segment(e, text + start, at - start, symbols, heap, out + tokens);
    }
    return tokens;
}

/* The rule that applies at `text`: how many bytes it takes, 0 for none, and what stands for them.
 */
static int64_t rule(const Encoder *e, const uint8_t *text, int64_t left, const uint8_t **to) {
    int64_t found = 0, node;
    if (!e->unit_count) return 0;
    uint32_t unit = e->units[0];
    node = (unit >> 10) << ((unit & 512u) >> 6);
    for (int64_t i = 0; i < left && text[i]; i++) {
        node ^= text[i];
        if (node >= e->unit_count) break;
        unit = e->units[node];
        if ((unit & 0x800000FFu) != text[i]) break;
        node ^= (unit >> 10) << ((unit & 512u) >> 6);
        if (node >= e->unit_count) break;
        if (unit >> 8 & 1) {
            const int64_t at = e->units[node] & 0x7FFFFFFFu;
            if (at >= e->text_bytes) break;
            *to = e->texts + at, found = i + 1;
        }
    }
    return found;
}

/* Which bytes no rule concerns where a byte of ASCII follows. */
void niblick_bpe_rules(Encoder *e) {
    const uint8_t *to;
    for (int c = 1; c < 128; c++) {
        uint8_t pair[2] = {(uint8_t)c, 0};
        int free = c != ' ' && !rule(e, pair, 1, &to);
        for (int next = 1; next < 128 && free; next++) {
            pair[1] = (uint8_t)next;
            free = !rule(e, pair, 2, &to);
        }
        e->plain[c] = (uint8_t)free;
    }
}

/* Normalize into `out` of `room` bytes as sentencepiece does, U+2581 as a space; the bytes
 * written, or -1 where they do not fit. */
int64_t niblick_bpe_normalize(const Encoder *e, const uint8_t *text, int64_t size, uint8_t *out,
                              int64_t room) {
    int64_t count = 0, at = 0;
    int began = 0, spaced = e->squeeze;
    while (at < size) {
        const uint8_t c = text[at], *to = text + at;
        int64_t step = 1, length = 1;
        if (!(c < 0x80 && e->plain[c] && (at + 1 == size || text[at + 1] < 0x80))) {
            step = rule(e, text + at, size - at, &to);
            if (step) {
                const int64_t left = e->texts + e->text_bytes - to;
                const uint8_t *end = memchr(to, 0, (size_t)left);
                length = end ? end - to : left;
            } else {
                length = step = character(text + at, size - at), to = text + at;
            }
        }
        at += step;
        if (!began && e->squeeze && length == 1 && *to == ' ') continue;
        if (count + length + 1 > room) return -1;
        if (!began && e->prefix) out[count++] = ' ';
        began = 1;
        while (spaced && length && *to == ' ') to++, length--;
        for (int64_t i = 0; i < length; i++) {
            const int mark =
                i + 2 < length && to[i] == 0xE2 && to[i + 1] == 0x96 && to[i + 2] == 0x81;
            out[count++] = mark ? ' ' : to[i];
            i += mark ? 2 : 0;
        }
        if (length) spaced = e->squeeze && to[length - 1] == ' ';
    }
    while (e->squeeze && count && out[count - 1] == ' ') count--;
    return count;
}

static int capital(uint8_t c) { return c >= 'A' && c <= 'Z'; }
static int letter(uint8_t c) { return capital(c & 0xDFu) && c < 0x80; }

static int64_t mark(uint8_t *out, int caps) {
    out[0] = 0xEF, out[1] = 0xB7, out[2] = (uint8_t)(0x90 + caps);
    return 3;
}

/* Small letters and marks for the capitals of ASCII, as niblick/text/case.py has them; the bytes
 * written into `out`, at most four for each of `text`. */
int64_t niblick_bpe_lower(const uint8_t *text, int64_t size, uint8_t *out) {
    int64_t count = 0;
    for (int64_t at = 0; at < size;) {
        const int space = text[at] == ' ' && at + 1 < size && capital(text[at + 1]);
        int64_t end = at + space, capitals = 0;
        for (; end < size && letter(text[end]); end++) capitals += capital(text[end]);
        if (!capitals) {
            do out[count++] = text[at++];
            while (at < end);
            continue;
        }
        const int caps = capitals > 1 && capitals == end - at - space;
        const int first = capital(text[at + space]);
        if (first) count += mark(out + count, caps);
        for (int64_t i = at; i < end; i++) {
            const int marked = capital(text[i]) && !caps && !(first && i == at + space);
            if (marked) count += mark(out + count, 0);
            out[count++] = (uint8_t)(capital(text[i]) ? text[i] | 0x20 : text[i]);
        }
        at = end;
    }
    return count;
}
