"""The prompt template: the one place where a title becomes a prompt, in training, evaluation and generation alike.

It is saved beside the weights (`template.json`, and as the tokenizer's `chat_template` for other programs) and read
back from there, so a model is always asked in the words that it was trained with.
"""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from text.chat_template import rendered
from text.errors import DataError
from text.question import HELD_OUT_QUESTION, QUESTIONS

FILE_NAME = "template.json"


@dataclass(frozen=True)
class Template:
    """`prompt` contains `{title}` once, `answer` contains `{content}` once; a record is the two and an end token.

    The space between them belongs to the answer: byte-level BPE has a token for " High" but a prompt that ends in a
    space leaves that space as a token of its own, which no text of the base model's training ever had. What a
    tokenizer knows as a special token becomes that token where the template says it, and plain text where a title does.
    """

    name: str
    prompt: str
    answer: str
    end: str | None = None  # the token that ends an answer; None: the tokenizer's own end token
    stop: tuple[str, ...] = ()  # text that ends an answer too: a model that goes on with the next question
    questions: dict[str, tuple[str, ...]] = field(default_factory=lambda: QUESTIONS)  # by language
    held_out: dict[str, str] = field(default_factory=lambda: HELD_OUT_QUESTION)
    attributes: str = " ({attributes})"  # what follows a title whose product has some, as "colour: blue; size: M"

    def __post_init__(self):
        forms = [form for group in self.questions.values() for form in group] + list(self.held_out.values())
        places = [(self.prompt, "{title}"), (self.answer, "{content}"), (self.attributes, "{attributes}")]
        for text, place in (*places, *((form, "{title}") for form in forms)):
            if text.count(place) != 1:
                raise ValueError(f"{text!r} does not contain {place} once")

    @property
    def phrases(self) -> list[str]:
        """What the prompt says around every title. A space beside the title is the title's, as in other text."""
        return [part.strip(" ") for part in self.prompt.split("{title}") if part.strip(" ")]

    def asked(self, record: dict) -> str:
        """What stands in the place of the title: the title, or a question, and behind it the attributes if any, in the
        order of their names: a model that learned them in one order copies them worse from another."""
        if not record.get("attributes"):
            return record["title"]
        pairs = "; ".join(f"{name}: {value}" for name, value in sorted(record["attributes"].items()))
        return record["title"] + self.attributes.replace("{attributes}", pairs)

    def prompt_for(self, title: str) -> str:
        return self.prompt.replace("{title}", title)

    def answer_for(self, content: str) -> str:
        return self.answer.replace("{content}", content)

    def text_of(self, record: dict) -> str:
        """A whole record: its prompt and its answer, without the end token."""
        return self.prompt_for(self.asked(record)) + self.answer_for(record["content"])

    def chat_template(self, opening: str = "") -> str:
        """The same template in Jinja: a user message is a title, an assistant message its description.

        `opening` is what the tokenizer puts before every text of its own accord, its BOS token if anything.
        """
        before, after = (json.dumps(part, ensure_ascii=False) for part in self.prompt.split("{title}"))
        left, right = (json.dumps(part, ensure_ascii=False) for part in self.answer.split("{content}"))
        end = json.dumps(self.end, ensure_ascii=False) if self.end else "eos_token"
        return (
            f"{printed(opening)}{{% for message in messages %}}{{% if message['role'] == 'user' %}}"
            f"{{{{ {before} + message['content'] + {after} }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {left} + message['content'] + {right} + {end} }}}}"
            "{% endif %}{% endfor %}"
        )

    def save(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


QA = Template(
    name="qa",
    prompt="You are an assistant that answers questions based on the product description.\nQuestion: {title}\nAnswer:",
    answer=" {content}",
    stop=("\nQuestion:",),
)
INST = Template(
    name="inst",
    prompt="[INST] Write a description for the following product: {title} [/INST]",
    answer=" {content} ",
    stop=("[INST]",),
)
CHAT = Template(
    name="chat",
    prompt="<|system|>\nYou write product descriptions.\n<|user|>\n{title}\n<|assistant|>\n",
    answer="{content}",
    stop=("<|user|>", "<|system|>"),
)
QA_PT = "Você é um assistente que responde perguntas com base na descrição do produto.\nPergunta: {title}\nResposta:"
INST_PT = "[INST] Gere uma descrição para o seguinte produto: {title} [/INST]"
CHAT_PT = "<|system|>\nVocê escreve descrições de produtos.\n<|user|>\n{title}\n<|assistant|>\n"
TEMPLATES = {
    ("qa", "en"): QA,
    ("qa", "pt"): replace(QA, prompt=QA_PT, stop=("\nPergunta:",)),
    ("inst", "en"): INST,
    ("inst", "pt"): replace(INST, prompt=INST_PT),
    ("chat", "en"): CHAT,
    ("chat", "pt"): replace(CHAT, prompt=CHAT_PT),
}


def printed(text: str) -> str:
    """What prints `text` in a Jinja template."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def context_for(text: str) -> str:
    """What stands before the prompt when the answer shall be taken from `text` (`generate.py --grounded`)."""
    return f"Product description: {text}\n" if text else ""


def choose_template(name: str, language: str = "en", tokenizer: PreTrainedTokenizerBase | None = None) -> Template:
    """`qa`, `inst` or `chat` in a language ("en", "pt"), `hf`: the tokenizer's own, or the path of a TOML file.

    Raises `DataError` when there is no such template.
    """
    if name == "hf":
        return chat_template_of(tokenizer)
    if (name, language) in TEMPLATES:
        return TEMPLATES[name, language]
    try:
        values = tomllib.loads(Path(name).read_text(encoding="utf-8"))
        return template_of({"name": Path(name).stem} | values)
    except OSError:
        raise DataError(f"There is no template {name}: it is qa, inst, chat, hf, or the path of a TOML file.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f'{name} is not a prompt template ({error}). It needs prompt = "... {{title}} ..." and '
            'answer = " {content}"; attributes, end, stop, questions and held_out may be there.'
        ) from None


def chat_template_of(tokenizer: PreTrainedTokenizerBase | None) -> Template:
    """The tokenizer's own chat template, as it renders one user message and one answer, with its own end token."""
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError("This model brings no chat template: choose --template qa, inst or chat.")
    title, content = "TITLE-5f3b", "CONTENT-9c1e"  # placeholders that no template contains
    user, assistant = {"role": "user", "content": title}, {"role": "assistant", "content": content}
    prompt, whole = rendered(tokenizer, [([user], True), ([user, assistant], False)])
    answer, _, after = whole.removeprefix(prompt).partition(content)
    if not whole.startswith(prompt) or prompt.count(title) != 1 or whole.count(content) != 1:
        raise DataError("The chat template of this model cannot be cut in a prompt and an answer: choose another one.")
    end = next((token for token in special_tokens(tokenizer) if after.lstrip().startswith(token)), None)
    return Template("hf", prompt.replace(title, "{title}"), answer + "{content}", end)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that are no text, the longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)


