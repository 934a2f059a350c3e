#include "texts.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace hybridfast {
namespace {

// --- BLAKE2b, RFC 7693 -------------------------------------------------------------------------------------

constexpr std::uint64_t kStart[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                     0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                                     0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
constexpr std::uint8_t kOrder[10][16] = {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                                         {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
                                         {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
                                         {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
                                         {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
                                         {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
                                         {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
                                         {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
                                         {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
                                         {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};
constexpr std::size_t kBlock = 128;

inline void mix(std::uint64_t& a, std::uint64_t& b, std::uint64_t& c, std::uint64_t& d, std::uint64_t x,
                std::uint64_t y) {
  a += b + x;
  d = std::rotr(d ^ a, 32);
  c += d;
  b = std::rotr(b ^ c, 24);
  a += b + y;
  d = std::rotr(d ^ a, 16);
  c += d;
  b = std::rotr(b ^ c, 63);
}

void compress(std::uint64_t (&state)[8], const std::uint8_t* block, std::uint64_t bytes, bool last) {
  std::uint64_t m[16], v[16];
  std::memcpy(m, block, kBlock);
  if constexpr (std::endian::native == std::endian::big)
    for (std::uint64_t& word : m) word = __builtin_bswap64(word);
  for (int i = 0; i < 8; ++i) v[i] = state[i], v[8 + i] = kStart[i];
  v[12] ^= bytes;
  if (last) v[14] = ~v[14];
  // Unrolled, the order of words is known when this is compiled: they need not be looked up.
#pragma GCC unroll 12
  for (int round = 0; round < 12; ++round) {
    const std::uint8_t* s = kOrder[round % 10];
    mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
    mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
    mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
    mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
    mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
    mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
    mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
    mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
  }
  for (int i = 0; i < 8; ++i) state[i] ^= v[i] ^ v[8 + i];
}

void blake2b(const std::uint8_t* data, std::size_t bytes, int words, std::uint64_t* out) {
  std::uint64_t state[8];
  std::memcpy(state, kStart, sizeof state);
  state[0] ^= 0x01010000 ^ (8 * static_cast<std::uint64_t>(words));  // no key, one leaf
  std::size_t done = 0;
  for (; bytes - done > kBlock; done += kBlock) compress(state, data + done, done + kBlock, false);
  std::uint8_t rest[kBlock] = {};  // the last block, even of no bytes, is filled up with zeros
  if (bytes > done) std::memcpy(rest, data + done, bytes - done);
  compress(state, rest, bytes, true);
  std::memcpy(out, state, 8 * static_cast<std::size_t>(words));
}

// --- UTF-8 -------------------------------------------------------------------------------------------------

constexpr std::size_t kAtOnce = 256;  // bytes; some texts are ASCII for so long

// Whether a byte cannot follow these three; by comparisons alone, which compilers turn into vector code.
inline bool is_wrong(std::uint8_t byte, std::uint8_t before, std::uint8_t two_before,
                     std::uint8_t three_before) {
  const bool goes_on = (byte & 0xC0) == 0x80;
  const bool has_to = (before >= 0xC0) | (two_before >= 0xE0) | (three_before >= 0xF0);
  return (goes_on != has_to) | ((byte & 0xFE) == 0xC0) | (byte >= 0xF5)                // begins nothing
         | ((before == 0xE0) & (byte < 0xA0)) | ((before == 0xF0) & (byte < 0x90))     // too long
         | ((before == 0xED) & (byte >= 0xA0)) | ((before == 0xF4) & (byte >= 0x90));  // no character
}

bool is_utf8(const std::uint8_t* data, std::size_t bytes) {
  const auto at = [&](std::size_t i, std::size_t back) {
    return i < back ? std::uint8_t{0} : data[i - back];
  };
  std::size_t i = 0;
  std::uint8_t wrong = 0;
  for (; i < std::min(bytes, std::size_t{3}); ++i) wrong |= is_wrong(data[i], at(i, 1), at(i, 2), at(i, 3));
  for (; i + kAtOnce <= bytes && !wrong; i += kAtOnce) {
    const std::uint8_t* const block = data + i;
    std::uint8_t high = 0;
    for (int j = -3; j < static_cast<int>(kAtOnce); ++j) high |= block[j];
    if (high < 0x80) continue;
    for (int j = 0; j < static_cast<int>(kAtOnce); ++j)
      wrong |= is_wrong(block[j], block[j - 1], block[j - 2], block[j - 3]);
  }
  for (; i < bytes; ++i) wrong |= is_wrong(data[i], at(i, 1), at(i, 2), at(i, 3));
  return !wrong && at(bytes, 1) < 0xC0 && at(bytes, 2) < 0xE0 && at(bytes, 3) < 0xF0;
}

// --- JSON --------------------------------------------------------------------------------------------------

void append_unit(std::uint32_t unit, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  const char text[] = {'\\',           'u', kHex[unit >> 12 & 15], kHex[unit >> 8 & 15], kHex[unit >> 4 & 15],
                       kHex[unit & 15]};
  out.append(text, sizeof text);
}

// One character that is not written as itself; returns where the next one begins.
const std::uint8_t* append_escaped(const std::uint8_t* at, std::string& out) {
  const std::uint32_t first = *at;
  if (first < 0x80) {
    constexpr char kFrom[] = "\"\\\n\r\t\f\b", kTo[] = "\"\\nrtfb";
    const char* const found = first ? std::strchr(kFrom, static_cast<int>(first)) : nullptr;
    if (found) {
      out += '\\';
      out += kTo[found - kFrom];
    } else {
      append_unit(first, out);
    }
    return at + 1;
  }
  const int more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
  std::uint32_t code = first & (0x3f >> more);
  for (int i = 1; i <= more; ++i) code = code << 6 | (at[i] & 0x3f);
  if (code < 0x10000) {
    append_unit(code, out);
  } else {  // as the two halves of UTF-16
    append_unit(0xd800 + ((code - 0x10000) >> 10), out);
    append_unit(0xdc00 + ((code - 0x10000) & 0x3ff), out);
  }
  return at + 1 + more;
}

void append_text(const std::uint8_t* begin, const std::uint8_t* end, std::string& out) {
  const auto plain = [](std::uint8_t c) { return c >= ' ' && c < 0x7f && c != '"' && c != '\\'; };
  out += '"';
  for (const std::uint8_t* at = begin; at < end;) {
    const std::uint8_t* run = at;
    while (run < end && plain(*run)) ++run;
    out.append(reinterpret_cast<const char*>(at), static_cast<std::size_t>(run - at));
    at = run < end ? append_escaped(run, out) : end;
  }
  out += '"';
}

void append_range(const TextSpans& texts, std::int64_t begin, std::int64_t end, std::string& out) {
  for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
    if (i > static_cast<std::size_t>(begin)) out += ", ";
    append_text(texts.data + texts.indptr[i], texts.data + texts.indptr[i + 1], out);
  }
}

}  // namespace

bool are_utf8(const TextSpans& texts) {
  const auto first = texts.indptr.front(), end = texts.indptr.back();
  if (!is_utf8(texts.data + first, static_cast<std::size_t>(end - first))) return false;
  for (const std::int64_t begin : texts.indptr) {  // none within a character
    if (begin < end && (texts.data[begin] & 0xC0) == 0x80) return false;
  }
  return true;
}

void hash_texts(const TextSpans& texts, int words, std::uint64_t* out) {
  const auto size = static_cast<std::size_t>(words);
  const std::uint8_t* before = nullptr;
  std::size_t bytes_before = 0;
  for (std::size_t i = 0; i < texts.size(); ++i, out += size) {
    const std::uint8_t* const text = texts.data + texts.indptr[i];
    const auto bytes = static_cast<std::size_t>(texts.indptr[i + 1] - texts.indptr[i]);
    // Rows of one id, or of one query, mostly follow each other.
    if (before && bytes == bytes_before && std::equal(text, text + bytes, before))
      std::copy_n(out - size, size, out);
    else
      blake2b(text, bytes, words, out);
    before = text, bytes_before = bytes;
  }
}

void append_json(const TextSpans& texts, std::string& out) {
  append_range(texts, 0, static_cast<std::int64_t>(texts.size()), out);
}

void append_json(const TextSpans& texts, std::span<const std::int64_t> list_indptr, std::string& out) {
  for (std::size_t i = 0; i + 1 < list_indptr.size(); ++i) {
    out += i ? ", [" : "[";
    append_range(texts, list_indptr[i], list_indptr[i + 1], out);
    out += ']';
  }
}

}  // namespace hybridfast
