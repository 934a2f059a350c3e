"""Facts of the Unicode CLDR in 11 languages: the corpus that travels with the library.

Babel carries the CLDR's data: which currency a territory uses, which script a language is written in, and
what each of them is called in every language. A fact is one subject, one relation and its objects; the
templates of ``cldr_templates`` turn it into a question and a passage per language. A fact is kept only where
the CLDR names its subject and all of its objects in all languages: every fact is a complete parallel item.

The held-out facts join known words anew: no training fact links their subject to any of their objects, yet
the subject is trained in another relation and every object with another subject.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from babel import Locale, UnknownLocaleError
from babel.core import get_global
from babel.languages import get_official_languages
from babel.lists import format_list
from babel.numbers import get_currency_precision, get_territory_currencies

from hybridfast.data.cldr_templates import TEMPLATES

__all__ = ["LANGUAGES", "Fact", "all_facts", "passage_text", "query_text", "split", "training_rows"]

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")

Entity = tuple[str, str]  # kind and CLDR code, such as ("territory", "CH")


@dataclass(frozen=True)
class Fact:
    """``subject`` stands in ``relation`` to all of ``objects``."""

    relation: str
    subject: Entity
    objects: tuple[Entity, ...]

    @property
    def id(self) -> str:
        """The parallel item's name, ``relation/subject``."""
        return f"{self.relation}/{self.subject[1]}"


def training_rows() -> list[dict[str, str]]:
    """Rows ``id``, ``lang``, ``query``, ``passage``, ``source``: every training fact in every language."""
    training_facts, _ = split()
    return [
        {
            "id": fact.id,
            "lang": language,
            "query": query_text(fact, language),
            "passage": passage_text(fact, language),
            "source": fact.relation,
        }
        for fact in training_facts
        for language in LANGUAGES
    ]


# Candidates for holding out; those whose words would not be trained go back to training.
_CANDIDATE_PERCENT = 23


