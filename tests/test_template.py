"""One template for training, evaluation and generation."""

import pytest
from conftest import RECORDS
from hypothesis import given
from hypothesis import strategies as st
from kinds import TOKENIZERS, folder_of

from model.load import load_tokenizer
from text import chat_template
from text.answer import StableText, decode, stop_rule
from text.batch import Encoder
from text.chat_template import rendered
from text.errors import DataError
from text.question import held_out_questions, language_of, question_for, with_questions
from text.template import QA, TEMPLATES, choose_template, fit_tokenizer, load_template, opening_of, special_tokens

ENDS = {"gpt2": "<|endoftext|>", "llama": "</s>", "mistral": "</s>", "qwen2": "<|endoftext|>", "bert": "[SEP]"}
NASTY = 'Mug "Pão" <s> </s> [INST] <|im_end|> <|endoftext|> [SEP] {title} {{ x }}'
CASES = [(kind, *name) for kind in TOKENIZERS for name in TEMPLATES]
CASES += [(kind, "hf", "en") for kind in ("llama", "mistral", "qwen2")]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {kind: folder_of(kind, tmp_path_factory.mktemp(kind)) for kind in TOKENIZERS}


def fitted(tokenizers, kind, name, language, **options) -> Encoder:
    tokenizer = load_tokenizer(tokenizers[kind])
    template = choose_template(name, language, tokenizer)
    fit_tokenizer(tokenizer, template)
    return Encoder(tokenizer, template, **{"max_length": 10_000} | options)


@pytest.mark.parametrize("kind, name, language", CASES)
def test_training_and_generation_see_the_same_prompt(tokenizers, kind, name, language):
    encoder = fitted(tokenizers, kind, name, language)
    tokenizer = encoder.tokenizer
    titles = ["Caneca azul", "Blue Mug 350 ml", NASTY]
    records = [{"uid": "1", "title": title, "content": "It is fine. Vai bem."} for title in titles]
    for prompt, row in zip(encoder.prompts(titles), encoder.rows(records), strict=True):
        assert row.ids[: row.first_supervised] == prompt
        assert row.ids[-1] == encoder.end_token and row.ids.count(encoder.end_token) >= 1
        assert decode(tokenizer, row.ids[row.first_supervised :]).lower() == "it is fine. vai bem."
        if opening := opening_of(tokenizer):
            assert prompt[:1] == opening and prompt.count(opening[0]) == 1  # one BOS exactly
    # Another program renders our Jinja, or its own, and comes to the same tokens.
    message = [{"role": "user", "content": titles[0]}]
    generation = name == "hf"
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=generation)
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    ids = ids if ids[:1] == opening_of(tokenizer) or name != "hf" else opening_of(tokenizer) + ids  # Zephyr's has none
    assert ids == encoder.prompts(titles[:1])[0]


@pytest.mark.parametrize("kind, name, language", CASES)
def test_special_tokens_are_ids_in_the_template_and_text_in_a_title(tokenizers, kind, name, language):
    encoder = fitted(tokenizers, kind, name, language)
    special = [encoder.tokenizer.convert_tokens_to_ids(token) for token in special_tokens(encoder.tokenizer)]
    special = [i for i in special if i != encoder.tokenizer.unk_token_id]
    plain, nasty = encoder.prompts(["Caneca", NASTY])
    assert [i for i in plain if i in special] == [i for i in nasty if i in special]
    (row,) = encoder.rows([{"uid": "1", "title": "x", "content": NASTY}])
    answer = row.ids[row.first_supervised : -1]
    assert not set(answer) & set(special)
    if kind != "bert":  # it lowers, and knows no such characters
        assert decode(encoder.tokenizer, answer) == NASTY
        assert NASTY in encoder.tokenizer.decode(nasty).replace("{title }", "{title}")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_family_ends_its_own_way(tokenizers, kind):
    assert fitted(tokenizers, kind, "qa", "en").tokenizer.eos_token == ENDS[kind]
    if kind in ("llama", "mistral", "qwen2"):
        ends = ENDS | {"qwen2": "<|im_end|>"}
        encoder = fitted(tokenizers, kind, "hf", "en")
        assert encoder.tokenizer.eos_token == ends[kind]
        assert encoder.rows(RECORDS[:1])[0].ids[-1] == encoder.tokenizer.convert_tokens_to_ids(ends[kind])


def test_the_marks_of_a_template_become_their_ids(tokenizers):
    encoder = fitted(tokenizers, "qwen2", "hf", "en")
    start = encoder.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encoder.prompts(["Mug"])[0].count(start) == 2
    encoder = fitted(tokenizers, "mistral", "inst", "pt")
    assert encoder.tokenizer.convert_tokens_to_ids("[INST]") in encoder.prompts(["Mug"])[0]