def opening_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token that the tokenizer opens every text with (Llama's does, GPT-2's does not), as a list."""
    first = tokenizer("a", add_special_tokens=True).input_ids[:1]
    return first if first == [tokenizer.bos_token_id] else []


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Give the tokenizer the template's end token and, unless the template is its own, the template in Jinja.

    Raises `DataError` when the end token is not one token of it.
    """
    if template.end is not None:
        if template.end not in tokenizer.get_vocab():
            raise DataError(f"The template {template.name} ends with {template.end}, which this model does not know.")
        tokenizer.eos_token = template.end
    opening = tokenizer.decode(opening_of(tokenizer))
    opening = "" if template.prompt.startswith(opening) else opening
    if template.name != "hf":
        tokenizer.chat_template = template.chat_template(opening)
    elif opening and not tokenizer.chat_template.startswith(printed(opening)):
        tokenizer.chat_template = printed(opening) + tokenizer.chat_template  # it would leave the BOS token to others


def template_of(values: dict) -> Template:
    """A template from JSON or TOML values. Raises `ValueError`, `TypeError` or `AttributeError` when it is none."""
    if unknown := set(values) - {f.name for f in fields(Template)}:
        raise ValueError(f"unknown key {sorted(unknown)[0]}")
    stop, questions = values.get("stop", ()), values.get("questions", QUESTIONS)
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    texts = [values.get("name"), values.get("prompt"), values.get("answer"), values.get("end") or "-", *stop]
    texts += [values.get("attributes", "-")]
    texts += [form for forms in questions.values() for form in forms]
    if not all(isinstance(text, str) and text for text in texts):
        raise TypeError("name, prompt, answer, attributes, end, stop and questions are texts, and not empty")
    if not all(isinstance(forms, (list, tuple)) and forms for forms in questions.values()):
        raise TypeError("questions are lists of at least one form")
    questions = {language: tuple(forms) for language, forms in questions.items()}
    return Template(**values | {"stop": stop, "end": values.get("end") or None, "questions": questions})


def template_of_run(run: Path, named: str | None) -> Template:
    """The template that a run keeps. Raises `DataError` when `named`, a TOML file, says another one by now."""
    template = load_template(run)
    if named and Path(named).is_file() and choose_template(named) != template:
        raise DataError(f"{named} was edited since {run} began. Leave it out: the run has its own copy.")
    return template


def load_template(folder: Path, default: Template | None = None) -> Template:
    """The template saved in `folder`, or `default` where none was saved: an adapter that somebody else trained.

    Raises `DataError` when it is absent, without a default, or not a template.
    """
    path = folder / FILE_NAME
    if default is not None and not path.exists():
        return default
    try:
        return template_of(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{folder} has no {FILE_NAME}: it was not trained by Vitrine, or is not whole.") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is not a prompt template. Restore it, or train again.") from None
