"""Data preparation side by side with the pipeline that this project began as, and on a catalogue of LF-Amazon's size.

    python benchmarks/data_prep.py                     writes 2.25 million synthetic lines first; 10 minutes in all
    python benchmarks/data_prep.py --lines 200000      quicker

Speed is lines of the input over wall time, start of the processes included. Memory is the peak of the sum over all
processes of what each has resident (pages that they share count several times), sampled every 20 ms. Needs `datasets`
(requirements-dev.txt). The pipeline it began as: json.loads and regular expressions, `tokenizer.encode` of each record
to know its length, then `datasets.map` with padding to 256. With the GPT-2 tokenizer of --tokenizer, or without one a
BPE of the same size trained on the example catalogue.
"""

import argparse
import gzip
import html
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SHORT = 0.5  # of the lines, as in LF-Amazon, have no content or next to none


def write_catalogue(path: Path, lines: int, seed: int = 42) -> None:
    """`lines` lines in the schema of trn.json, half of them empty or very short, with the dirt that is in the real one.

    The others have 60 to 20,000 characters, log-normal with a median of 420 and a mean of 630 (as the 500 real records
    at hand). Of all lines 4 % are exact duplicates, 2 % near ones, 0.01 % broken, 10 % have entities, 6 % tags.
    """
    rng = random.Random(seed)
    with gzip.open(ROOT / "examples" / "catalogue.json.gz", "rt", encoding="utf-8", errors="replace") as example:
        words = sorted({word for line in example for word in re.findall(r"\b[a-zà-ú]{3,}\b", line)})
    syllables = [a + b for a in "bdfgklmnprstv" for b in ("a", "e", "i", "o", "u", "er", "an")]
    words += ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(30_000)]
    rng.shuffle(words)
    weights = [1 / (rank + 3) for rank in range(len(words))]  # Zipf's law
    stream = rng.choices(words, weights, k=2_000_000)
    recent: list[dict] = []
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(lines):
            kind = rng.random()
            if recent and kind < 0.06:
                record = dict(rng.choice(recent))
                if kind >= 0.04:
                    record["content"] += " New in this edition."
            else:
                record = {"uid": f"{number:010}", "title": " ".join(_words(stream, rng, rng.randint(2, 12))).title()}
                record["content"] = "" if rng.random() < 0.4 else " ".join(_words(stream, rng, 2))
                if rng.random() >= SHORT:
                    size = min(20_000, max(60, rng.lognormvariate(6.04, 0.9)))
                    record["content"] = _text(_words(stream, rng, int(size / 6.6)), rng)
                    recent = [*recent[-499:], record]
                labels = rng.randint(0, 12)
                record |= {"target_ind": rng.sample(range(1_305_265), labels), "target_rel": [1.0] * labels}
            line = json.dumps(record)
            file.write((line[: len(line) // 2] if rng.random() < 1e-4 else line).encode("utf-8") + b"\n")


def _words(stream: list[str], rng: random.Random, count: int) -> list[str]:
    start = rng.randrange(len(stream) - count)
    return stream[start : start + count]


def _text(words: list[str], rng: random.Random) -> str:
    for i in range(0, len(words), 11):
        words[i] = ". " * (i > 0) + words[i].capitalize()
    text = " ".join(words).replace(" . ", ". ") + "."
    dirt = rng.random()
    if dirt < 0.10:
        text = html.escape(text.replace(" de ", " &eacute; ")).replace(" an", " &#x2019;an") + " &amp; more&#151;"
    elif dirt < 0.16:
        text = "<p>" + text.replace(". ", ".</p><p><b>New</b> ", 3) + "</p><br>"
    elif dirt < 0.18:
        text = text.replace("a ", "Ã© ", 5)
    return text


def begun_as(source: Path, tokenizer_folder: Path) -> None:
    """The pipeline that this project began as."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.pad_token = tokenizer.eos_token
    records = []
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            title, content = (_by_regex(record.get(key) or "") for key in ("title", "content"))
            if title and len(content) >= 20:
                text = f"Question: {title}\nAnswer: {content}"
                if len(tokenizer.encode(text)) <= 1024:
                    records.append({"text": text})

    def padded(batch):
        return tokenizer(batch["text"], truncation=True, padding="max_length", max_length=256)

    Dataset.from_list(records).map(padded, batched=True)


def _by_regex(text: str) -> str:
    text = re.sub(r"<[^>]+>", " ", html.unescape(text))
    text = re.sub(r"[^\w\s.,;:!?'\"()-]", "", text)
    return re.sub(r"\s+", " ", text).strip()


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a command, and the peak memory in bytes of it and all processes under it."""
    begin, peak = time.perf_counter(), 0
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    tree = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            processes = [tree, *tree.children(recursive=True)]
            peak = max(peak, sum(process.memory_info().rss for process in processes if process.is_running()))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)
    if child.returncode:
        raise SystemExit(child.stderr.read().decode("utf-8", "replace"))
    return time.perf_counter() - begin, peak


def first_lines(source: Path, target: Path, count: int) -> int:
    """Copy the first `count` lines; returns their unpacked bytes."""
    size = 0
    with gzip.open(source, "rb") as lines, gzip.open(target, "wb", compresslevel=1) as out:
        for _, line in zip(range(count), lines, strict=False):
            size += out.write(line)
    return size


def tokenizer_folder(given: Path | None, folder: Path) -> Path:
    if given is not None:
        return given
    from text.bpe import train_bpe

    with gzip.open(ROOT / "examples" / "catalogue.json.gz", "rt", encoding="utf-8", errors="replace") as lines:
        train_bpe(lines, 50_257).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=2_250_000, help="of the synthetic catalogue [2,250,000]")
    parser.add_argument("--slice", type=int, default=50_000, help="lines for the side by side [50,000]")
    parser.add_argument("--workers", type=int, default=2, help="[2]")
    parser.add_argument("--tokenizer", type=Path, help="folder of GPT-2's tokenizer")
    parser.add_argument("--folder", type=Path, help="where the synthetic catalogue is kept for the next time")
    parser.add_argument("--begun_as", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.begun_as:
        return begun_as(*args.begun_as)

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folder = args.folder or scratch
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder / f"trn-{args.lines}.json.gz"
        if not whole.exists():
            print(f"writing {args.lines:,} lines ...", file=sys.stderr)
            write_catalogue(whole, args.lines)
        part, tenth = scratch / "slice.json.gz", scratch / "tenth.json.gz"
        sizes = {part: first_lines(whole, part, args.slice), tenth: first_lines(whole, tenth, args.lines // 10)}
        sizes[whole] = sizes[tenth] * 10
        lines = {part: args.slice, tenth: args.lines // 10, whole: args.lines}

        python, out = sys.executable, str(scratch / "data")
        bare = ["--no_catalogue", "--no_report", "--workers", str(args.workers), "--output_dir", out]
        exact = [*bare, "--no_near_duplicates"]
        everything = ["--workers", str(args.workers), "--output_dir", out]
        tokenizer = str(tokenizer_folder(args.tokenizer, scratch))
        runs = [
            ("what it began as", part, [__file__, "--begun_as", str(part), tokenizer]),
            ("cleaning, exact duplicates", part, ["data_prep.py", str(part), *exact]),
            ("... and near duplicates", part, ["data_prep.py", str(part), *bare]),
            ("... and index, report", part, ["data_prep.py", str(part), *everything]),
            ("cleaning, exact duplicates", tenth, ["data_prep.py", str(tenth), *exact]),
            ("cleaning, exact duplicates", whole, ["data_prep.py", str(whole), *exact]),
            ("... and near duplicates", whole, ["data_prep.py", str(whole), *bare]),
        ]
        print(f"{'':<28}{'lines':>11}{'seconds':>9}{'lines/s':>9}{'MB/s':>7}{'peak MB':>9}", flush=True)
        for name, source, command in runs:
            seconds, peak = measure([python, *command])
            speed, bandwidth = lines[source] / seconds, sizes[source] / seconds / 1e6
            print(
                f"{name:<28}{lines[source]:>11,}{seconds:>9.1f}{speed:>9,.0f}{bandwidth:>7.1f}{peak / 1e6:>9,.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
