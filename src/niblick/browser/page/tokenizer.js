"use strict";
/* Text to token ids and back, as niblick/text/tokenizer.py and the SentencePiece library do it.
 * What a tokenizer is comes as an object that niblick/browser/tokenizer.py describes. */

const NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6;
const MARK = "\u2581"; // what a space is written as inside pieces
const TITLE = "\ufdd0", CAPS = "\ufdd1"; // case operators, where a tokenizer has them
const NOTHING = new Uint8Array(0);
/* Where decoding stands: whether the text starts, the mark in force and whether a space may follow
 * it; see niblick/text/case.py. */
const START = { starts: true, mark: -1, space: false };
const encoder = new TextEncoder();

/* Text whose lone surrogates, which no tokenizer takes, have become U+FFFD. */
function wellFormed(text) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(encoder.encode(text));
}

/* The likeliest first, then the leftmost. */
class Heap {
  constructor() { this.items = []; }

  static before(a, b) { return a.score > b.score || (a.score === b.score && a.left < b.left); }

  push(item) {
    const items = this.items;
    let at = items.length;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!Heap.before(item, items[parent])) break;
      items[at] = items[parent];
      at = parent;
    }
    items[at] = item;
  }

  pop() {
    const items = this.items, top = items[0], last = items.pop();
    if (items.length === 0) return top;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && Heap.before(items[child + 1], items[child])) child++;
      if (!Heap.before(items[child], last)) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = last;
    return top;
  }
}

/* SentencePiece's map of characters: a double array of prefixes, then what each becomes. */
class CharacterMap {
  constructor(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const size = view.getUint32(0, true);
    this.units = new Uint32Array(size >> 2);
    for (let i = 0; i < this.units.length; i++) this.units[i] = view.getUint32(4 + 4 * i, true);
    this.texts = bytes.subarray(4 + size);
  }

  static offset(unit) { return (unit >>> 10) << ((unit & 512) >>> 6); }

  /* The longest entry that `bytes` hold from `at` on: its length and what it becomes, or null. */
  longest(bytes, at) {
    let node = CharacterMap.offset(this.units[0]), found = null;
    for (let i = at; i < bytes.length; i++) {
      node ^= bytes[i];
      const unit = this.units[node];
      if (unit === undefined || (unit & 0x800000ff) >>> 0 !== bytes[i]) break;
      node ^= CharacterMap.offset(unit);
      if ((unit >>> 8) & 1) found = [i + 1 - at, this.units[node] & 0x7fffffff];
    }
    if (!found) return null;
    const start = found[1], end = this.texts.indexOf(0, start);
    return [found[0], this.texts.subarray(start, end < 0 ? this.texts.length : end)];
  }
}

function charLength(byte) { return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4; }

const isLetter = (byte) => (byte >= 65 && byte <= 90) || (byte >= 97 && byte <= 122);
const small = (text) => text.replace(/[A-Z]/g, (letter) => TITLE + letter.toLowerCase());

/* A text without marks, with marks for its capitals. */
function lowered(text) {
  return text.replace(/ ?[A-Za-z]+/g, (word) => {
    const at = word[0] === " " ? 1 : 0;
    if (!/^ ?[A-Z]/.test(word)) return small(word);
    if (/^ ?[A-Z]{2,}$/.test(word)) return CAPS + word.toLowerCase();
    return TITLE + word.slice(0, at + 1).toLowerCase() + small(word.slice(at + 1));
  });
}

class Tokenizer {
  constructor(told, characters) {
    this.title = this.caps = -1;
    Object.assign(this, told);
    this.surfaces = [];
    this.silent = [];
    this.leading = [];
    if (this.kind === "bytes") this.describeBytes();
    else this.describePieces(characters);
    this.vocab = this.surfaces.length;
  }

  describeBytes() {
    for (let id = 0; id < this.first + 256; id++) {
      this.surfaces.push(id < this.first ? new Uint8Array(0) : Uint8Array.of(id - this.first));
      this.silent.push(id < this.first);
      this.leading.push(false);
    }
  }

  describePieces(characters) {
    this.ids = new Map();
    this.byteIds = new Array(256).fill(-1);
    this.userDefined = [];
    this.longest = 1;
    this.least = Infinity;
    this.most = -Infinity;
    this.map = characters.length ? new CharacterMap(characters) : null;
    let rank = 0;
    this.scores = this.scores || this.kinds.map((kind) => (kind === NORMAL ? -rank++ : 0));
    this.pieces.forEach((text, id) => this.describePiece(text, id, this.kinds[id]));
    if (this.title >= 0) this.surfaces[this.title] = this.surfaces[this.caps] = NOTHING;
  }

