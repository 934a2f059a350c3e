"""The findings in words: tables of a hundred columns, and notes of what should worry the user."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridfast.inspection.lengths import SIDES

__all__ = ["notes", "text"]

WIDTH = 100
SOURCES = 20  # in a table; all of them are in the JSON
LISTED = 6  # languages or pairs in a note
WORST = 3  # languages whose texts are cut, a note each
SHOWN = 60  # characters of an example
# What is worth a note, as shares: truncated texts are told where the 99 % quantile is cut.
TRUNCATED, UNKNOWN, MANY_TOKENS, FEW_GROUPS = 0.01, 0.01, 2.0, 0.5
SHARED, UNTRANSLATED = 0.01, 0.05
DIFFERING = "rows whose query other items have with another passage"
INSIDE = {
    "query_in_passage": "passages that contain a query",
    "passage_in_passage": "passages that contain a passage",
}
UNLIKE = {
    "query_equals_passage": "rows whose query equals their passage",
    "query_without_letters": "rows whose query has no letter or digit",
    "passage_without_letters": "rows whose passage has no letter or digit",
}


def text(found: Mapping[str, Any]) -> str:
    """All findings: what ``hybridfast.inspect.inspect`` returns."""
    parts = [
        _head(found),
        _languages(found),
        _pairs(found["coverage"]),
        _batches(found["batches"]),
        _sources(found["coverage"]),
    ]
    if found["tokens"]:
        parts += [_tokens(found["tokens"], side) for side in SIDES]
    parts += [_duplicates(found["duplicates"]), *map(_against, found["against"])]
    worries = [line for note in found["notes"] or ["nothing"] for line in _folded(f"- {note}", "  ")]
    parts.append("\n".join(["What should worry you:", *worries]))
    return "\n\n".join(part for part in parts if part)


# --- tables ------------------------------------------------------------------------------------------------


def _head(found: Mapping[str, Any]) -> str:
    of = found["coverage"]
    splits = found["splits"]
    lines = [
        f"{found['name']}: {of['rows']:,} rows to train on, {_counted(of['groups'], 'group')} of "
        f"{_counted(of['items'], 'item')}, {_counted(len(of['languages']), 'language')}, "
        f"{_counted(len(of['sources']), 'source')}"
    ]
    if splits["dev"] or splits["test"]:
        lines.append(f"Not trained on: {splits['dev']:,} rows of the split dev, {splits['test']:,} of test")
    return "\n".join(lines)


def _languages(found: Mapping[str, Any]) -> str:
    of, characters = found["coverage"], found["characters"]
    cells = [["", "rows", "of groups", "query", "99 %", "longest", "passage", "99 %", "longest"]]
    for language, row in of["languages"].items():
        cells.append([language, f"{row['rows']:,}", _percent(row["share_of_groups"])])
        for side in SIDES:
            cells[-1] += _spread(characters[side]["languages"][language], ("mean", "p99", "longest"))
    whole = of["rows"] / (of["groups"] * len(of["languages"]))
    cells.append(["all", f"{of['rows']:,}", _percent(whole)])
    for side in SIDES:
        cells[-1] += _spread(characters[side]["all"], ("mean", "p99", "longest"))
    numbers = of["groups_by_number_of_languages"]
    kept = {number: groups for number, groups in numbers.items() if groups}
    shares = [f"{number}: {groups:,} ({_percent(groups / of['groups'])})" for number, groups in kept.items()]
    title = "Languages, and characters of their texts: mean, 99 % have no more, longest:"
    last = _folded("Groups by their number of languages: " + ", ".join(shares))
    return "\n".join([title, _table(cells), *last])


def _spread(of: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{of[name]:,.1f}" if name == "mean" else f"{of[name]:,}" for name in names]


def _pairs(of: Mapping[str, Any]) -> str:
    languages = list(of["languages"])
    if len(languages) < 2:
        return ""
    cells = [["", *languages]]
    for i, one in enumerate(languages):
        row = [_short(of["pairs"][one][other]) for other in languages[: i + 1]]
        cells.append([one, *row, *[""] * (len(languages) - i - 1)])
    smallest = of["smallest_pair"]
    last = f"The smallest: {' and '.join(smallest['languages'])}, {_counted(smallest['groups'], 'group')}"
    return f"Groups that two languages have in common:\n{_table(cells)}\n{last}"


def _batches(of: Mapping[str, Any]) -> str:
    size = of["batch_size"]
    mono, paired = of["mono"], of["cross_paired"]
    lines = [f"Batches of {size:,}:"]
    told = "all languages fill them"
    if mono["too_small"]:
        told = f"refused for {_several([f'{tag} {n:,}' for tag, n in mono['too_small'].items()])} groups"
    lines.append(f"monolingual: {told}; the largest batch_size is {mono['largest_batch_size']:,}")
    for kind, name in (("cross_mixed", "groups in two or more languages"), ("cross_same", "groups")):
        fills = "fill them" if of[kind]["fills"] else "are too few: refused"
        lines.append(f"{kind.replace('_', ' ')}: {of[kind]['groups']:,} {name} {fills}")
    left_out = [f"{'-'.join(pair['languages'])} {pair['groups']:,}" for pair in paired["left_out"]]
    told = f"left out {_several(left_out)}" if left_out else "all pairs of languages fill them"
    lines.append(f"cross paired: {told if paired['fills'] else 'no pair of languages fills one: refused'}")
    return "\n".join([lines[0], *(folded for line in lines[1:] for folded in _folded(f"  {line}"))])


def _sources(of: Mapping[str, Any]) -> str:
    if len(of["sources"]) < 2:
        return ""
    languages = list(of["languages"])
    largest = sorted(of["sources"].items(), key=lambda source: -source[1]["rows"])
    cells = [["rows of a source", "groups", "rows", *languages]]
    for name, source in largest[:SOURCES]:
        counts = [_short(source["languages"][language]) for language in languages]
        cells.append([_cut(name, 24), _short(source["groups"]), _short(source["rows"]), *counts])
    more = f"\n... and {len(largest) - SOURCES:,} smaller sources" if len(largest) > SOURCES else ""
    return _table(cells) + more


def _tokens(of: Mapping[str, Any], side: str) -> str:
    here, reference = of[side], of["reference"]
    which = "all rows"
    if of["rows"] < of["of_rows"]:
        which = f"{of['rows']:,} of {of['of_rows']:,} rows, evenly spread"
    limit = f"cut at {here['limit']:,}" if here["limit"] else "never cut"
    around = f"{here['prompt_and_special_tokens']} of prompt and special tokens"
    names = ["texts", "mean", "50 %", "90 %", "99 %", "longest", "cut", "unknown", "per char"]
    cells = [["", *names, f"x {reference}"]]
    for language, row in {**here["languages"], "all": here["all"]}.items():
        times = row.get("times_reference")
        cells.append(
            [
                language,
                f"{row['texts']:,}",
                *_spread(row, ("mean", "median", "p90", "p99", "longest")),
                _percent(row["truncated"]),
                _percent(row["unknown"]),
                f"{row['per_character']:.2f}",
                "" if times is None else f"{times:.2f}",
            ]
        )
    lines = [f"Tokens of a {side}, {limit}, {around}; {which}:", _table(cells)]
    if here["limit"] and here["all"]["p99"] <= here["limit"]:
        lines.append(f"--max_{side}_length {here['all']['p99']:,} would keep 99 % of them whole")
    return "\n".join(lines)


def _duplicates(of: Mapping[str, Any]) -> str:
    cells = [["", "rows", "distinct", "repeats", "other language", "other item", "other source", "shared"]]
    for name in ("queries", "passages"):
        row = of[name]
        cells.append([name, f"{row['rows']:,}", f"{row['distinct']:,}"])
        for key in (
            "repeats",
            "repeats_in_other_languages_of_the_item",
            "repeats_in_other_items_of_the_source",
            "repeats_in_other_sources",
            "rows_shared_with_other_items",
        ):
            cells[-1].append(f"{row[key]:,} {_percent(row[key] / row['rows']):>7}")
    lines = [
        "Equal texts: rows that repeat another one's, in another language of the item, in another item of",
        "the source, in another source; and rows that share theirs with other items:",
        _table(cells),
    ]
    for side, name in (("query", "queries"), ("passage", "passages")):
        for most in of[name]["most_shared"]:
            where = ", ".join(map(_place, most["of"]))
            lines += _folded(f"  {side} of {most['items']:,} items: {_quoted(most['text'])} ({where})")
    pairs = of["passages"]["texts_shared_by_sources"]
    if pairs:
        told = [f"{names} {n:,}" for names, n in sorted(pairs.items(), key=lambda pair: -pair[1])]
        lines += _folded(f"Passages that two sources have in common: {_several(told)}")
    differing = of["queries_of_several_items_with_different_passages"]
    for count, what, examples in (
        (differing["rows"], DIFFERING, differing["examples"]),
        *((of[key]["rows"], what, of[key]["examples"]) for key, what in UNLIKE.items()),
    ):
        if count:
            one = examples[0]
            place = _place(one["of"][0] if "of" in one else one)
            lines += _folded(f"{count:,} {what}: {_quoted(one['text'])} ({place})")
    return "\n".join(lines)


def _against(of: Mapping[str, Any]) -> str:
    title = f"Against {of['name']}, {of['queries']:,} queries and {of['passages']:,} passages:"
    if not of["normalised"]["any"]["rows"] and not any(kind["rows"] for kind in of["contained"].values()):
        return "\n".join(_folded(f"{title} no text in common"))
    cells = [["", "exact: rows", "its texts", "normalised: rows", "its texts"]]
    for kind, name in (
        ("query_query", "queries equal to queries"),
        ("query_passage", "queries equal to passages"),
        ("passage_query", "passages equal to queries"),
        ("passage_passage", "passages equal to passages"),
        ("any", "either equal to either"),
    ):
        row = [name]
        for form in ("exact", "normalised"):
            found = of[form][kind]
            theirs = found.get("evaluation_texts")
            row += [f"{found['rows']:,}", "" if theirs is None else f"{theirs:,}"]
        cells.append(row)
    for kind, name in INSIDE.items():
        found = of["contained"][kind]
        cells.append([name, "", "", f"{found['rows']:,}", f"{found['evaluation_texts']:,}"])
    languages = of["normalised"]["any"]["languages"].items()
    told = ", ".join(f"{tag} {rows:,}" for tag, rows in languages)
    lines = [*_folded(title), _table(cells)]
    if told:
        lines += _folded(f"Rows with an equal text, by language: {told}")
    for kind, examples in of["examples"].items():
        sides = INSIDE.get(kind) or kind.replace("_", " of the data, a ") + " of the set"
        for one in examples[:2]:
            lines += _folded(f"  {sides}: {_quoted(one['text'])} ({_place(one)})")
    return "\n".join(lines)


# --- notes -------------------------------------------------------------------------------------------------


def notes(found: Mapping[str, Any]) -> list[str]:
    """What should worry the user, a line each."""
    return [
        *_notes_of_coverage(found["coverage"], found["batches"]),
        *(_notes_of_tokens(found["tokens"]) if found["tokens"] else ()),
        *_notes_of_duplicates(found),
        *_notes_of_overlap(found["against"]),
    ]


def _notes_of_coverage(of: Mapping[str, Any], batches: Mapping[str, Any]) -> Iterator[str]:
    few = [(tag, row["share_of_groups"]) for tag, row in of["languages"].items()]
    few = sorted((pair for pair in few if pair[1] < FEW_GROUPS), key=lambda pair: pair[1])
    if few:
        told = _several([f"{tag} {_percent(share)}" for tag, share in few])
        yield f"languages in less than half of the groups: {told}"
    size = batches["batch_size"]
    if not batches["mono"]["fills"]:
        small, most = batches["mono"]["too_small"], batches["mono"]["largest_batch_size"]
        smaller = f"take --batch_size {most:,} or " if most > 1 else ""
        yield (
            f"batch_size {size:,} is an error unless alpha is 0: {_several(list(small))} cannot fill a "
            f"monolingual batch; {smaller}leave them out by --languages"
        )
    if len(of["languages"]) > 1 and not batches["cross_mixed"]["fills"]:
        groups = batches["cross_mixed"]["groups"]
        yield (
            f"batch_size {size:,} is an error unless alpha is 1: {_counted(groups, 'group')} in two or more "
            "languages"
        )
    left_out = batches["cross_paired"]["left_out"]
    if left_out:
        pairs = len(of["languages"]) * (len(of["languages"]) - 1) // 2
        yield f"--cross paired would leave out {len(left_out)} of {_counted(pairs, 'pair')} of languages"


def _notes_of_tokens(of: Mapping[str, Any]) -> Iterator[str]:
    for side in SIDES:
        limit, most = of[side]["limit"], of["longest_that_the_model_reads"]
        cut = {tag: row["truncated"] for tag, row in of[side]["languages"].items()}
        worst = _falling({tag: share for tag, share in cut.items() if share > TRUNCATED})
        for language, share in worst[:WORST]:
            note = f"{_percent(share)} of {language} {_plural(side)} are longer than {limit:,} tokens: "
            kept = of[side]["languages"][language]["p99"]
            if most is None or kept > most:
                yield f"{note}99 % have no more than {kept:,}, the model reads {most or limit:,} at most"
            else:
                yield f"{note}--max_{side}_length {kept:,} would keep 99 %"
        if more := worst[WORST:]:
            told = ", ".join(f"{tag} {_percent(share)}" for tag, share in more)
            yield f"{_plural(side)} longer than {limit:,} tokens also: {told}"
    by_language: dict[str, dict[str, Any]] = of["passage"]["languages"]
    unknown = {tag: row["unknown"] for tag, row in by_language.items() if row["unknown"] > UNKNOWN}
    if unknown:
        told = _several([f"{tag} {_percent(share)}" for tag, share in _falling(unknown)])
        yield f"the vocabulary does not know these shares of the tokens of passages: {told}"
    times = {tag: row["times_reference"] or 0 for tag, row in by_language.items()}
    many = {tag: factor for tag, factor in times.items() if factor > MANY_TOKENS}
    if many:
        told = _several([f"{tag} {factor:.1f}" for tag, factor in _falling(many)])
        yield (
            "the tokenizer splits these languages badly, into so many times the tokens of the same passages "
            f"in {of['reference']}: {told}"
        )


def _notes_of_duplicates(found: Mapping[str, Any]) -> Iterator[str]:
    of, rows = found["duplicates"], found["coverage"]["languages"]
    for name in ("queries", "passages"):
        here = of[name]
        if (share := here["rows_shared_with_other_items"] / here["rows"]) > SHARED:
            yield (
                f"{_percent(share)} of the {name} are those of other items too, negatives that are none: "
                "--dedup text, the default, masks them"
            )
        untranslated = {
            tag: count / rows[tag]["rows"]
            for tag, count in here["rows_equal_in_another_language_of_the_item"].items()
        }
        many = {tag: share for tag, share in untranslated.items() if share > UNTRANSLATED}
        if many:
            told = _several([f"{tag} {_percent(share)}" for tag, share in _falling(many)])
            yield f"{name} equal to those of another language of the item, perhaps not translated: {told}"
    differing = of["queries_of_several_items_with_different_passages"]
    if differing["rows"] > SHARED * found["coverage"]["rows"]:
        yield (f"{differing['rows']:,} {DIFFERING}: if all of these answer, give them one id")
    for key, what in UNLIKE.items():
        if count := of[key]["rows"]:
            yield f"{count:,} {what}"
    for side in SIDES:
        if count := found["characters"][side]["longer_than_10000"]:
            yield f"{count:,} {_plural(side)} have more than 10,000 characters"


def _notes_of_overlap(sets: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for of in sets:
        normalised, exact = (of[form]["any"]["rows"] for form in ("normalised", "exact"))
        if normalised:
            yield f"{_counted(normalised, 'row')} with a text of {of['name']}, {exact:,} to the letter"
        for kind, what in INSIDE.items():
            if rows := of["contained"][kind]["rows"]:
                yield f"{rows:,} {what} of {of['name']}"


# --- words -------------------------------------------------------------------------------------------------


def _table(cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left; in blocks of columns where they are too many for a line."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        taken = widths[0] + sum(2 + widths[i] for i in blocks[-1])
        if blocks[-1] and taken + 2 + widths[column] > WIDTH:
            blocks.append([])
        blocks[-1].append(column)
    lines = []
    for block in blocks:
        for row in cells:
            line = row[0].ljust(widths[0]) + "".join(f"  {row[i]:>{widths[i]}}" for i in block)
            lines.append(line.rstrip())
    return "\n".join(lines)


def _folded(line: str, indent: str = "    ") -> list[str]:
    """A long line as several, the later ones indented; a figure keeps its percent sign."""
    kept = line.replace(" %", "\u00a0%")
    lines = textwrap.wrap(
        kept, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\u00a0%", " %") for part in lines]


def _short(count: int) -> str:
    """Exact below a million, else three digits."""
    for unit, name in ((1e9, "G"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:,}"


def _percent(share: float) -> str:
    """One decimal; what is neither none nor all is not shown as that."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _falling(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _plural(side: str) -> str:
    return "queries" if side == "query" else "passages"


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 3] + "..."


def _quoted(words: str) -> str:
    return f'"{_cut(" ".join(words.split()), SHOWN)}"'


def _place(of: Mapping[str, str]) -> str:
    return f"id {_cut(of['id'], 24)}, {of['lang']}"
