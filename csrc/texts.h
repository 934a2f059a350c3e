// Columns of text as their bytes: hashes that Python's hashlib gives, and the JSON that its json gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace hybridfast {

// Texts one after the other: text i is data[indptr[i]] to data[indptr[i + 1] - 1].
struct TextSpans {
  const std::uint8_t* data;
  std::span<const std::int64_t> indptr;  // texts + 1

  std::size_t size() const { return indptr.size() - 1; }
};

// Whether all texts are UTF-8 (RFC 3629): no surrogates, nothing longer than it has to be or above U+10FFFF.
bool are_utf8(const TextSpans& texts);

// BLAKE2b (RFC 7693) of every text, of 8 * words bytes; out: (texts, words), little-endian words of the
// digest.
void hash_texts(const TextSpans& texts, int words, std::uint64_t* out);

// Appends the texts, which are UTF-8, as json.dumps of their list writes them.
void append_json(const TextSpans& texts, std::string& out);

// The same of lists of texts: list i has the texts list_indptr[i] to list_indptr[i + 1] - 1.
void append_json(const TextSpans& texts, std::span<const std::int64_t> list_indptr, std::string& out);

}  // namespace hybridfast
