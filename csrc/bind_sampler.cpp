#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bindings.h"
#include "sampler/gather.h"
#include "sampler/pipeline.h"
#include "sampler/plan.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

using namespace sampler;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using MaybeArray = std::optional<Array<T>>;
using MaybeTokens = std::optional<std::variant<Array<std::int32_t>, Array<std::uint16_t>>>;

// A corpus and the arrays that it views.
struct CorpusOfArrays : Corpus {
  py::tuple arrays;
};

// A plan's options and the array that they view.
struct PlanOptions : Options {
  MaybeArray<std::int32_t> batches;
};

// What batches are made with, and the arrays that it views.
struct BoundGatherOptions : GatherOptions {
  std::vector<py::array> arrays;
};

// A corpus, its plan and what its batches are made with; shared by the sampler object and its pipelines.
struct Source {
  Source(const CorpusOfArrays& corpus, const PlanOptions& options, const BoundGatherOptions& gather_options)
      : arrays(py::make_tuple(corpus.arrays, options.batches, py::cast(gather_options.arrays))),
        plan(corpus, options),
        gather(gather_options),
        vectors(gather_options.arrays) {}

  py::tuple arrays;  // keeps the memory behind the plan's pointers
  Plan plan;
  GatherOptions gather;
  std::vector<py::array> vectors;  // the group_vectors, for their shapes and dtypes
  std::shared_ptr<BatchPool> pool = std::make_shared<BatchPool>();
  std::shared_ptr<Stats> stats = std::make_shared<Stats>(plan.options().languages.size());
};

template <class T>
const T* pointer(const MaybeArray<T>& array) {
  return array ? array->data() : nullptr;
}

void check_size(const char* name, py::ssize_t size, py::ssize_t wanted) {
  if (size == wanted) return;
  throw std::invalid_argument(std::string(name) + " must have " + std::to_string(wanted) + " elements, got " +
                              std::to_string(size));
}

CorpusOfArrays make_corpus(
    const Array<std::int32_t>& version_GL, const MaybeArray<std::int64_t>& source_indptr,
    const MaybeArray<std::int32_t>& order_G, const MaybeArray<std::uint64_t>& present_LW,
    std::uint32_t versions, const MaybeArray<std::int32_t>& item_G,
    const MaybeArray<std::uint64_t>& query_hash_V, const MaybeArray<std::uint64_t>& passage_hash_V,
    const MaybeArray<std::uint64_t>& negative_hash_H, const MaybeArray<std::int64_t>& version_indptr,
    const MaybeArray<std::int64_t>& text_indptr, const MaybeTokens& token_ids, std::int64_t pad_id,
    const std::vector<std::tuple<std::string, std::int64_t, std::int64_t>>& files) {
  if (version_GL.ndim() != 2) throw std::invalid_argument("version_GL must be (groups, languages)");
  CorpusOfArrays corpus;
  corpus.arrays = py::make_tuple(version_GL, source_indptr, order_G, present_LW, item_G, query_hash_V,
                                 passage_hash_V, negative_hash_H, version_indptr, text_indptr, token_ids);
  corpus.version_GL = version_GL.data();
  corpus.groups = static_cast<std::uint32_t>(version_GL.shape(0));
  corpus.languages = static_cast<std::uint32_t>(version_GL.shape(1));
  corpus.versions = versions;
  if (source_indptr) {
    const auto* const first = source_indptr->data();
    const auto* const end = first + source_indptr->size();
    if (first == end || *first != 0 || end[-1] != corpus.groups || !std::is_sorted(first, end))
      throw std::invalid_argument("source_indptr must ascend from 0 to " + std::to_string(corpus.groups));
    corpus.sources = static_cast<std::uint32_t>(source_indptr->size() - 1);
  }
  corpus.source_indptr = pointer(source_indptr);
  if (order_G && order_G->size()) {
    check_size("order_G", order_G->size(), version_GL.shape(0));
    corpus.order_G = pointer(order_G);
  }
  if (present_LW) {
    const py::ssize_t words = (version_GL.shape(0) + 63) / 64;
    check_size("present_LW", present_LW->size(), version_GL.shape(1) * words);
  }
  corpus.present_LW = pointer(present_LW);
  if (item_G) check_size("item_G", item_G->size(), version_GL.shape(0));
  corpus.item_G = pointer(item_G);
  if (query_hash_V) check_size("query_hash_V", query_hash_V->size(), versions);
  corpus.query_hash_V = pointer(query_hash_V);
  if (passage_hash_V) check_size("passage_hash_V", passage_hash_V->size(), versions);
  corpus.passage_hash_V = pointer(passage_hash_V);
  if (token_ids) {
    check_size("version_indptr", version_indptr->size(), py::ssize_t{versions} + 1);
    corpus.version_indptr = pointer(version_indptr);
    corpus.text_indptr = pointer(text_indptr);
    corpus.texts = text_indptr->size() - 1;
    if (negative_hash_H) check_size("negative_hash_H", negative_hash_H->size(), corpus.negatives());
    corpus.negative_hash_H = pointer(negative_hash_H);
    if (const auto* ids = std::get_if<Array<std::int32_t>>(&*token_ids)) {
      corpus.token_ids = ids->data();
      corpus.tokens = ids->size();
    } else {
      const auto& narrow = std::get<Array<std::uint16_t>>(*token_ids);
      corpus.narrow_token_ids = narrow.data();
      corpus.tokens = narrow.size();
    }
    corpus.pad_id = pad_id;
  }
  for (const auto& [path, bytes, modified_ns] : files) corpus.files.push_back({path, bytes, modified_ns});
  return corpus;
}

