"""Deterministic generator of small stories and descriptions: the text that the models that ship have learned.

`story(rng)` writes one text of one paragraph: a tale in the past tense or a description in the present, from
the words and templates of models.tales. Grammar is correct by construction: characters carry their pronouns,
verbs and nouns their forms, templates say which form they want. `python -m models.corpus -n 5` prints some.

Template language: `[a|b]` is one of its alternatives (nesting allowed), `{slot}` is a value of the story, "a"
becomes "an" before a vowel letter (the vocabulary has no word where letter and sound differ), sentences start
with a capital.
"""

import argparse
import random
import re
from typing import Iterator

from models import tales

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_START = re.compile(r'(^|[.?!] "?|[.]" |^")([a-zé])')


def _third(verb: str) -> str:
    """Third person singular of a regular verb."""
    if verb.endswith(("ch", "sh", "ss", "x")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"


def _character(rng: random.Random, slot: str, taken: dict[str, str]) -> dict[str, str]:
    """Slots {slot}, {slot}kind and the pronouns {slot}.he .him .his .He .His; differs from the one taken."""
    while True:
        sex = rng.choice("fm")
        name = rng.choice(tales.GIRLS if sex == "f" else tales.BOYS)
        kind = rng.choice(tales.PERSONS[sex]) if rng.random() < 0.5 else rng.choice(tales.ANIMALS)[0]
        if name not in taken.values() and kind not in taken.values():
            break
    he, him, his = ("she", "her", "her") if sex == "f" else ("he", "him", "his")
    return {slot: name, slot + "kind": kind, slot + ".he": he, slot + ".him": him, slot + ".his": his,
            slot + ".He": he.capitalize(), slot + ".His": his.capitalize()}


def _slots(rng: random.Random) -> dict[str, str]:
    """Everything that stays the same within one story."""
    s = _character(rng, "A", {})
    s |= _character(rng, "B", s)
    times, weather = tales.DAY if rng.random() < 0.7 else tales.NIGHT
    for keys, values in (("trait traitB trait2", tales.TRAITS), ("look look2", tales.LOOKS),
                         ("place place2", tales.PLACES), ("spot spot2 spot3", tales.SPOTS),
                         ("number number2", tales.NUMBERS), ("thing", tales.THINGS), ("land", tales.LANDS),
                         ("food", tales.FOODS), ("seller", ["man", "woman"]), ("time", times),
                         ("Weather weather2", weather)):
        s |= zip(keys.split(), rng.sample(values, len(keys.split())))
    for n, (base, past, participle, rest) in zip(("", "2", "3"), rng.sample(tales.ACTIONS, 3)):
        s |= {"do" + n: f"{base} {rest}", "did" + n: f"{past} {rest}", "doing" + n: f"{participle} {rest}",
              "does" + n: f"{_third(base)} {rest}"}
    s["to"] = "to " + s["place2"].split(" ", 1)[1]
    s["riddle"], s["answer"] = rng.choice(tales.RIDDLES)
    s["riddle"] = f'"{s["riddle"]}"'
    (s["why"], s["because"]), (s["why2"], _) = rng.sample(tales.WHYS, 2)
    for n, row in zip(("", "2"), rng.sample(tales.ANIMALS, 2)):
        keys = "sg", "pl", "alook", "home", "homes", "afood", "gift", "cover"
        s |= zip((key + n for key in keys), row)
    one, sg, pl = rng.random() < 0.4, s["sg"], s["pl"]
    s |= {"Pl": pl.capitalize(), "sgpl": sg if one else pl, "are": "is" if one else "are",
          "they": "it" if one else "they", "go": "goes" if one else "go",
          "sleep": "sleeps" if one else "sleep", "theirhome": "its home" if one else "their homes",
          "count": "one" if one else rng.choice(tales.NUMBERS),
          "color": rng.choice(["red", "blue", "green", "yellow"])}
    return s


def _expand(rng: random.Random, template: str, slots: dict[str, str]) -> str:
    """Template -> text: slots and alternatives until there are none, then articles and capitals."""
    text, found = template, 1
    while found:
        text, choices = _CHOICE.subn(lambda m: rng.choice(m[1].split("|")), text)
        text, values = _SLOT.subn(lambda m: slots[m[1]], text)
        found = choices + values
    text = _ARTICLE.sub(r"\1n ", text)
    return _START.sub(lambda m: m[1] + m[2].upper(), text).strip()


def story(rng: random.Random) -> str:
    """One story or description, 40 to 150 words, one paragraph."""
    slots = _slots(rng) | {"scene": tales.SCENE, "meet": tales.MEET, "greet": tales.GREET}
    if rng.random() < 0.2:
        return _expand(rng, tales.SKETCHES[rng.choice(list(tales.SKETCHES))], slots)
    return _expand(rng, tales.OPENING + tales.PLOTS[rng.choice(list(tales.PLOTS))] + tales.ENDING, slots)


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """count stories; the same seed gives the same text everywhere."""
    rng = random.Random(seed)
    for _ in range(count):
        yield story(rng)


def anecdotes(count: int, seed: int = 0) -> Iterator[str]:
    """count texts of 10 to 60 words, full of names; the same seed gives the same text everywhere."""
    rng = random.Random(seed)
    for _ in range(count):
        yield _expand(rng, " ".join(rng.sample(tales.ANECDOTES, rng.choice((1, 1, 2)))), _slots(rng))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print stories of the training text.")
    parser.add_argument("-n", "--count", type=int, default=5, help="number of stories")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for text in stories(args.count, args.seed):
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
