"""A model's own chat template, rendered in a process of its own: it is a program that came with the model, and what one
of its loops or products takes is not known before."""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress

import psutil
from transformers import PreTrainedTokenizerBase

from text.errors import DataError

SECONDS, MOST_BYTES = 15, 1 << 30  # 1 s and 0.1 GB are what it takes
MOST_CHARS = 10_000  # of a rendering

_RENDER = f"""
import faulthandler, json, sys
faulthandler.dump_traceback_later({2 * SECONDS}, exit=True)  # should nobody be there any more to end it
from transformers.utils.chat_template_utils import render_jinja_template
asked = json.load(sys.stdin)
texts = []
for chat, opens_answer in asked["chats"]:
    try:
        (text,), _ = render_jinja_template([chat], chat_template=asked["template"], add_generation_prompt=opens_answer,
                                           **asked["tokens"])
    except Exception as error:
        sys.exit(ascii(error)[:300])
    if len(text) > {MOST_CHARS}:
        sys.exit("it makes {MOST_CHARS:,} characters of one")
    texts.append(text)
json.dump(texts, sys.stdout)
"""


def rendered(tokenizer: PreTrainedTokenizerBase, chats: list[tuple[list[dict[str, str]], bool]]) -> list[str]:
    """What the tokenizer's chat template makes of each conversation, with or without the opening of an answer: as
    `tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=...)`.

    Raises DataError when it fails, or takes more than SECONDS or MOST_BYTES.
    """
    asked = {"template": tokenizer.get_chat_template(), "tokens": tokenizer.special_tokens_map, "chats": chats}
    end = time.monotonic() + SECONDS
    command = [sys.executable, "-P", "-c", _RENDER]  # -P: nothing from the folder one is in
    with ExitStack() as stack:
        way_in, out, said = (stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3))
        json.dump(asked, way_in)
        way_in.seek(0)
        child = stack.enter_context(subprocess.Popen(command, stdin=way_in, stdout=out, stderr=said))
        stack.callback(child.kill)  # after Ctrl-C too
        while child.poll() is None:
            with suppress(psutil.Error):
                if time.monotonic() > end or psutil.Process(child.pid).memory_info().rss > MOST_BYTES:
                    child.kill()
            time.sleep(0.01)
        out.seek(0)
        said.seek(0)
        texts, errors = out.read(), said.read()
    if child.returncode:
        reason = (errors.strip().splitlines() or [f"it takes more than {SECONDS} s or {MOST_BYTES >> 30} GB"])[-1]
        raise DataError(f"The chat template of this model fails ({reason}): choose --template qa, inst or chat.")
    return json.loads(texts)