// A field that Python sets by the name of one of its values; None is a name too.
template <class Bound, class Owner, class Value>
void def_choice(Bound& bound, const char* name, Value Owner::* field,
                std::vector<std::pair<std::optional<std::string>, Value>> values) {
  const auto set = [name, field, values = std::move(values)](typename Bound::type& self,
                                                             const std::optional<std::string>& chosen) {
    for (const auto& [value_name, value] : values) {
      if (value_name == chosen) {
        self.*field = value;
        return;
      }
    }
    throw std::invalid_argument(std::string(name) + " cannot be " + chosen.value_or("None"));
  };
  bound.def_property(name, nullptr, set);
}

template <class T>
py::array view(const Memory& memory, std::vector<py::ssize_t> shape, const py::capsule& owner) {
  return py::array(py::dtype::of<T>(), std::move(shape), memory.as<T>(), owner);
}

py::object texts_view(const Texts& texts, const GatherOptions& options, const py::capsule& owner) {
  const auto rows = static_cast<py::ssize_t>(texts.texts), length = static_cast<py::ssize_t>(texts.length);
  const std::vector<py::ssize_t> padded{rows, length}, flat_ids{static_cast<py::ssize_t>(texts.tokens)},
      flat_offsets{rows};
  const auto& ids = options.flat ? flat_ids : padded;
  const auto& mask = options.flat ? flat_offsets : padded;
  return options.wide ? py::make_tuple(view<std::int64_t>(texts.ids, ids, owner),
                                       view<std::int64_t>(texts.mask, mask, owner))
                      : py::make_tuple(view<std::int32_t>(texts.ids, ids, owner),
                                       view<std::int32_t>(texts.mask, mask, owner));
}

const char* name(Mode mode) {
  constexpr const char* kNames[] = {"mono", "cross", "same", "rows"};
  return kNames[static_cast<std::size_t>(mode)];
}

