"""The command line and the recipes."""

from dataclasses import asdict

import pytest
from conftest import ROOT

from run.cli import UsageError, did_you_mean
from run.config import NEWEST, TrainConfig, from_json, parse_train, read_recipe, with_model_defaults


def test_the_names_are_those_of_the_trainer_and_the_seed_values_are_the_defaults():
    config = with_model_defaults(parse_train([]).config, from_scratch=False)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.learning_rate) == (3, 16, 5e-5)
    assert (config.save_steps, config.save_total_limit, config.logging_steps) == (500, 1, 100)
    assert (config.weight_decay, config.lr_scheduler_type) == (0.01, "linear")
    assert (config.max_length, config.seed, config.max_grad_norm, config.dropout) == (256, 42, 1.0, 0.0)


def test_dashes_count_as_underscores_and_short_forms_exist():
    config = parse_train(["--max-steps", "7", "--save-steps=9", "--epochs", "2", "--lr", "1e-3", "--model", "m"]).config
    assert (config.max_steps, config.save_steps, config.num_train_epochs) == (7, 9, 2.0)
    assert (config.learning_rate, config.model_name_or_path) == (1e-3, "m")


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--lerning_rate", "1"], "unknown argument --lerning_rate; did you mean --learning_rate?"),
        (["--max_steps", "many"], "max_steps"),
        (["--max_steps", "0"], "max_steps: 0 is not at least 1"),
        (["--lr", "nan"], "learning_rate"),
        (["--lr", "-1"], "learning_rate"),
        (["--dropout", "1.5"], "dropout"),
        (["--loss_on", "prompt"], "loss_on"),
        (["--run_name", "a/b"], "run_name"),
        (["--run_name", "a:b"], "run_name"),
        (["--recipe", "missing.toml"], "missing.toml"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_argument_is_a_sentence_and_exit_code_2(args, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(args)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_flag_beats_recipe_beats_default(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('max_steps = 5\nlearning_rate = 1\nlr_scheduler_type = "cosine"\n', encoding="utf-8")
    command = parse_train(["--recipe", str(recipe), "--max_steps", "9"])
    assert (command.config.max_steps, command.config.learning_rate, command.config.seed) == (9, 1.0, 42)
    assert command.given == {"max_steps": 9, "learning_rate": 1.0, "lr_scheduler_type": "cosine"}


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("max_stepz = 1", "did you mean max_steps"),
        ("max_steps = 'one'", "of type int"),
        ("max_steps = 1.5", "of type int"),
        ("seed = true", "of type int"),
        ("max_steps =", "not valid TOML"),
        ("[model]\nname = 'x'", "unknown option model"),
    ],
)
def test_a_wrong_recipe_is_a_sentence(tmp_path, text, sentence):
    recipe = tmp_path / "r.toml"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        read_recipe(recipe)


def test_resume_with_and_without_a_value():
    assert parse_train([]).resume is None
    assert parse_train(["--resume"]).resume == NEWEST
    assert parse_train(["--resume_from_checkpoint", "runs/a"]).resume == "runs/a"


def test_a_saved_configuration_comes_back():
    config = parse_train(["--lr", "1e-3"]).config
    assert from_json(asdict(config), "here") == config
    with pytest.raises(UsageError, match="unknown option colour"):
        from_json(asdict(config) | {"colour": "red"}, "here")


def test_values_are_checked_wherever_they_come_from():
    with pytest.raises(UsageError, match="max_length"):
        TrainConfig(max_length=0)


def test_no_suggestion_for_what_is_like_nothing():
    assert did_you_mean("zzzzzz", ["max_steps"]) == ""


def test_every_recipe_of_the_house_can_be_read():
    for recipe in sorted((ROOT / "recipes").glob("*.toml")):
        assert TrainConfig(**read_recipe(recipe)), recipe


@pytest.mark.parametrize("name", ["con", "NUL.txt", "a\nb", "a\x1bb", "a\u202eb", "x" * 151, "a/b", "a ", ".", "a."])
def test_a_run_has_a_name_that_every_system_can_have(name, capsys):
    with pytest.raises(SystemExit):
        parse_train(["--run_name", name])
    assert "run_name" in capsys.readouterr().err
    assert parse_train(["--run_name", "caneca-são.2"]).config.run_name == "caneca-são.2"


@pytest.mark.parametrize("text", ["1" * 400, "inf", "nan", "-1", "1e400"])
def test_a_number_that_is_none_is_refused_wherever_it_comes_from(tmp_path, text):
    (tmp_path / "r.toml").write_text(f"learning_rate = {text}\n", encoding="utf-8")
    for args in (["--recipe", str(tmp_path / "r.toml")], ["--learning_rate", text]):
        with pytest.raises(SystemExit) as leaving:
            parse_train(args)
        assert leaving.value.code == 2


def test_an_empty_name_is_none():
    for name in ("--data", "--output_dir", "--model", "--template"):
        with pytest.raises(SystemExit):
            parse_train([name, ""])