@cache
def split() -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Training facts and held-out facts.

    Two relations can say nearly the same, as "Icelandic is chiefly found in Iceland" and "Iceland's official
    language is Icelandic" do. A fact that links the same two entities as a held-out fact is therefore in
    neither part; only its passages are, in the evaluation's pool.
    """
    facts = all_facts()
    candidates = [fact for fact in facts if _digest(f"held out/{fact.id}") % 100 < _CANDIDATE_PERCENT]
    training_facts = _without_links_of(candidates, facts)
    # Facts which go back to training only add words there, so those that stay need no second look.
    held_out_facts = _with_trained_words(candidates, training_facts)
    return _without_links_of(held_out_facts, facts), held_out_facts


def _without_links_of(excluded: Iterable[Fact], facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """The facts that link no subject of ``excluded`` with one of its objects, in either direction."""
    links = {link for fact in excluded for link in _links(fact)}
    return tuple(fact for fact in facts if links.isdisjoint(_links(fact)))


def _links(fact: Fact) -> set[frozenset[Entity]]:
    return {frozenset((fact.subject, entity)) for entity in fact.objects}


def _with_trained_words(candidates: Iterable[Fact], training_facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """The candidates whose subject is trained in another relation and every object with another subject."""
    relations_of, subjects_of = defaultdict(set), defaultdict(set)
    for fact in training_facts:
        for entity in (fact.subject, *fact.objects):
            relations_of[entity].add(fact.relation)
        for entity in fact.objects:
            subjects_of[entity].add(fact.subject)
    return tuple(
        fact
        for fact in candidates
        if relations_of[fact.subject] - {fact.relation}
        and all(subjects_of[entity] - {fact.subject} for entity in fact.objects)
    )


@cache
def all_facts() -> tuple[Fact, ...]:
    """All facts whose words the CLDR has in every language, ordered by relation and subject."""
    names = _names()
    return tuple(
        fact
        for fact in sorted(_possible_facts(), key=lambda fact: (fact.relation, fact.subject))
        if fact.objects and all(entity in names or entity[0] in _WRITTEN_AS_IS for entity in fact.objects)
    )


def _possible_facts() -> Iterator[Fact]:
    codes: dict[str, list[str]] = defaultdict(list)
    for kind, code in sorted(_names()):
        codes[kind].append(code)
    yield from _territory_facts(codes["territory"])
    yield from _currency_facts(codes["currency"], codes["territory"])
    yield from _language_facts(codes["language"])
    yield from _city_facts(codes["city"])


# Currencies change: a fixed day keeps the corpus the same from one day to the next.
_DAY = datetime.date(2025, 1, 1)
_LONG_AGO = datetime.date(1900, 1, 1)


def _territory_facts(territories: list[str]) -> Iterator[Fact]:
    for code in territories:
        territory = ("territory", code)
        yield Fact("territory_code", territory, (("code", code),))
        yield Fact("territory_currency", territory, _entities("currency", _currencies(code, _DAY)))
        # A language that is official in two scripts is listed twice; a reader has one name for it.
        tags = get_official_languages(code, regional=False, de_facto=True)
        languages = dict.fromkeys(tag.split("_")[0] for tag in tags)
        yield Fact("territory_languages", territory, _entities("language", languages))
        yield Fact("territory_week", territory, _entities("weekday", _first_weekday(code)))


def _currency_facts(currencies: list[str], territories: list[str]) -> Iterator[Fact]:
    users, past_users = defaultdict(list), defaultdict(list)
    for territory in territories:
        for code in _currencies(territory, _DAY):
            users[code].append(territory)
        for code in _currencies(territory, _LONG_AGO):
            past_users[code].append(territory)
    for code in sorted({*currencies} & {*past_users}):
        currency = ("currency", code)
        yield Fact("currency_code", currency, (("code", code),))
        yield Fact("currency_decimals", currency, (("number", str(get_currency_precision(code))),))
        if len(users[code]) > 1:  # a single user's own territory_currency says it already
            yield Fact("currency_territories", currency, _entities("territory", users[code]))
        elif not users[code]:
            yield Fact("former_currency_territories", currency, _entities("territory", past_users[code]))


def _language_facts(languages: list[str]) -> Iterator[Fact]:
    for code in languages:
        language = ("language", code)
        yield Fact("language_code", language, (("code", code),))
        _, script, territory = get_global("likely_subtags")[code].split("_")
        yield Fact("language_script", language, (("script", script),))
        yield Fact("language_territory", language, (("territory", territory),))


def _city_facts(cities: list[str]) -> Iterator[Fact]:
    names = _names()
    for code in cities:
        city, territory = ("city", code), ("territory", _zone_territory(code))
        yield Fact("city_zone", city, _entities("zone", get_global("meta_zones").get(code, "").split()))
        # "Singapore is located in Singapore" is true, but no question.
        if territory in names and set(names[city].values()).isdisjoint(names[territory].values()):
            yield Fact("city_territory", city, (territory,))


def _entities(kind: str, codes: Iterable[str]) -> tuple[Entity, ...]:
    return tuple((kind, code) for code in codes)


def _currencies(territory: str, since: datetime.date) -> list[str]:
    """Codes of the territory's legal tenders between ``since`` and the corpus's day."""
    currencies: list[str] = get_territory_currencies(territory, since, _DAY)
    return currencies


def _first_weekday(territory: str) -> list[str]:
    """The number of the week's first day; empty for Monday (0), which also stands for "not known"."""
    try:
        locale = Locale.parse(f"und_{territory}")
    except UnknownLocaleError:
        return []
    return [str(locale.first_week_day)] if locale.territory == territory and locale.first_week_day else []


def _zone_territory(zone: str) -> str:
    """The territory of a time zone, under the CLDR's name of the zone or the tz database's newer one."""
    territory: str = get_global("zone_territories").get(get_global("zone_aliases").get(zone, zone), "")
    return territory


@cache
def _names() -> dict[Entity, dict[str, str]]:
    """Names by language of every entity that has one in all languages and shares it with none of its kind."""
    names: dict[Entity, dict[str, str]] = defaultdict(dict)
    bearers: dict[tuple[str, str, str], set[Entity]] = defaultdict(set)
    for language in LANGUAGES:
        for entity, name in _names_in(language):
            if language in _LATIN_SCRIPT or not _is_latin(name):
                names[entity][language] = name
            bearers[language, entity[0], name].add(entity)
    ambiguous = {entity for entities in bearers.values() if len(entities) > 1 for entity in entities}
    return {
        entity: names[entity]
        for entity in sorted(names)
        if len(names[entity]) == len(LANGUAGES) and entity not in ambiguous
    }


# The CLDR calls these two scripts just "Simplified" and "Traditional".
_SCRIPTS_WITHOUT_NOUN = {"Hans", "Hant"}