// Arrays that view the batch's memory; the last of them to go gives the memory back to the pool.
py::object batch_view(const Source& source, std::shared_ptr<Batch> batch) {
  if (!batch) return py::none();
  auto* held = new std::shared_ptr<Batch>(std::move(batch));
  const py::capsule owner(held, [](void* pointer) { delete static_cast<std::shared_ptr<Batch>*>(pointer); });
  const Batch& b = **held;
  const auto rows = static_cast<py::ssize_t>(b.rows);
  const GatherOptions& options = source.gather;
  const bool texts = source.plan.corpus().has_tokens(), negatives = texts && options.negatives;
  const py::tuple arrays = py::make_tuple(
      view<std::int64_t>(b.groups, {rows}, owner), view<std::int64_t>(b.query_languages, {rows}, owner),
      view<std::int64_t>(b.passage_languages, {rows}, owner), view<bool>(b.flagged, {rows}, owner),
      view<std::int64_t>(b.mask_groups, {rows}, owner));
  const py::object none = py::none();
  const auto second = [&](Second side, const Texts& of, const Memory& languages) {
    if (!options.wants(side)) return std::pair(none, none);
    return std::pair(texts ? texts_view(of, options, owner) : none,
                     py::object(view<std::int64_t>(languages, {rows}, owner)));
  };
  const auto [second_queries, second_query_languages] =
      second(Second::kQueries, b.second_queries, b.second_query_languages);
  const auto [second_passages, second_passage_languages] =
      second(Second::kPassages, b.second_passages, b.second_passage_languages);
  py::tuple vectors(source.vectors.size());
  for (std::size_t i = 0; i < source.vectors.size(); ++i) {
    vectors[i] = py::array(source.vectors[i].dtype(), {rows, source.vectors[i].shape(1)},
                           b.group_vectors[i].as<std::byte>(), owner);
  }
  return py::make_tuple(
      b.epoch, b.index, name(b.mode), arrays, texts ? texts_view(b.queries, options, owner) : none,
      texts ? texts_view(b.passages, options, owner) : none,
      negatives ? texts_view(b.negatives, options, owner) : none,
      negatives ? view<std::int64_t>(b.negative_rows, {static_cast<py::ssize_t>(b.negatives_found)}, owner)
                : none,
      negatives
          ? view<std::int64_t>(b.negative_mask_groups, {static_cast<py::ssize_t>(b.negatives_found)}, owner)
          : none,
      py::make_tuple(second_queries, second_query_languages, second_passages, second_passage_languages,
                     vectors));
}

std::shared_ptr<Schedule> make_schedule(const Source& source, std::uint32_t epoch,
                                        const Array<double>& given) {
  const std::vector<double> alphas(given.data(), given.data() + given.size());
  if (alphas.size() != 1 && alphas.size() != source.plan.batches()) {
    throw std::invalid_argument("alphas must have 1 or " + std::to_string(source.plan.batches()) +
                                " elements");
  }
  const py::gil_scoped_release release;
  return std::make_shared<Schedule>(source.plan, epoch, alphas);
}

void check_index(const Source& source, std::uint32_t index) {
  if (index < source.plan.batches()) return;
  throw py::index_error("batch " + std::to_string(index) + " of an epoch of " +
                        std::to_string(source.plan.batches()));
}

// A pipeline as Python sees it; `busy` turns use by two threads at once into an error.
struct PyPipeline {
  PyPipeline(std::shared_ptr<Source> of, std::shared_ptr<Schedule> epoch, std::uint32_t first,
             std::size_t threads, std::size_t prefetch)
      : source(std::move(of)),
        schedule(std::move(epoch)),
        pipeline(
            [plan = &source->plan, gather = &source->gather, schedule = schedule.get()]() -> Pipeline::Build {
              return [gatherer = std::make_shared<Gatherer>(*plan, *gather), schedule](
                         std::uint32_t index, Batch& out) { gatherer->build(*schedule, index, out); };
            },
            first, source->plan.batches(), threads, prefetch, source->pool, source->stats) {}

  template <class Use>
  auto alone(Use use) {
    struct Guard {
      std::atomic_flag& flag;
      ~Guard() { flag.clear(); }
    };
    if (busy.test_and_set()) throw std::runtime_error("this iterator is in use by another thread");
    const Guard guard{busy};
    const py::gil_scoped_release release;
    return use();
  }

