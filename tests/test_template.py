"""One template for training, evaluation and generation."""

import pytest

from text.errors import DataError
from text.template import QA, load_template


def test_it_comes_back_from_the_folder_that_it_was_saved_in(tmp_path):
    QA.save(tmp_path)
    assert load_template(tmp_path) == QA


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x", "prompt": "no place", "answer": "{content}"}', "{"])
def test_a_damaged_template_is_a_sentence(tmp_path, text):
    (tmp_path / "template.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"template\.json"):
        load_template(tmp_path)


def test_the_chat_template_says_the_same_to_other_programs(tokenizer):
    title, content = 'Mug "Pão" {title} {{ x }}', "Fine.\nYes."
    tokenizer.chat_template = QA.chat_template()
    messages = [{"role": "user", "content": title}, {"role": "assistant", "content": content}]
    whole = QA.prompt_for(title) + QA.answer_for(content) + tokenizer.eos_token
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False) == QA.prompt_for(title)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == whole
