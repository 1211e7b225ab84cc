"""From tokens back to text."""

from text.answer import StableText, decode

TEXT = "Pão de açúcar 🙂 ½ kg, coração."


def test_streamed_pieces_are_the_whole_answer_and_never_broken(tokenizer):
    ids = tokenizer(" " + TEXT).input_ids
    stream = StableText(tokenizer)
    pieces = [stream.feed(token) for token in ids] + [stream.rest()]
    assert "".join(pieces) == TEXT == decode(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces.count("") > 1  # there were characters of several tokens to hold back


def test_a_half_character_at_the_end_is_not_swallowed(tokenizer):
    ids = tokenizer(" sim 🙂").input_ids[:-1]
    stream = StableText(tokenizer)
    text = "".join([stream.feed(token) for token in ids] + [stream.rest()])
    assert text.startswith("sim ") and text.endswith("\ufffd")