  describePiece(text, id, kind) {
    const silent = kind === CONTROL || kind === UNKNOWN || kind === UNUSED;
    const byte = kind === BYTE ? parseInt(text.slice(3, 5), 16) : -1;
    if (kind === BYTE) this.byteIds[byte] = id;
    else if (kind === UNKNOWN) this.unknown = id;
    else if (kind !== CONTROL) this.ids.set(text, id);
    if (kind === NORMAL) {
      this.least = Math.min(this.least, this.scores[id]);
      this.most = Math.max(this.most, this.scores[id]);
    }
    if (kind === USER_DEFINED) this.userDefined.push(text);
    if (kind !== BYTE && kind !== CONTROL) this.longest = Math.max(this.longest, [...text].length);
    this.surfaces.push(
      silent ? new Uint8Array(0) : kind === BYTE ? Uint8Array.of(byte)
        : encoder.encode(text.replaceAll(MARK, " ")));
    this.silent.push(silent);
    this.leading.push(this.dummyPrefix && !silent && kind !== BYTE && text.startsWith(MARK));
  }

  /* Ids of a text without a BOS. */
  encode(given) {
    const text = wellFormed(given);
    if (!text) return [];
    if (this.kind === "bytes") return Array.from(encoder.encode(text), (b) => b + this.first);
    if (!this.lossless) return this.pieceIds(this.normalized(text));
    const ids = [], cased = this.title >= 0;
    const literal = cased ? /([\u2581\ufdd0\ufdd1])/ : /(\u2581)/;
    (this.dummyPrefix ? " " + text : text).split(literal).forEach((part, index) => {
      if (index % 2) for (const byte of encoder.encode(part)) ids.push(this.byteIds[byte]);
      else {
        const marked = (cased ? lowered(part) : part).replaceAll(" ", MARK);
        for (const id of this.pieceIds(marked)) ids.push(id);
      }
    });
    return ids;
  }

