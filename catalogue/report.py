"""The dataset report: what went in, what was left out and why, and what the records look like. For people to read.

Counts are exact. Lengths and languages are measured on at most SAMPLE records, spread evenly.
"""

import io
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from catalogue.duplicates import digest
from catalogue.page import COLOURS, as_text, bars, page, row, section, tiles_of
from catalogue.prepare import Counts
from text.errors import DataError
from text.template import QA

SAMPLE = 20_000
MAX_LENGTH = 256  # tokens, the default of train.py --max_length
TITLES = 12

# The most frequent words of a language that others do not have, in accents and capitals as they are in running text.
LANGUAGES = {
    "English": "the and of with for this is to your from it are that you",
    "Portuguese": "não uma com para você ou são mais do da em ao os um na no seu",
    "Spanish": "el los las una con para y más su del por es en lo",
    "French": "le les des une et pour avec est dans vous du au sur",
    "German": "der die das und mit für ist ein eine von zu den im",
    "Italian": "il gli una e per con di che è della nel sono",
}
_OTHER_SCRIPTS = {
    "Chinese or Japanese": re.compile("[\u3040-\u30ff\u3400-\u9fff]"),
    "Korean": re.compile("[\uac00-\ud7af]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Indic": re.compile("[\u0900-\u0dff]"),
}

_PIECE = re.compile(r"[A-Za-z]+|\d+|[^\x00-\x7f]|[^\sA-Za-z\d]+")
OTHER_LANGUAGES = 1.45  # GPT-2's tokenizer was made from English: Portuguese takes that many more of its tokens


def write_report(
    paths: dict[str, Path], inputs: list[str], counts: Counts, examples: list[tuple], counter: tuple[Callable, str]
) -> None:
    """Write report.html of the splits in `paths`.

    `inputs` are the names of the sources, each of `examples` is (title, content) before and after cleaning, `counter`
    comes from `token_counter`.
    """
    count_tokens, how = counter
    files = [paths[f"{split}.jsonl"] for split in counts.kept]
    stride = math.ceil(counts.records / SAMPLE)
    sample = [json.loads(line) for line in islice(_lines(files), 0, None, stride)]
    languages = [language_of(record["content"]) for record in sample]
    lengths = np.array(count_tokens(sample, languages))
    measured = f"of {len(sample):,} records, spread evenly" if stride > 1 else "of every record"
    median, cut = f"{np.median(lengths):.0f}", f"{(lengths > MAX_LENGTH).mean():.1%}"
    facts = {
        "inputs": inputs,
        "counts": counts,
        "lengths": lengths,
        "median": median,
        "cut": cut,
        "about_lengths": (
            f"Tokens {measured}, prompt and end token included, {how}. Mean {lengths.mean():.0f}, median {median}. "
            f"{cut} are longer than {MAX_LENGTH} and will be cut at the end of a sentence."
        ),
        "languages": Counter(languages).most_common(),
        "titles": frequent_titles(files),
        "examples": examples,
    }
    paths["report.html"].write_text(_page(facts), encoding="utf-8", newline="\n")


def _lines(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            yield from file


def frequent_titles(files: list[Path]) -> list[tuple[str, int]]:
    """The TITLES most frequent titles that occur more than once, capitals aside; memory is 8 bytes a record."""
    titles = (json.loads(line)["title"] for line in _lines(files))
    digests = array("Q", (int.from_bytes(digest(title.casefold()), "big") for title in titles))
    _, first, counts = np.unique(np.frombuffer(digests, np.uint64), return_index=True, return_counts=True)
    most = np.lexsort((first, -counts))[:TITLES]
    wanted = {int(first[i]): int(counts[i]) for i in most if counts[i] > 1}
    titles = {i: json.loads(line)["title"] for i, line in enumerate(_lines(files)) if i in wanted}
    return [(titles[i], count) for i, count in wanted.items()]


def language_of(text: str) -> str:
    """The language of a text: its script if that is not Latin, else whose frequent words it has most of."""
    for name, letters in _OTHER_SCRIPTS.items():
        if len(letters.findall(text)) * 4 > len(text):
            return name
    words = Counter(re.findall(r"\w+", text.casefold()))
    scores = {name: sum(words[word] for word in known.split()) for name, known in LANGUAGES.items()}
    best = max(scores, key=scores.get)
    return best if scores[best] > 1 else "not clear"


def token_counter(tokenizer: str | None) -> tuple[Callable, str]:
    """(records, their languages) -> tokens of each with prompt and end token; and the way they are counted, in words.

    `tokenizer`: a folder or hub id, None for an estimate.
    Raises DataError when the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        prompt = estimated_tokens(QA.prompt_for(""), "English")

        def estimate(records: list[dict], languages: list[str]) -> list[int]:
            texts = (f"{record['title']} {record['content']}" for record in records)
            return [prompt + 1 + estimated_tokens(*pair) for pair in zip(texts, languages, strict=True)]

        return estimate, "estimated for GPT-2's tokenizer; data_prep.py --tokenizer counts them"
    encoder = _load_tokenizer(tokenizer)

    def exact(records: list[dict], languages: list[str]) -> list[int]:
        texts = [QA.prompt_for(record["title"]) + QA.answer_for(record["content"]) for record in records]
        return [1 + len(encoding.ids) for encoding in encoder.encode_batch(texts, add_special_tokens=False)]

    return exact, f"counted with the tokenizer {Path(tokenizer).name}"


def estimated_tokens(text: str, language: str) -> int:
    """Tokens of GPT-2's byte-level BPE, to a few per cent on average: a word has one for its first five letters and
    one for each four after them, a run of digits or punctuation one, and so has every letter beyond ASCII."""
    pieces = _PIECE.findall(text)
    tokens = len(pieces) + sum((len(piece) - 5) // 4 for piece in pieces if len(piece) > 8)
    return round(tokens if language == "English" else tokens * OTHER_LANGUAGES)


def _load_tokenizer(name: str):
    from tokenizers import ByteLevelBPETokenizer, Tokenizer  # transformers' AutoTokenizer would load torch

    folder = Path(name)
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.json").is_file():
            return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises Exception itself
        raise DataError(
            f"The tokenizer {name} cannot be loaded ({error}). Give a folder with tokenizer.json, or leave "
            "--tokenizer out: lengths are then estimated."
        ) from None


# ---- the page


def _page(facts: dict) -> str:
    counts = facts["counts"]
    tiles = [
        (f"{counts.lines:,}", "lines read"),
        (f"{counts.records:,}", f"records kept ({counts.records / counts.lines:.1%})"),
        (facts["median"], "tokens in the median record"),
        (facts["cut"], f"longer than {MAX_LENGTH} tokens"),
    ]
    body = [
        "<h1>What is in this data</h1>",
        f"<p>Inputs: {as_text(', '.join(facts['inputs']))}</p>",
        tiles_of(tiles),
        section("Where the lines went", "Every line read was kept or left out, for one reason.", _count_table(counts)),
        section("Lengths", facts["about_lengths"], _histogram(facts["lengths"])),
        section("Languages", "By their most frequent words, in the same sample.", bars(facts["languages"])),
    ]
    if facts["titles"]:
        body.append(section("Most frequent titles", "Capitals aside.", bars(facts["titles"])))
    if facts["examples"]:
        rows = "".join(
            f'<tr><td class="raw">{as_text(raw_title)}<br><br>{as_text(raw_content)}</td>'
            f"<td><b>{as_text(title)}</b><br><br>{as_text(content)}</td></tr>"
            for (raw_title, raw_content), (title, content) in facts["examples"]
        )
        table = f'<table class="pairs"><tr><th>as it came</th><th>as it will be learned</th></tr>{rows}</table>'
        body.append(section("Before and after cleaning", "Drawn evenly from the records that changed.", table))
    return page("What is in this data", body)


def _count_table(counts: Counts) -> str:
    rows, color = "", ""
    for name, count, share in counts.rows():
        color = " class=out" if name == "left out" else color  # from here on
        cell = f'<td class="in">{name.strip()}</td>' if name.startswith(" ") else f"<td><b>{name}</b></td>"
        rows += row(cell, [f"{count:,}", f"{share:.1%}"], 100 * share, color)
    return f"<table>{rows}</table>"


def _histogram(lengths: np.ndarray) -> str:
    """Lengths in tokens as inline SVG, with the line where records are cut; the same bytes on every run."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    last = int(max(np.percentile(lengths, 99), MAX_LENGTH * 1.25))
    with rc_context({"svg.hashsalt": "vitrine", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.add_subplot()
        inside, over = lengths[lengths <= MAX_LENGTH], lengths[lengths > MAX_LENGTH].clip(max=last)
        axes.hist([inside, over], bins=np.linspace(0, last, 65).tolist(), stacked=True, color=["#2f6db5", "#d9822b"])
        axes.axvline(MAX_LENGTH, color="#1d2733", linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"{MAX_LENGTH} tokens", (MAX_LENGTH, 1), xycoords=("data", "axes fraction"), xytext=(6, -12),
            textcoords="offset points", color="#1d2733", fontsize=10,
        )  # fmt: skip
        axes.set_xlim(0, last)
        axes.set_xlabel("tokens in a record" + (f" (the last bar: {last} and more)" if lengths.max() > last else ""))
        axes.set_ylabel("records")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color="#66727f", labelcolor="#66727f")
        image = io.StringIO()
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", image.getvalue(), flags=re.DOTALL)
    for colour, name in COLOURS.items():  # so that it follows the page from light to dark
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg[svg.index("<svg ") :], count=1)