def _names_in(language: str) -> Iterator[tuple[Entity, str]]:
    """What the CLDR itself calls each entity in ``language``, never a name borrowed from another language."""
    locale = Locale.parse(language)
    # With a time zone: neither continents nor groups of countries.
    for code in {*get_global("zone_territories").values()} & {*locale.territories}:
        if len(code) == 2 and code != "ZZ":  # numbers are regions, ZZ is unknown
            yield ("territory", code), locale.territories[code]
    for code, name in locale.currencies.items():
        yield ("currency", code), name
    for code, name in locale.languages.items():
        if code in get_global("likely_subtags") and code != "und" and "_" not in code:
            yield ("language", code), name
    for code, name in locale.scripts.items():
        if code not in _SCRIPTS_WITHOUT_NOUN:
            yield ("script", code), name
    for number, name in locale.days["stand-alone"]["wide"].items():
        yield ("weekday", str(number)), name
    for code, zone in locale.meta_zones.items():
        if "standard" in zone.get("long", {}):
            yield ("zone", code), zone["long"]["standard"]
    for code in map(str, Locale.parse("ru").time_zones):  # a language of another script names every city
        if code.startswith("Etc/"):  # not places
            continue
        name = locale.time_zones.get(code, {}).get("city")
        # A Latin-script language leaves a city out where its name is the zone's own, as in Europe/Madrid.
        if name is None and language in _LATIN_SCRIPT:
            name = code.split("/")[-1].replace("_", " ")
        if name is not None:
            yield ("city", code), name


_LATIN_SCRIPT = {"de", "en", "es", "tr", "vi"}


def _is_latin(name: str) -> bool:
    """Whether all letters are Latin: a language of another script then has the English name, untranslated."""
    return all(unicodedata.name(letter).startswith("LATIN") for letter in name if letter.isalpha())


_WRITTEN_AS_IS = {"code", "number"}


def query_text(fact: Fact, language: str) -> str:
    """The question that asks for the objects of a fact."""
    return _text(TEMPLATES[fact.relation][language][0], "query", fact, language)


def passage_text(fact: Fact, language: str) -> str:
    """The sentence that states a fact."""
    return _text(TEMPLATES[fact.relation][language][1], "passage", fact, language)


def _text(templates: Sequence[str], role: str, fact: Fact, language: str) -> str:
    """One of ``templates``, always the same for the fact, filled in."""
    template = templates[_digest(f"{role}/{language}/{fact.id}") % len(templates)]
    subject = _name_in_sentence(fact.subject, language)
    objects = format_list([_name_in_sentence(entity, language) for entity in fact.objects], locale=language)
    text = template.format(s=subject, o=objects)
    for pattern, replacement in _CONTRACTIONS.get(language, ()):
        text = re.sub(pattern, replacement, text)
    # upper() makes I of it, which is another letter in Turkish.
    first = "İ" if language == "tr" and text[0] == "i" else text[0].upper()
    return first + text[1:]


# Territories whose names take an article in a sentence, by the beginning or the end of the name.
_ARTICLES = {
    "en": [
        (
            r".* (Islands|Territory|Territories|Republic|Emirates|Kingdom|States|Netherlands|of Man)$"
            r"|(Bahamas|Comoros|Gambia|Maldives|Netherlands|Philippines)$",
            "the",
        )
    ],
    "es": [
        (r"(Isla|RAE|República) ", "la"),
        (r"Islas ", "las"),
        (r"(Reino|Territorio) ", "el"),
        (r"(Emiratos|Países|Territorios) ", "los"),
    ],
}
# What happens to words where they meet: del, al, "y" before an i; Thai names that already say "script".
_CONTRACTIONS = {
    "es": [(r"\b([Dd]e|[Aa]) el\b", r"\1l"), (r"\by (?=[IiÍí]|[Hh]i(?!e))", "e ")],
    "th": [("อักษร(?=อักษร)", "")],
}


def _name_in_sentence(entity: Entity, language: str) -> str:
    """The entity's name as it stands within a sentence of ``language``."""
    kind, code = entity
    if kind in _WRITTEN_AS_IS:
        return code
    name = _names()[entity][language]
    if kind == "territory":
        for pattern, article in _ARTICLES.get(language, ()):
            if re.match(pattern, name):
                return f"{article} {name}"
    # "Language", "script", "time" and "coin": capital at the head of a list's entry, not in a sentence.
    if language == "vi" and name.startswith(("Tiếng ", "Chữ ", "Giờ ", "Đồng ")):
        return name[0].lower() + name[1:]
    return name


def _digest(text: str) -> int:
    """A number that depends on ``text`` alone, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