  /* What the model's own normalizer makes of a text, spaces marked. */
  normalized(text) {
    const bytes = encoder.encode(text), out = [];
    let at = 0, afterSpace = this.removeSpaces;
    const next = () => {
      const [length, becomes] = this.normalizedPrefix(bytes, at);
      at += length;
      return becomes;
    };
    if (this.removeSpaces)
      while (at < bytes.length) {
        const start = at, becomes = next();
        if (becomes.length !== 1 || becomes[0] !== 32) { at = start; break; }
      }
    if (at === bytes.length) return "";
    if (this.dummyPrefix) out.push(32);
    while (at < bytes.length) {
      let becomes = next();
      while (afterSpace && becomes.length && becomes[0] === 32) becomes = becomes.subarray(1);
      if (!becomes.length) continue;
      for (const byte of becomes) out.push(byte);
      afterSpace = this.removeSpaces && becomes[becomes.length - 1] === 32;
    }
    if (this.removeSpaces) while (out.length && out[out.length - 1] === 32) out.pop();
    const found = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(out));
    return this.escapeSpaces ? found.replaceAll(" ", MARK) : found;
  }

  normalizedPrefix(bytes, at) {
    const own = this.userDefinedAt(bytes, at);
    if (own) return [own, bytes.subarray(at, at + own)];
    const found = this.map && this.map.longest(bytes, at);
    if (found) return found;
    const length = charLength(bytes[at]);
    return [length, bytes.subarray(at, at + length)];
  }

  /* Bytes of the longest user-defined piece that stands at `at`. */
  userDefinedAt(bytes, at) {
    let longest = 0;
    for (const text of this.userDefined) {
      const piece = encoder.encode(text);
      if (piece.length > longest && piece.every((byte, i) => bytes[at + i] === byte))
        longest = piece.length;
    }
    return longest;
  }

  /* Ids of a normalized text. */
  pieceIds(text) {
    if (!text) return [];
    const ids = [];
    let afterUnknown = false;
    for (const [piece, id] of this.kind === "bpe" ? this.merged(text) : this.likeliest(text)) {
      const unknown = id === this.unknown;
      if (unknown && this.byteFallback)
        for (const byte of encoder.encode(piece)) ids.push(this.byteIds[byte]);
      else if (!(unknown && afterUnknown)) ids.push(id);
      afterUnknown = unknown;
    }
    return ids;
  }

  idOf(piece) {
    const id = this.ids.get(piece);
    return id === undefined ? this.unknown : id;
  }

  /* Byte-pair encoding: the best neighbours are joined first. */
  merged(text) {
    const symbols = this.symbols(text), halves = new Map(), heap = new Heap();
    const offer = (left, right) => {
      if (left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen) return;
      const piece = symbols[left].text + symbols[right].text, id = this.ids.get(piece);
      if (id === undefined) return;
      heap.push({ left, right, score: Math.fround(this.scores[id]), size: piece.length });
      if (this.kinds[id] === UNUSED)
        halves.set(piece, [symbols[left].text, symbols[right].text]);
    };
    for (let i = 1; i < symbols.length; i++) offer(i - 1, i);
    while (heap.items.length) {
      const top = heap.pop(), a = symbols[top.left], b = symbols[top.right];
      if (!a.text || !b.text || a.text.length + b.text.length !== top.size) continue;
      a.text += b.text;
      a.next = b.next;
      if (b.next >= 0) symbols[b.next].before = top.left;
      b.text = "";
      offer(a.before, top.left);
      offer(top.left, a.next);
    }
    const found = [];
    for (let i = 0; i >= 0 && i < symbols.length; i = symbols[i].next)
      this.unmerged(symbols[i].text, halves, found);
    return found;
  }

  symbols(text) {
    const parts = [];
    if (!this.userDefined.length) for (const char of text) parts.push([char, false]);
    else {
      const bytes = encoder.encode(text), decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      for (let at = 0; at < bytes.length;) {
        const own = this.userDefinedAt(bytes, at), length = own || charLength(bytes[at]);
        parts.push([decoder.decode(bytes.subarray(at, at + length)), own > 0]);
        at += length;
      }
    }
    const last = parts.length - 1;
    return parts.map(([text, frozen], i) => (
      { text, frozen, before: i - 1, next: i < last ? i + 1 : -1 }));
  }

  /* Pieces that are not in use fall apart into those they were joined from. */
  unmerged(piece, halves, found) {
    const id = this.idOf(piece), parts = halves.get(piece);
    if (this.kinds[id] !== UNUSED || !parts) { found.push([piece, id]); return; }
    for (const part of parts) this.unmerged(part, halves, found);
  }

  /* Unigram: the way through the text whose scores have the largest sum, in float32. */
  likeliest(text) {
    const chars = [...text], size = chars.length;
    const best = Array.from({ length: size + 1 }, () => ({ from: -1, score: 0, id: -1 }));
    const lengths = chars.map((char) => encoder.encode(char).length);
    const unknownScore = Math.fround(this.least - 10);
    const consider = (from, to, id, score) => {
      const candidate = Math.fround(score + best[from].score);
      if (best[to].from < 0 || candidate > best[to].score)
        best[to] = { from, score: candidate, id };
    };
    for (let from = 0; from < size; from++) {
      let single = false, piece = "", bytes = 0;
      for (let to = from + 1; to <= size && to - from <= this.longest; to++) {
        piece += chars[to - 1];
        bytes += lengths[to - 1];
        const id = this.ids.get(piece);
        if (id === undefined || this.kinds[id] === UNUSED) continue;
        const own = this.kinds[id] === USER_DEFINED;
        consider(from, to, id, own ? Math.fround(bytes * this.most) - 0.1
          : Math.fround(this.scores[id]));
        single = single || to === from + 1;
      }
      if (!single) consider(from, from + 1, this.unknown, unknownScore);
    }
    const found = [];
    for (let end = size; end > 0; end = best[end].from)
      found.push([chars.slice(best[end].from, end).join(""), best[end].id]);
    return found.reverse();
  }

  /* Where decoding stands after `ids`. */
  stateAfter(ids) { return ids.reduce((state, token) => this.next(token, state)[1], START); }

  /* The bytes that `token` adds in a state of decoding, and the state after it. */
  next(token, state) {
    if (token === this.title || token === this.caps)
      return [NOTHING, { starts: state.starts, mark: token, space: true }];
    if (this.silent[token]) return [NOTHING, START];
    const data = this.surfaces[token].subarray(state.starts && this.leading[token] ? 1 : 0);
    const inside = { starts: false, mark: -1, space: false };
    if (state.mark < 0) return [data, inside];
    const at = state.space && data[0] === 32 ? 1 : 0, most = state.mark === this.title ? 1 : Infinity;
    if (at === data.length)
      return [data, { starts: false, mark: state.mark, space: state.space && !at }];
    const raised = data.slice();
    let end = at;
    for (; end < data.length && end - at < most && isLetter(data[end]); end++) raised[end] &= ~32;
    if (state.mark === this.caps && end === data.length) inside.mark = state.mark;
    return [raised, inside];
  }

  /* Text of tokens one by one, complete characters only, the first after those in `after`. */
  stream(after = []) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const stream = {
      state: this.stateAfter(after),
      push: (token) => {
        const [bytes, state] = this.next(token, stream.state);
        stream.state = state;
        return decoder.decode(bytes, { stream: true });
      },
      flush: () => decoder.decode(),
    };
    return stream;
  }
}

if (typeof module !== "undefined") module.exports = { Tokenizer };
