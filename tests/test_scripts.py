"""The scripts as a person starts them: exit codes, sentences, pipes."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, script, write_data

import generate
from run.cli import UsageError

SCRIPTS = ("data_prep.py", "train.py", "generate.py", "evaluate.py", "export.py", "plot.py")


@pytest.fixture
def run(tmp_path, data, gpt2_folder, train):
    train("--model", gpt2_folder, "--run_name", "a", "--max_steps", 2)
    return tmp_path / "runs" / "a"


def said(result, code: int) -> str:
    """The one or two sentences on standard error; never a traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_comes_without_torch(name):
    result = script(name, "--help")
    assert result.returncode == 0 and name in result.stdout
    code = f"import sys, runpy; sys.argv = ['{name}', '--help']\n"
    code += f"try: runpy.run_path(r'{ROOT / name}', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    from subprocess import run as start
    from sys import executable

    assert start([executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_flag_is_exit_code_2(name):
    assert "unknown argument --colour" in said(script(name, "--colour", "blue", "in.json"), 2)


def test_missing_data_is_exit_code_2(tmp_path):
    assert "data_prep.py" in said(script("train.py", "--data", tmp_path / "none", "--model", "pocket"), 2)


def test_empty_data_is_exit_code_2(tmp_path):
    write_data(tmp_path / "data", [])
    assert "holds no record" in said(script("train.py", "--data", tmp_path / "data", "--model", "pocket"), 2)


def test_an_unwritable_output_is_exit_code_6(tmp_path, data):
    (tmp_path / "file").write_text("", encoding="utf-8")
    args = ("--data", data, "--model", "pocket", "--output_dir", tmp_path / "file" / "runs")
    assert "--output_dir" in said(script("train.py", *args), 6)


@pytest.mark.parametrize("model", ["no-such/model", "no_such_folder", "."])
def test_an_unknown_model_is_exit_code_3(tmp_path, data, model):
    message = said(script("train.py", "--data", data, "--model", model, "--output_dir", tmp_path), 3)
    assert f"The model {model} cannot be loaded" in message and "--model" in message


def test_cuda_without_a_gpu_is_exit_code_3(tmp_path, data):
    said(script("train.py", "--data", data, "--device", "cuda", "--output_dir", tmp_path), 3)


def test_only_the_answer_is_printed(run):
    result = script("generate.py", "--run", run, "--title", "Caneca azul", "--greedy", "--max_new_tokens", 8)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "Question" not in result.stdout and "assistant" not in result.stdout and "Caneca" not in result.stdout


def test_a_pipe_of_titles_gives_a_line_each(run):
    args = ("--run", run, "--max_new_tokens", 8, "--num_return_sequences", 2)
    result = script("generate.py", *args, stdin="Caneca azul\n\nPão de forma\n")
    assert result.returncode == 0 and result.stdout.count("\n") == 4


def test_a_file_of_titles_gives_jsonl(run, tmp_path):
    titles = tmp_path / "titles.txt"
    titles.write_text("\ufeffCaneca azul\nPão <|endoftext|> 🙂\n", encoding="utf-8")
    result = script("generate.py", "--run", run, "--titles", titles, "--max_new_tokens", 8)
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["title"] for entry in entries] == ["Caneca azul", "Pão <|endoftext|> 🙂"]
    assert all(set(entry) == {"title", "answer", "stopped"} for entry in entries)


def test_a_title_that_is_too_long_gets_no_answer_and_the_others_do(run, tmp_path):
    """In their order, with the answers that they have without it; U+2028 ends no title, and is read as a space."""
    titles, more = tmp_path / "titles.txt", ("--max_new_tokens", 6, "--seed", 3)
    long, odd = "mug " * 50_000, "Caneca\u2028azul"
    titles.write_text(f"Caneca azul\n{long}\n{odd}\n", encoding="utf-8")
    result = script("generate.py", "--run", run, "--titles", titles, *more)
    assert result.returncode == 0 and "1 without an answer (longer than what the model sees)" in result.stderr
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["title"] for entry in entries] == ["Caneca azul", long.strip(), "Caneca azul"]
    assert [bool(entry.get("error")) for entry in entries] == [False, True, False]
    assert "longer than the" in script("generate.py", "--run", run, "--title", long[:4000]).stderr
    titles.write_text(f"Caneca azul\nx\n{odd}\n", encoding="utf-8")
    again = script("generate.py", "--run", run, "--titles", titles, *more).stdout.splitlines()
    assert json.loads(again[2])["answer"] == entries[2]["answer"]


def test_the_same_seed_gives_the_same_answer_and_before_another_one(run):
    args = ("--run", run, "--title", "Caneca", "--max_new_tokens", 12)
    first, again, other, before = (
        script("generate.py", *args, *more).stdout for more in ((), (), ("--seed", 7), ("--before", "--greedy"))
    )
    assert first == again != other
    base = json.loads((run / "train_config.json").read_text(encoding="utf-8"))["base_model"]
    assert "tiny-gpt2" in base and before.strip()


