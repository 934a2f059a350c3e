// Texts by the words they have: what a tokenizer makes of a word need be asked once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "texts.h"

namespace hybridfast {

// What stands between words: bytes below 0x80.
struct Separators {
  std::string bytes;
  bool in_runs;  // a tokenizer takes several of them in a row, or one at an end of the text, as it takes one
  bool kept;     // and takes one for the begin of the word behind it
};

// The words of texts, by number. Those that texts bring are fresh until `add` says what ids they have.
class WordTable {
 public:
  struct Found {
    std::vector<std::int32_t> words;     // of all texts, one after the other
    std::vector<std::int64_t> indptr;    // texts + 1
    std::vector<std::uint8_t> is_whole;  // texts that a tokenizer has to read as they are: no words here
    std::vector<std::int64_t> fresh;     // where each fresh word begins and ends in the texts' data
  };

  // With more than so many words, all are forgotten: a million take some 100 MB.
  WordTable(Separators separators, std::size_t most);

  // Words that nobody has told the ids of by the next call are forgotten, with all others.
  Found find(const TextSpans& texts);

  // The ids of the fresh words, in their order: of word i, ids[indptr[i]] to ids[indptr[i + 1] - 1]. A word
  // that is not `plain` has others where it stands beside words.
  void add(std::span<const std::int32_t> ids, std::span<const std::int64_t> indptr,
           std::span<const std::uint8_t> is_plain);

  // Appends the ids of texts as `find` gave them, at most `room` of each, between head and tail. A length is
  // -1, and there are no ids, where a word of the text is not plain or the text is to be read whole.
  void gather(const std::int32_t* words, std::span<const std::int64_t> indptr, const std::uint8_t* is_whole,
              std::span<const std::int32_t> head, std::span<const std::int32_t> tail, std::int64_t room,
              std::vector<std::int32_t>& ids, std::int64_t* lengths) const;

  std::size_t known() const { return is_plain_.size(); }
  std::size_t fresh() const { return hashes_.size() - is_plain_.size(); }

 private:
  struct Slot {
    std::uint32_t tag;  // of the hash, to compare before the word's bytes
    std::int32_t word;  // -1: nothing here
  };
  struct Piece {  // of a text
    const std::uint8_t* begin;
    std::size_t bytes;
    std::int32_t word;
    std::uint64_t hash;
  };

  void clear();
  void split(const std::uint8_t* begin, const std::uint8_t* end);  // into pieces_
  std::int32_t look_up(const Piece& piece) const;
  std::int32_t insert(const Piece& piece);
  void grow();
  std::string_view bytes_of(std::int32_t word) const;

  Separators separators_;
  std::size_t most_;
  bool is_separator_[256] = {};
  std::vector<Slot> slots_;             // as many as a power of two, at most half of them taken
  std::string bytes_;                   // of all words
  std::vector<std::uint64_t> starts_;   // words + 1, in bytes_
  std::vector<std::uint64_t> hashes_;   // of each word
  std::vector<std::int32_t> ids_;       // of all words
  std::vector<std::uint64_t> indptr_;   // known words + 1, in ids_
  std::vector<std::uint8_t> is_plain_;  // of each known word
  std::vector<Piece> pieces_;           // of the text at hand
};

}  // namespace hybridfast