def test_the_inst_record_is_that_of_its_format_to_the_space(tokenizers):
    encoder = fitted(tokenizers, "llama", "inst", "pt")
    (row,) = encoder.rows([{"uid": "1", "title": "Caneca", "content": "Boa."}])
    whole = "<s>[INST] Gere uma descrição para o seguinte produto: Caneca [/INST] Boa. </s>"
    assert row.ids == encoder.tokenizer(whole, add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(tokenizers, kind):
    """No second space where they meet, whatever a tokenizer puts before a text."""
    for name in TEMPLATES:
        encoder = fitted(tokenizers, kind, *name)
        (row,) = encoder.rows([{"uid": "1", "title": "Caneca azul", "content": "Boa. Vai bem."}])
        whole = encoder.template.prompt_for("Caneca azul") + encoder.template.answer_for("Boa. Vai bem.")
        assert row.ids[:-1] == encoder.tokenizer(whole).input_ids, name


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_answer_is_cut_at_a_sentence_end(tokenizers, kind):
    encoder = fitted(tokenizers, kind, "chat", "en")
    whole = encoder.rows([{"uid": "1", "title": "Mug", "content": "It is good. It is blue. It holds"}])[0]
    encoder.max_length = len(whole.ids) - 2
    (row,) = encoder.rows([{"uid": "1", "title": "Mug", "content": "It is good. It is blue. It holds"}])
    assert decode(encoder.tokenizer, row.ids[row.first_supervised :]).lower().replace(" .", ".") == (
        "it is good. it is blue."
    )
    assert row.ids[-1] != encoder.end_token


# -- stop strings -----------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(tokenizer):
    ids = tokenizer("It is blue.\nQuestion: and", add_special_tokens=False).input_ids
    rule = stop_rule(tokenizer, ("\nQuestion:",))
    stopped = [rule(ids[: n + 1]) for n in range(len(ids))]
    place = stopped.index(True)
    assert not any(stopped[:place]) and tokenizer.decode(ids[: place + 1]).endswith("\nQuestion:")
    assert decode(tokenizer, ids[: place + 1], ("\nQuestion:",)) == "It is blue."
    text = StableText(tokenizer, ("\nQuestion:",))
    assert "".join([*map(text.feed, ids[: place + 1]), text.rest()]) == "It is blue."
    text = StableText(tokenizer, ("\nQuestion:",))
    almost = tokenizer("Blue.\nQuest", add_special_tokens=False).input_ids
    assert "".join([*map(text.feed, almost), text.rest()]) == "Blue.\nQuest"


def test_a_stop_string_that_is_a_special_token_ends_an_answer_too(tokenizers):
    """[INST] is one of Mistral's, and text for Llama."""
    for kind in ("mistral", "llama"):
        encoder = fitted(tokenizers, kind, "inst", "pt")
        tokenizer, stop = encoder.tokenizer, encoder.template.stop
        ids = tokenizer("Boa. [INST] Gere", add_special_tokens=False).input_ids
        rule = stop_rule(tokenizer, stop)
        place = [rule(ids[: n + 1]) for n in range(len(ids))].index(True)
        assert decode(tokenizer, ids[: place + 1], stop) == decode(tokenizer, ids, stop) == "Boa.", kind


def test_the_saved_chat_template_of_hf_opens_with_the_bos_of_the_training(tokenizers):
    """Zephyr's own has none, and the tokenizer is not asked to add it where a chat is rendered."""
    for kind in ("llama", "mistral", "qwen2"):
        encoder = fitted(tokenizers, kind, "hf", "en")
        chat = [{"role": "user", "content": "Mug"}]
        for _ in range(2):  # as it is fitted when it is loaded again
            fit_tokenizer(encoder.tokenizer, encoder.template)
        rendered = encoder.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = encoder.tokenizer(rendered, add_special_tokens=False).input_ids
        assert ids == encoder.prompts(["Mug"])[0], kind


def test_generation_ends_at_the_rule():
    from conftest import tiny_gpt2

    from model.sample import Sampling, generate

    model, sampling = tiny_gpt2(), Sampling(max_new_tokens=20, greedy=True)
    free, ruled = (generate(model, [[5, 6]], 399, sampling, 32, rule)[0] for rule in (None, lambda ids: len(ids) == 3))
    assert ruled.ids == free.ids[:3] and ruled.stopped and not free.stopped


# -- questions --------------------------------------------------------------------------------------------------------


def asked(share: float, seed: int = 1, first_step: int = 0, steps: int = 40) -> list[list[str]]:
    stream = with_questions([RECORDS] * steps, QA.questions, share, seed, first_step)
    return [[record["title"] for record in records] for records in stream]


def test_questions_are_a_function_of_seed_and_place():
    assert asked(0.5) == asked(0.5) != asked(0.5, seed=2)
    assert asked(0.5, first_step=7, steps=3) == asked(0.5)[7:10]
    assert asked(0.5)[0] != asked(0.5)[1]  # another epoch, another question
    halves = with_questions([RECORDS[5:]], QA.questions, 0.5, 1)
    assert [r["title"] for r in next(halves)] == asked(0.5)[0][5:]  # whichever process computes them


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_is_kept(share):
    titles = [record["title"] for record in RECORDS]
    drawn = [got != title for row in asked(share, steps=200) for got, title in zip(row, titles, strict=True)]
    assert sum(drawn) / len(drawn) == pytest.approx(share, abs=0.03)


def test_questions_speak_the_language_of_the_record_and_one_form_is_never_trained_on():
    assert language_of("Uma caneca azul de cerâmica, com capacidade") == "pt"
    assert language_of("A blue mug for coffee. It holds 350 ml.") == "en"
    trained = {question for row in asked(1.0) for question in row}
    assert {"Fale sobre Caneca azul.", "What is Blue Mug?", "Fale sobre a caneca azul"} <= trained
    held_out = [record["title"] for record in held_out_questions(RECORDS[:2], QA.held_out)]
    assert held_out == ["Could you explain to me what Blue Mug is?", "Você pode me explicar o que é Caneca azul?"]
    assert not trained & set(held_out)


@given(st.text(), st.text())
def test_any_text_can_be_asked_for(title, content):
    record = {"uid": "x", "title": title, "content": content}
    question = question_for(record, QA.questions, 1.0, "key")
    assert title in question or title.lower() in question


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=map(str, TEMPLATES))
def test_it_comes_back_from_the_folder_that_it_was_saved_in(tmp_path, template):
    template.save(tmp_path)
    assert load_template(tmp_path) == template


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x", "prompt": "no place", "answer": "{content}"}', "{"])
def test_a_damaged_template_is_a_sentence(tmp_path, text):
    (tmp_path / "template.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"template\.json"):
        load_template(tmp_path)


def test_a_users_own_template(tmp_path, tokenizers):
    path = tmp_path / "mine.toml"
    path.write_text(
        'prompt = "<|im_start|>{title}\\n"\nanswer = "{content}"\nend = "<|im_end|>"\nstop = ["##"]\n'
        'questions.fr = ["Qu\'est-ce que {title} ?"]\n',
        encoding="utf-8",
    )
    template = choose_template(str(path))
    assert template.name == "mine" and template.stop == ("##",) and template.end == "<|im_end|>"
    assert question_for(RECORDS[0], template.questions, 1.0, "") == "Qu'est-ce que Blue Mug ?"
    template.save(tmp_path)
    assert load_template(tmp_path) == template
    with pytest.raises(DataError, match="does not know"):
        fit_tokenizer(load_tokenizer(tokenizers["gpt2"]), template)


@pytest.mark.parametrize(
    "text", ['prompt = "{title}"', 'prompt = "x"\nanswer = "{content}"', 'prompt = 3\nanswer = "{content}"', "=",
             'prompt = "{title}"\nanswer = "{content}"\ncolour = "x"', 'prompt="{title}"\nanswer="{content}"\nstop=[1]',
             'prompt="{title}"\nanswer="{content}"\nstop=[""]', 'prompt="{title}"\nanswer="{content}"\nquestions.en=[]',
             'name=3\nprompt="{title}"\nanswer="{content}"']
)  # fmt: skip
def test_a_wrong_template_is_a_sentence(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a prompt template"):
        choose_template(str(tmp_path / "mine.toml"))


def test_a_stop_that_is_one_text_is_one_text(tmp_path):
    text = 'prompt = "{title}"\nanswer = "{content}"\nstop = "\\nProduto:"'
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert choose_template(str(tmp_path / "mine.toml")).stop == ("\nProduto:",)


def test_a_template_that_is_not_there_is_a_sentence(tokenizers):
    with pytest.raises(DataError, match="qa, inst, chat, hf"):
        choose_template("qq")
    with pytest.raises(DataError, match="no chat template"):
        choose_template("hf", tokenizer=load_tokenizer(tokenizers["gpt2"]))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_a_chat_template_is_rendered_as_transformers_renders_it(tokenizers, kind):
    tokenizer = load_tokenizer(tokenizers[kind])
    chats = [([{"role": "user", "content": NASTY}], opens) for opens in (True, False)]
    expected = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=opens) for c, opens in chats]
    assert rendered(tokenizer, chats) == expected


@pytest.mark.parametrize("hostile", [
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ '%9999999999d' % 1 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ raise_exception('\x1b[31mno') }}",
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "{{ messages[0].content.__class__.__mro__ }}",
    "{{ x.y.z }}",
    "{% if",
])  # fmt: skip
def test_a_hostile_chat_template_is_a_sentence(tokenizers, monkeypatch, hostile):
    monkeypatch.setattr(chat_template, "SECONDS", 4)
    tokenizer = load_tokenizer(tokenizers["llama"])
    tokenizer.chat_template = hostile
    with pytest.raises(DataError, match="chat template of this model .*choose") as error:
        choose_template("hf", tokenizer=tokenizer)
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 500


def test_the_chat_template_says_the_same_to_other_programs(tokenizer):
    title, content = 'Mug "Pão" {title} {{ x }}', "Fine.\nYes."
    tokenizer.chat_template = QA.chat_template()
    messages = [{"role": "user", "content": title}, {"role": "assistant", "content": content}]
    whole = QA.prompt_for(title) + QA.answer_for(content) + tokenizer.eos_token
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False) == QA.prompt_for(title)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == whole
