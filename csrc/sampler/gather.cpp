#include "sampler/gather.h"

#include <sys/stat.h>

#include <algorithm>
#include <new>
#include <stdexcept>

namespace hybridfast::sampler {
namespace {

constexpr std::size_t kAhead = 16;  // rows between a prefetch and its use

}  // namespace

void Memory::grow(std::size_t bytes) {
  if (bytes <= bytes_) return;
  std::free(data_);
  bytes_ = 0;
  const std::size_t lines =
      (bytes + bytes / 4) / 64 + 1;  // room to spare, or every record length reallocates
  data_ = std::aligned_alloc(64, lines * 64);
  if (!data_) throw std::bad_alloc();
  bytes_ = lines * 64;
}

void Gatherer::check_files() const {
  for (const File& file : options_.files) {
    struct stat now{};
    if (stat(file.path.c_str(), &now) != 0) throw std::runtime_error("corpus file is gone: " + file.path);
    const std::int64_t modified = now.st_mtim.tv_sec * std::int64_t{1000000000} + now.st_mtim.tv_nsec;
    if (now.st_size != file.bytes || modified != file.modified_ns) {
      throw std::runtime_error("corpus file was changed after the sampler was made: " + file.path + " (" +
                               std::to_string(file.bytes) + " bytes then, " + std::to_string(now.st_size) +
                               " now)");
    }
  }
}

void Gatherer::build(const Schedule& schedule, std::uint32_t index, Batch& out) {
  check_files();
  planner_.plan(schedule, index, planned_);

  const std::size_t rows = planned_.rows.size() / options_.world_size;
  const std::size_t first = rows * options_.rank;
  const Row* row = planned_.rows.data() + first;
  out.epoch = schedule.epoch();
  out.index = index;
  out.mode = planned_.mode;
  out.rows = rows;
  auto* groups = out.groups.resize<std::int64_t>(rows);
  auto* query_languages = out.query_languages.resize<std::int64_t>(rows);
  auto* passage_languages = out.passage_languages.resize<std::int64_t>(rows);
  auto* mask_groups = out.mask_groups.resize<std::int64_t>(rows);
  auto* flagged = out.flagged.resize<std::uint8_t>(rows);
  out.flagged_found = 0;
  out.query_language_rows.assign(plan_.options().languages.size(), 0);
  out.passage_language_rows.assign(plan_.options().languages.size(), 0);
  for (std::size_t i = 0; i < rows; ++i) {
    groups[i] = row[i].group;
    query_languages[i] = row[i].query;
    passage_languages[i] = row[i].passage;
    mask_groups[i] = planned_.flagged.empty() ? row[i].group : planned_.mask_groups[first + i];
    flagged[i] = planned_.flagged.empty() ? 0 : planned_.flagged[first + i];
    out.flagged_found += flagged[i];
    ++out.query_language_rows[row[i].query];
    ++out.passage_language_rows[row[i].passage];
  }
  const Corpus& corpus = plan_.corpus();
  if (!corpus.token_ids) return;

  // Group -> version -> text -> tokens are dependent cache misses, so each step runs over all rows,
  // prefetched.
  query_texts_.resize(rows);
  passage_texts_.resize(rows);
  passage_ends_.resize(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    if (i + kAhead < rows) {
      __builtin_prefetch(&corpus.version_GL[std::size_t{row[i + kAhead].group} * corpus.languages]);
    }
    query_texts_[i] = plan_.version(row[i].group, row[i].query);
    passage_texts_[i] = plan_.version(row[i].group, row[i].passage);
    if (static_cast<std::uint64_t>(query_texts_[i]) >= corpus.versions ||
        static_cast<std::uint64_t>(passage_texts_[i]) >= corpus.versions) {
      throw std::runtime_error("version_GL changed after the sampler was made: group " +
                               std::to_string(row[i].group));
    }
  }
  for (std::size_t i = 0; i < rows; ++i) {
    if (i + kAhead < rows) {
      __builtin_prefetch(&corpus.version_indptr[query_texts_[i + kAhead]]);
      __builtin_prefetch(&corpus.version_indptr[passage_texts_[i + kAhead]]);
    }
    const std::int64_t passage = passage_texts_[i];
    query_texts_[i] = corpus.version_indptr[query_texts_[i]];
    passage_texts_[i] = corpus.version_indptr[passage] + 1;
    passage_ends_[i] = corpus.version_indptr[passage + 1];
  }
  find_texts(query_texts_);
  write(out.queries);
  find_texts(passage_texts_);
  write(out.passages);
  if (options_.negatives == 0) return;
  choose_negatives(out);
  find_texts(negative_texts_);
  write(out.negatives);
}

// Where the tokens of these texts lie.
void Gatherer::find_texts(const std::vector<std::int64_t>& texts) {
  const Corpus& corpus = plan_.corpus();
  spans_.resize(texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (i + kAhead < texts.size()) __builtin_prefetch(&corpus.text_indptr[texts[i + kAhead]]);
    const std::int64_t text = texts[i];
    if (text < 0 || text >= corpus.texts) {
      throw std::runtime_error("version_indptr points to text " + std::to_string(text) + " of " +
                               std::to_string(corpus.texts));
    }
    const std::int64_t begin = corpus.text_indptr[text], end = corpus.text_indptr[text + 1];
    if (begin < 0 || end < begin || end > corpus.tokens) {
      throw std::runtime_error("text_indptr: text " + std::to_string(text) + " spans tokens " +
                               std::to_string(begin) + ":" + std::to_string(end) + " of " +
                               std::to_string(corpus.tokens));
    }
    spans_[i] = {begin, end - begin};
  }
}

// Up to `negatives` of each row's, keyed by the row's place in the global batch; all in equal probability.
void Gatherer::choose_negatives(Batch& out) {
  const std::size_t rows = out.rows;
  auto* negative_rows = out.negative_rows.resize<std::int64_t>(rows * options_.negatives);
  negative_texts_.clear();
  for (std::size_t i = 0; i < rows; ++i) {
    const std::int64_t first = passage_texts_[i] + 1;
    auto left = static_cast<std::uint32_t>(std::max<std::int64_t>(passage_ends_[i] - first, 0));
    std::uint32_t wanted = std::min(left, options_.negatives);
    Random random(plan_.options().seed,
                  word(Purpose::kNegatives, static_cast<std::uint32_t>(rows * options_.rank + i)), out.epoch,
                  out.index);
    for (std::int64_t text = first; wanted; ++text, --left) {
      if (wanted < left && random.below(left) >= wanted) continue;
      negative_rows[negative_texts_.size()] = static_cast<std::int64_t>(i);
      negative_texts_.push_back(text);
      --wanted;
    }
  }
  out.negatives_found = negative_texts_.size();
}

void Gatherer::write(Texts& out) {
  out.texts = spans_.size();
  out.tokens = out.length = 0;
  for (const Span& span : spans_) {
    out.tokens += static_cast<std::size_t>(span.count);
    out.length = std::max(out.length, static_cast<std::size_t>(span.count));
  }
  const std::size_t multiple = options_.pad_to_multiple_of;
  out.length = std::max<std::size_t>((out.length + multiple - 1) / multiple * multiple, 1);
  out.padding = options_.flat ? 0 : out.texts * out.length - out.tokens;
  if (options_.flat) {
    options_.wide ? write_flat<std::int64_t>(out) : write_flat<std::int32_t>(out);
  } else {
    options_.wide ? write_padded<std::int64_t>(out) : write_padded<std::int32_t>(out);
  }
}

template <class Int>
void Gatherer::write_padded(Texts& out) const {
  const Corpus& corpus = plan_.corpus();
  Int* ids = out.ids.resize<Int>(out.texts * out.length);
  Int* mask = out.mask.resize<Int>(out.texts * out.length);
  const auto pad = static_cast<Int>(corpus.pad_id);
  for (std::size_t i = 0; i < spans_.size(); ++i, ids += out.length, mask += out.length) {
    if (i + kAhead < spans_.size()) __builtin_prefetch(corpus.token_ids + spans_[i + kAhead].first);
    const auto count = static_cast<std::size_t>(spans_[i].count);
    std::copy_n(corpus.token_ids + spans_[i].first, count, ids);
    std::fill(ids + count, ids + out.length, pad);
    std::fill_n(mask, count, Int{1});
    std::fill(mask + count, mask + out.length, Int{0});
  }
}

template <class Int>
void Gatherer::write_flat(Texts& out) const {
  const Corpus& corpus = plan_.corpus();
  Int* ids = out.ids.resize<Int>(std::max<std::size_t>(out.tokens, 1));
  Int* offsets = out.mask.resize<Int>(std::max<std::size_t>(out.texts, 1));
  Int offset = 0;
  for (std::size_t i = 0; i < spans_.size(); ++i) {
    if (i + kAhead < spans_.size()) __builtin_prefetch(corpus.token_ids + spans_[i + kAhead].first);
    offsets[i] = offset;
    std::copy_n(corpus.token_ids + spans_[i].first, static_cast<std::size_t>(spans_[i].count), ids + offset);
    offset += static_cast<Int>(spans_[i].count);
  }
}

}  // namespace hybridfast::sampler
