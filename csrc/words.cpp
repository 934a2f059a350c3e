#include "words.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace hybridfast {
namespace {

constexpr std::size_t kMeanBytes = 32;  // of a word: with more than `most` of such, too, all are forgotten
constexpr std::size_t kFirstSlots = 1 << 12;
// A text of a script without blanks comes in pieces that no other text has. To ask for each would cost more
// than to ask for the text.
constexpr std::size_t kLong = 32;  // bytes

std::uint64_t mixed(std::uint64_t a, std::uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t hash_of(const std::uint8_t* data, std::size_t bytes) {
  constexpr std::uint64_t kFirst = 0x9e3779b97f4a7c15, kSecond = 0xc2b2ae3d27d4eb4f;
  std::uint64_t hash = kFirst ^ bytes, word;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    std::memcpy(&word, data, 8);
    hash = mixed(hash ^ word, kSecond);
  }
  word = 0;
  if (bytes) std::memcpy(&word, data, bytes);
  return mixed(hash ^ word, kSecond);
}

}  // namespace

WordTable::WordTable(Separators separators, std::size_t most)
    : separators_(std::move(separators)), most_(most) {
  for (const char byte : separators_.bytes) is_separator_[static_cast<std::uint8_t>(byte)] = true;
  clear();
}

void WordTable::clear() {
  slots_.assign(kFirstSlots, {0, -1});
  bytes_.clear();
  starts_.assign(1, 0);
  hashes_.clear();
  ids_.clear();
  indptr_.assign(1, 0);
  is_plain_.clear();
}

std::string_view WordTable::bytes_of(std::int32_t word) const {
  const auto i = static_cast<std::size_t>(word);
  return std::string_view(bytes_).substr(starts_[i], starts_[i + 1] - starts_[i]);
}

void WordTable::split(const std::uint8_t* begin, const std::uint8_t* end) {
  pieces_.clear();
  for (const std::uint8_t* word = begin;;) {
    const std::uint8_t* stop = word;
    while (stop < end && !is_separator_[*stop]) ++stop;
    if (stop > word || !separators_.in_runs) {
      const std::uint8_t* const first = word - (separators_.kept && word > begin && stop > word);
      const auto bytes = static_cast<std::size_t>(stop - first);
      pieces_.push_back({first, bytes, -1, hash_of(first, bytes)});
      __builtin_prefetch(&slots_[pieces_.back().hash & (slots_.size() - 1)]);
    }
    if (stop >= end) return;
    word = stop + 1;
  }
}

std::int32_t WordTable::look_up(const Piece& piece) const {
  const std::string_view bytes(reinterpret_cast<const char*>(piece.begin), piece.bytes);
  const auto tag = static_cast<std::uint32_t>(piece.hash >> 32);
  for (std::size_t i = piece.hash;; ++i) {
    const Slot& slot = slots_[i & (slots_.size() - 1)];
    if (slot.word < 0 || (slot.tag == tag && bytes_of(slot.word) == bytes)) return slot.word;
  }
}

std::int32_t WordTable::insert(const Piece& piece) {
  if (2 * (hashes_.size() + 1) > slots_.size()) grow();
  const auto word = static_cast<std::int32_t>(hashes_.size());
  hashes_.push_back(piece.hash);  // first: where memory ends below, a word stays that nobody tells the ids of
  bytes_.append(reinterpret_cast<const char*>(piece.begin), piece.bytes);
  starts_.push_back(bytes_.size());
  std::size_t i = piece.hash;
  while (slots_[i & (slots_.size() - 1)].word >= 0) ++i;
  slots_[i & (slots_.size() - 1)] = {static_cast<std::uint32_t>(piece.hash >> 32), word};
  return word;
}

void WordTable::grow() {
  slots_.assign(2 * slots_.size(), {0, -1});
  for (std::size_t word = 0; word < hashes_.size(); ++word) {
    std::size_t i = hashes_[word];
    while (slots_[i & (slots_.size() - 1)].word >= 0) ++i;
    slots_[i & (slots_.size() - 1)] = {static_cast<std::uint32_t>(hashes_[word] >> 32),
                                       static_cast<std::int32_t>(word)};
  }
}

WordTable::Found WordTable::find(const TextSpans& texts) {
  if (fresh() || hashes_.size() > most_ || bytes_.size() > kMeanBytes * most_) clear();
  Found found;
  found.indptr.assign(1, 0);
  for (std::size_t text = 0; text < texts.size(); ++text) {
    const std::uint8_t* const begin = texts.data + texts.indptr[text];
    const std::uint8_t* const end = texts.data + texts.indptr[text + 1];
    split(begin, end);
    bool whole = false;
    std::int64_t unshared = 0;
    for (Piece& piece : pieces_) {
      whole |= !piece.bytes && begin < end;  // separators in a row, or at an end, where that counts
      piece.word = look_up(piece);
      if (piece.word < 0 && piece.bytes > kLong) unshared += static_cast<std::int64_t>(piece.bytes);
    }
    whole |= 4 * unshared > end - begin;
    for (const Piece& piece : pieces_) {
      if (whole || !piece.bytes) continue;
      std::int32_t word = piece.word >= 0 ? piece.word : look_up(piece);  // the text may have it twice
      if (word < 0) {
        word = insert(piece);
        found.fresh.push_back(piece.begin - texts.data);
        found.fresh.push_back(piece.begin - texts.data + static_cast<std::int64_t>(piece.bytes));
      }
      found.words.push_back(word);
    }
    found.indptr.push_back(static_cast<std::int64_t>(found.words.size()));
    found.is_whole.push_back(whole);
  }
  return found;
}

void WordTable::add(std::span<const std::int32_t> ids, std::span<const std::int64_t> indptr,
                    std::span<const std::uint8_t> is_plain) {
  const std::uint64_t before = ids_.size();
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  for (std::size_t i = 1; i < indptr.size(); ++i)
    indptr_.push_back(before + static_cast<std::uint64_t>(indptr[i]));
  is_plain_.insert(is_plain_.end(), is_plain.begin(), is_plain.end());
}

void WordTable::gather(const std::int32_t* words, std::span<const std::int64_t> indptr,
                       const std::uint8_t* is_whole, std::span<const std::int32_t> head,
                       std::span<const std::int32_t> tail, std::int64_t room, std::vector<std::int32_t>& ids,
                       std::int64_t* lengths) const {
  for (std::size_t text = 0; text + 1 < indptr.size(); ++text) {
    const std::span mine(words + indptr[text], words + indptr[text + 1]);
    const auto is_plain = [&](std::int32_t word) { return is_plain_[static_cast<std::size_t>(word)] != 0; };
    if (is_whole[text] || !std::all_of(mine.begin(), mine.end(), is_plain)) {
      lengths[text] = -1;
      continue;
    }
    const std::size_t start = ids.size();
    ids.insert(ids.end(), head.begin(), head.end());
    auto left = static_cast<std::uint64_t>(room);
    for (const std::int32_t word : mine) {
      const std::uint64_t from = indptr_[static_cast<std::size_t>(word)];
      const std::uint64_t size = std::min(indptr_[static_cast<std::size_t>(word) + 1] - from, left);
      const std::int32_t* const first = ids_.data() + from;
      ids.insert(ids.end(), first, first + size);
      if (!(left -= size)) break;
    }
    ids.insert(ids.end(), tail.begin(), tail.end());
    lengths[text] = static_cast<std::int64_t>(ids.size() - start);
  }
}

}  // namespace hybridfast