@pytest.mark.parametrize(
    "args, sentence",
    [
        (("--title", "x", "--titles", "y"), "not both"),
        (("--temperature", "-1"), "at least 0"),
        (("--temperature", "nan"), "at least 0"),
        (("--top_p", "1.5"), "at most 1"),
        (("--temperature", "0", "--num_return_sequences", "2"), "only one answer"),
        (("--titles", "missing.txt"), "missing.txt"),
        (("--run", "missing"), "is no run"),
        (("--greedy", "--num_return_sequences", "2"), "only one answer"),
    ],
)
def test_generate_says_what_is_wrong(args, sentence, tmp_path):
    assert sentence in said(script("generate.py", "--output_dir", tmp_path, *args), 2)


def test_no_run_yet_is_a_sentence(tmp_path):
    for name in ("generate.py", "evaluate.py", "export.py"):
        assert "python train.py" in said(script(name, "--output_dir", tmp_path), 2)


def test_nothing_on_the_pipe_is_a_sentence(run):
    assert "no title" in said(script("generate.py", "--run", run, stdin="\n"), 2)


@pytest.mark.parametrize("way", ["title", "titles", "pipe"])
def test_generate_asks_with_the_training_prompt_and_prints_the_answer_alone(run, tmp_path, monkeypatch, capsys, way):
    """What reaches the model is, token for token, what stood before the answer in training; none of it is printed."""
    import io
    import sys

    import generate
    from model.load import load_tokenizer
    from text.batch import Encoder
    from text.template import load_template

    tokenizer = load_tokenizer(run / "final")
    record = {"uid": "1", "title": "Caneca {azul} <|endoftext|>", "content": "Boa."}
    (row,) = Encoder(tokenizer, load_template(run / "final"), 256).rows([record])
    answer, asked = tokenizer(" Muito boa.").input_ids, []

    def write(model, next_answer, *args):
        while found := next_answer():
            asked.append(found.prompt)
            for token in answer:
                found.ids.append(token)
                yield [(found, found.ids == answer)]

    monkeypatch.setattr("run.candidates.write", write)
    monkeypatch.setattr("run.loop.write", write)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{record['title']}\n{record['title']}\n"))
    (tmp_path / "titles.txt").write_text(record["title"] + "\n", encoding="utf-8")
    ways = {"title": ["--title", record["title"]], "titles": ["--titles", str(tmp_path / "titles.txt")], "pipe": []}
    capsys.readouterr()
    options = ["--run", str(run), "--device", "cpu", "--candidates", "1", *ways[way]]
    assert generate.main(generate.parse(options)) == 0

    assert asked and all(prompt == row.ids[: row.first_supervised] for prompt in asked)
    printed = capsys.readouterr().out
    expected = {"title": "Muito boa.\n", "pipe": "Muito boa.\nMuito boa.\n"}
    if way == "titles":
        assert json.loads(printed)["answer"] == "Muito boa."
    else:
        assert printed == expected[way]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_titles_in_every_usual_encoding(tmp_path, encoding, capsys):
    (tmp_path / "titles.txt").write_bytes("Caneca de aço\r\nXícara «branca»\r\n".encode(encoding))
    asked = generate.read_titles(tmp_path / "titles.txt").asked
    assert [title.title for title in asked] == ["Caneca de aço", "Xícara «branca»"]
    assert ("read as cp1252" in capsys.readouterr().err) == (encoding == "cp1252")
    (tmp_path / "russian.txt").write_bytes("Кружка голубая".encode("cp1251"))
    with pytest.raises(UsageError, match="no UTF-8"):
        generate.read_titles(tmp_path / "russian.txt")


@pytest.mark.parametrize("command", [
    ("train.py", "--data", "nowhere"),
    ("train.py", "--resume", "nowhere"),
    ("train.py", "--resume"),
    ("train.py", "--recipe", "nowhere.toml"),
    ("train.py", "--batch_size", "1000000000"),
    ("generate.py", "--run", "nowhere", "--title", "mug"),
    ("generate.py", "--titles", "nowhere.txt"),
    ("evaluate.py",),
    ("evaluate.py", "--run", "no\nwhere" + "x" * 3000),
    ("evaluate.py", "--compare", "pocket", "--facts", "nowhere.json"),
    ("evaluate.py", "--data", "nowhere"),
    ("export.py", "--run", "nowhere"),
    ("export.py", "--from_bin", "nowhere", "--to", "there"),
])  # fmt: skip
def test_what_is_not_there_is_said_before_torch_is_loaded(tmp_path, command):
    """In one line, however long the name is and whatever stands in it."""
    for heavy in ("torch", "transformers"):
        (tmp_path / f"{heavy}.py").write_text("raise SystemExit('it is loaded')", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]], cwd=tmp_path, env=environment,
                          capture_output=True, encoding="utf-8")  # fmt: skip
    assert done.returncode == 2 and "loaded" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 2 and len(done.stderr) < 1500
