"""What is measured on answers."""

from text.metrics import bootstrap, contains, distinct_n, fact_rates, repetition_rate


def test_distinct_counts_different_bigrams_over_all_texts():
    assert distinct_n(["a b c", "a b d"]) == 3 / 4  # ab bc ab bd
    assert distinct_n(["", "a"]) == 0.0


def test_repetition_counts_ngrams_that_stood_in_the_same_text_before():
    assert repetition_rate(["a b c d e f"]) == 0.0
    assert repetition_rate(["a a a a a a", "b c d e"]) == 2 / 4
    assert repetition_rate(["a b c d", "a b c d"]) == 0.0


def test_a_phrase_is_found_as_whole_words_only():
    assert contains("Um Kit com 6 copos.", "kit com 6")
    assert not contains("Um kit com 60 copos", "kit com 6")
    assert contains("A caneca é AZUL-CLARA.", "azul-clara")
    assert not contains("cafeteria", "café")


def test_fact_rates():
    facts = {
        "1": {"title": "Blue Vela Mug", "facts": {"brand": "Vela", "colour": "blue"}},
        "2": {"title": "Red Tiko Mug", "facts": {"brand": "Tiko", "colour": "red"}},
    }
    records = [
        {"uid": "1", "title": "Blue Vela Mug", "content": ""},
        {"uid": "2", "title": "Red Tiko Mug", "content": ""},
        {"uid": "2", "title": "Another product", "content": ""},  # the uid of another catalogue
    ]
    answers = ["A blue mug by Vela.", "A blue mug.", "red Tiko"]
    rates = fact_rates(records, answers, facts, training_titles=["Green Vela Kettle"])
    low, high = rates.pop("fact_rate_interval")
    assert 0 <= low <= 0.5 <= high <= 1
    assert rates == {"fact_titles": 2, "fact_rate": 0.5, "unseen_brands": 1, "unseen_brand_rate": 0.0}
    assert fact_rates(records[2:], answers[2:], facts, []) == {}


def test_the_values_of_one_product_are_drawn_together():
    """Ten products of ten equal values each tell as much as ten values."""
    values = [product % 2 for product in range(10) for _ in range(10)]
    products = [product for product in range(10) for _ in range(10)]
    assert bootstrap(values, products) == bootstrap(values[::10])
    low, high = bootstrap(values)
    assert high - low < 0.3 < 0.5 < bootstrap(values, products)[1] - bootstrap(values, products)[0]
    assert bootstrap([1, 0, 0], ["a", "b", "b"])[1] == 1  # products of unlike size: the mean is of all values drawn
