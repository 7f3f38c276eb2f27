"""MinHash against Jaccard similarities computed pair by pair."""

from __future__ import annotations

from random import Random

from tutelage_advisor.audit.minhash import Shingles


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = ({*zip(words, [*words[1:], ""], strict=True)} for words in (one, other))
    return len(first & second) / len(first | second)


def test_pairs_over_the_threshold_are_those_of_brute_force() -> None:
    random = Random(0)
    vocabulary = [f"word{number}x" for number in range(3000)]
    texts = [random.choices(vocabulary, k=random.randint(10, 40)) for _ in range(150)]
    for text in texts[:100]:
        changed = list(text)
        for _ in range(random.randint(0, 4)):
            changed[random.randrange(len(changed))] = random.choice(vocabulary)
        texts.append(changed)
    shingles = Shingles()
    for text in texts:
        shingles.add(text)
    found = {(earlier, later): similarity for earlier, later, similarity in shingles.similar(0.7)}
    truth = {
        (at, later): similarity
        for later in range(len(texts))
        for at in range(later)
        if (similarity := jaccard(texts[at], texts[later])) >= 0.7
    }
    assert len(truth) > 40
    assert set(found) <= set(truth)
    assert len(found) >= 0.98 * len(truth)
    assert all(abs(found[pair] - truth[pair]) < 1e-9 for pair in found)


def test_texts_that_differ_in_numbers_or_share_a_template_are_not_near() -> None:
    shingles = Shingles()
    sums = [f"what is the sum of {a} and {a + 7} in plain words please".split() for a in range(10, 60)]
    names = [
        f"please write a short letter of thanks to {name} for the lovely evening".split()
        for name in map(chr, range(97, 123))
    ]
    for text in [*sums, *names, *[["unlike", str(number)] for number in range(30)]]:
        shingles.add(text)
    assert list(shingles.similar(0.7)) == []


def test_empty_and_equal_texts() -> None:
    shingles = Shingles()
    for text in ([], [], ["one", "two", "three", "four"], ["one", "two", "three", "four"]):
        shingles.add(text)
    assert list(shingles.similar(0.9)) == [(2, 3, 1.0)]
