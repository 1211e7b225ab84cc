"""Near duplicates: what is near, that the keys find it, and that the table of keys is a table."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue.duplicates import BANDS, KeyTable, near_keys, shingles, similarity
from catalogue.judge import Options
from catalogue.prepare import prepare

WORDS = [f"word{number}" for number in range(120)]


def test_similarity_is_the_share_of_three_consecutive_words():
    assert similarity("a b c d", "a b c e") == 1 / 3
    assert similarity("A mug, for coffee!", "a mug for coffee") == 1
    assert similarity("a b c", "x y z") == 0
    assert similarity("mug", "mug") == 1
    assert similarity("!!!", "???") == 0  # texts without a word are not all alike
    assert similarity("保温マグカップです", "保温マグカップでは") == 6 / 8
    assert len(shingles("")) == 1


def test_keys_are_the_same_on_every_machine_and_in_any_company():
    alone = near_keys(["a blue mug for coffee"])
    assert alone.tolist()[0][:2] == [10080246954832616817, 4538570986874616857]
    assert near_keys(["tea", "a blue mug for coffee", ""])[1].tolist() == alone[0].tolist()
    assert alone.shape == (1, BANDS + 1)
    assert alone.all()


def test_near_texts_share_a_key_and_far_ones_do_not():
    rng = np.random.default_rng(0)
    found = far = 0
    for _ in range(200):
        text = rng.choice(WORDS, 100)
        near, other = text.copy(), text.copy()
        near[50] = "other"  # 3 of 98 shingles change: similarity 0.94
        other[rng.choice(100, 30, replace=False)] = "other"
        keys = near_keys([" ".join(each) for each in (text, near, other)])
        found += bool(set(keys[0].tolist()) & set(keys[1].tolist()))
        far += bool(set(keys[0].tolist()) & set(keys[2].tolist()))
    assert found >= 199
    assert far <= 10


keys_of_records = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True), max_size=60)


@settings(max_examples=200, deadline=None)
@given(keys_of_records, st.sampled_from([1, 2**20, 2**44]))  # neighbours, and the same slot for all
def test_the_table_is_a_dictionary_of_who_had_what(records, spread):
    table, holders = KeyTable(slots=8), {}
    for number, keys in enumerate(records):
        keys = [key * spread for key in keys]
        array = np.array(keys, np.uint64)
        assert table.find(array) == sorted({n for key in keys for n in holders.get(key, [])[: 1 + KeyTable.MOST]})
        table.add(array, number)
        for key in keys:
            holders.setdefault(key, []).append(number)
    assert table.taken == len(holders)


def test_near_records_are_found_among_others_with_the_same_paragraph(tmp_path):
    """What a shop puts under everything gives its products a common key without making them near to each other."""
    rng, records = np.random.default_rng(0), []
    for family in range(6):
        boilerplate = [f"b{family}w{i}" for i in range(400)]
        for member in range(25):
            own = [f"f{family}m{member}w{i}" for i in range(28)]
            again = [*own[:10], *(f"{word}x" for word in own[10:])]  # 0.92 of the shingles are the same
            records += [boilerplate + own, boilerplate + again]
    rng.shuffle(records)
    source = tmp_path / "shop.jsonl"
    lines = (json.dumps({"title": f"Mug {i}", "content": " ".join(words)}) for i, words in enumerate(records))
    source.write_text("\n".join(lines), encoding="utf-8")
    counts = prepare([source], tmp_path / "data", Options(catalogue=False))
    assert counts.records <= 150 + 3  # of 150 pairs one half each; by 0.92 one in a thousand would be missed