  std::shared_ptr<Source> source;
  std::shared_ptr<Schedule> schedule;
  Pipeline pipeline;
  std::atomic_flag busy;
};

}  // namespace

void register_sampler(py::module_& module) {
  py::class_<Schedule, std::shared_ptr<Schedule>>(module, "Schedule")
      .def_property_readonly("epoch", &Schedule::epoch);

  py::class_<CorpusOfArrays>(module, "Corpus")
      .def(py::init(&make_corpus), py::kw_only(), py::arg("version_GL").noconvert(),
           py::arg("source_indptr").noconvert(), py::arg("order_G").noconvert(),
           py::arg("present_LW").noconvert(), py::arg("versions"), py::arg("item_G").noconvert(),
           py::arg("query_hash_V").noconvert(), py::arg("passage_hash_V").noconvert(),
           py::arg("negative_hash_H").noconvert(), py::arg("version_indptr").noconvert(),
           py::arg("text_indptr").noconvert(), py::arg("token_ids").noconvert(), py::arg("pad_id"),
           py::arg("files"));

  // Where HybridSampler has an option of a field's name, it sets that field.
  py::class_<PlanOptions> plan(module, "PlanOptions");
  plan.def(py::init<>())
      .def_readwrite("seed", &PlanOptions::seed)
      .def_readwrite("batch_size", &PlanOptions::batch_size)
      .def_readwrite("languages", &PlanOptions::languages)
      .def_readwrite("language_names", &PlanOptions::language_names)
      .def_readwrite("language_weights", &PlanOptions::language_weights)
      .def_readwrite("source_names", &PlanOptions::source_names)
      .def_readwrite("source_weights", &PlanOptions::source_weights)
      .def_readwrite("temperature", &PlanOptions::temperature)
      .def_readwrite("dedup_window", &PlanOptions::dedup_window)
      .def_readwrite("length_buckets", &PlanOptions::length_buckets)
      .def_readwrite("batches_per_epoch", &PlanOptions::batches_per_epoch)
      .def_property("batches", nullptr,
                    py::cpp_function(
                        [](PlanOptions& self, const MaybeArray<std::int32_t>& batches) {
                          self.batches = batches;
                          self.predefined_NB3 = pointer(batches);
                        },
                        py::is_method(plan), py::arg().noconvert()));
  def_choice(plan, "cross", &Options::cross,
             {{"mixed", Cross::kMixed}, {"paired", Cross::kPaired}, {"same", Cross::kSame}});
  def_choice(plan, "mix", &Options::mix_rows, {{"batches", false}, {"rows", true}});
  def_choice(plan, "draw", &Options::stratified, {{"bernoulli", false}, {"stratified", true}});
  def_choice(plan, "sources", &Options::single_source, {{"mixed", false}, {"single", true}});
  def_choice(plan, "dedup", &Options::dedup,
             {{"group", Dedup::kGroup}, {"text", Dedup::kText}, {std::nullopt, Dedup::kNone}});

  py::class_<BoundGatherOptions> gather(module, "GatherOptions");
  gather.def(py::init<>())
      .def_readwrite("rank", &BoundGatherOptions::rank)
      .def_readwrite("world_size", &BoundGatherOptions::world_size)
      .def_readwrite("negatives", &BoundGatherOptions::negatives)
      .def_readwrite("pad_to_multiple_of", &BoundGatherOptions::pad_to_multiple_of)
      .def_property(
          "group_vectors", nullptr, [](BoundGatherOptions& self, const std::vector<py::array>& arrays) {
            self.arrays = arrays;
            self.group_vectors.clear();
            for (const py::array& array : arrays) {
              self.group_vectors.push_back(
                  {static_cast<const std::byte*>(array.data()), static_cast<std::size_t>(array.strides(0))});
            }
          });
  def_choice(gather, "second", &GatherOptions::second,
             {{"none", Second::kNone},
              {"queries", Second::kQueries},
              {"passages", Second::kPassages},
              {"both", Second::kBoth}});
  def_choice(gather, "layout", &GatherOptions::flat, {{"padded", false}, {"flat", true}});
  def_choice(gather, "token_dtype", &GatherOptions::wide, {{"int64", true}, {"int32", false}});

  py::class_<Source, std::shared_ptr<Source>>(module, "Sampler")
      .def(py::init<const CorpusOfArrays&, const PlanOptions&, const BoundGatherOptions&>(),
           py::arg("corpus"), py::arg("plan"), py::arg("gather"))
      .def_property_readonly("batches", [](const Source& source) { return source.plan.batches(); })
      .def_property_readonly("coverage", [](const Source& source) { return source.plan.coverage(); })
      .def_property_readonly("left_out", [](const Source& source) { return source.plan.left_out(); })
      .def_property_readonly("errors",
                             [](const Source& source) {
                               return py::make_tuple(source.plan.choice(true).error,
                                                     source.plan.choice(false).error);
                             })
      .def("schedule", &make_schedule, py::arg("epoch"), py::arg("alphas"))
      .def(
          "build",
          [](const std::shared_ptr<Source>& source, const Schedule& schedule, std::uint32_t index) {
            check_index(*source, index);
            auto batch = std::make_shared<Batch>();
            {
              const py::gil_scoped_release release;
              Gatherer(source->plan, source->gather).build(schedule, index, *batch);
            }
            return batch_view(*source, std::move(batch));
          },
          py::arg("schedule"), py::arg("index"))
      .def("stats", [](const Source& source) {
        const Stats& stats = *source.stats;
        py::dict counts;
        counts["batches"] = stats.batches.load();
        counts["helped"] = stats.helped.load();
        counts["late"] = stats.late.load();
        counts["waits"] = stats.waits.load();
        counts["wait_seconds"] = static_cast<double>(stats.wait_ns.load()) * 1e-9;
        counts["discarded"] = stats.discarded.load();
        counts["flagged"] = stats.flagged.load();
        counts["tokens"] = stats.tokens.load();
        counts["padding"] = stats.padding.load();
        for (const Mode mode : {Mode::kMono, Mode::kCross, Mode::kSame, Mode::kRows}) {
          counts[name(mode)] = stats.modes[static_cast<std::size_t>(mode)].load();
        }
        counts["query_languages"] =
            std::vector<std::uint64_t>(stats.query_languages.begin(), stats.query_languages.end());
        counts["passage_languages"] =
            std::vector<std::uint64_t>(stats.passage_languages.begin(), stats.passage_languages.end());
        return counts;
      });

  py::class_<PyPipeline>(module, "Pipeline")
      .def(py::init<std::shared_ptr<Source>, std::shared_ptr<Schedule>, std::uint32_t, std::size_t,
                    std::size_t>(),
           py::arg("sampler"), py::arg("schedule"), py::arg("first"), py::arg("threads"), py::arg("prefetch"))
      .def("next",
           [](PyPipeline& self) {
             auto batch = self.alone([&] { return self.pipeline.next(); });
             return batch_view(*self.source, std::move(batch));
           })
      .def("close", [](PyPipeline& self) { self.alone([&] { self.pipeline.close(); }); });

  module.def(
      "philox",
      [](std::array<std::uint32_t, 4> counter, std::uint64_t seed) { return philox(counter, seed); },
      py::arg("counter"), py::arg("seed"));
  module.def(
      "permutation",
      [](std::uint32_t n, std::uint64_t seed, std::uint32_t cell, std::uint32_t epoch, std::uint32_t pass) {
        py::array_t<std::uint32_t> out(n);
        Permutation(n, seed, word(Purpose::kOrder, cell), epoch, pass).range(0, n, out.mutable_data());
        return out;
      },
      py::arg("n"), py::arg("seed"), py::arg("cell") = 0, py::arg("epoch") = 0, py::arg("pass_") = 0);
}

}  // namespace hybridfast
