"""The prompt template: the one place where a title becomes a prompt, in training, evaluation and generation alike.

It is saved beside the weights (`template.json`, and as the tokenizer's `chat_template` for other programs) and read
back from there, so a model is always asked in the words that it was trained with.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from text.errors import DataError

FILE_NAME = "template.json"


@dataclass(frozen=True)
class Template:
    """`prompt` contains `{title}` once, `answer` contains `{content}` once; a record is the two joined.

    The space between them belongs to the answer: byte-level BPE has a token for " High" but a prompt that ends in a
    space leaves that space as a token of its own, which no text of the base model's training ever had.
    """

    name: str
    prompt: str
    answer: str

    def prompt_for(self, title: str) -> str:
        return self.prompt.replace("{title}", title)

    def answer_for(self, content: str) -> str:
        return self.answer.replace("{content}", content)

    def chat_template(self) -> str:
        """The same template in Jinja: a user message is a title, an assistant message its description."""
        before, after = (json.dumps(part, ensure_ascii=False) for part in self.prompt.split("{title}"))
        opening, closing = (json.dumps(part, ensure_ascii=False) for part in self.answer.split("{content}"))
        return (
            "{% for message in messages %}{% if message['role'] == 'user' %}"
            f"{{{{ {before} + message['content'] + {after} }}}}"
            "{% elif message['role'] == 'assistant' %}"
            f"{{{{ {opening} + message['content'] + {closing} + eos_token }}}}"
            "{% endif %}{% endfor %}"
        )

    def save(self, folder: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


QA = Template(
    name="qa",
    prompt="You are an assistant that answers questions based on the product description.\nQuestion: {title}\nAnswer:",
    answer=" {content}",
)
TEMPLATES = {"qa": QA}


def context_for(text: str) -> str:
    """What stands before the prompt when the answer shall be taken from `text` (`generate.py --grounded`)."""
    return f"Product description: {text}\n" if text else ""


def load_template(folder: Path) -> Template:
    """The template saved in `folder`. Raises `DataError` when it is absent or not a template."""
    path = folder / FILE_NAME
    try:
        template = Template(**json.loads(path.read_text(encoding="utf-8")))
        if template.prompt.count("{title}") == 1 and template.answer.count("{content}") == 1:
            return template
    except FileNotFoundError:
        raise DataError(f"{folder} has no {FILE_NAME}: it was not trained by Vitrine, or is not whole.") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path} is not a prompt template. Restore it, or train again.")
