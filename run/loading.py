"""A model and what speaks to it: weights, tokenizer and template of a run, an adapter or a base."""

from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel

from model.attention import use_flat_attention
from model.half import cast_norms_once, computable_on, halve
from model.linear import use_onednn
from model.load import (
    POCKET_VOCABULARY,
    check_tokens,
    check_window,
    fingerprint,
    load_model,
    load_tokenizer,
    pocket_model,
)
from model.lora import Lora, lora_layers, wrap
from model.loss import check_flat_loss, check_precision
from run.cli import UsageError
from run.config import TrainConfig
from run.session import Session
from text.batch import Encoder, flat_batches, sample_batch
from text.bpe import train_bpe
from text.stream import Records
from text.template import Template, choose_template, fit_tokenizer, template_of_run

RECORDS_TO_TRY = 4  # before training, in the precision that it will have
RECORDS_FOR_BPE = 50_000  # of the training split: more of them find the same pieces


def load(
    source: str | Path,
    template: Template,
    max_length: int = 0,
    base: str | None = None,
    **how,
) -> tuple[PreTrainedModel, Encoder]:
    """The model in the folder or hub id `source`, on the CPU, and the encoder that asks it in the words of `template`.

    `base`: instead of the one that an adapter names; `how`: as `load_model` takes it.
    Raises `ModelUnavailable`, `UnsupportedModel`, or `DataError` when the template does not fit the tokenizer.
    """
    encoder = encoder_of(base or source, template, max_length)
    model = load_model(source, base=base, **how)
    check_tokens(model, encoder.tokenizer, str(source))
    return model, encoder


def encoder_of(source: str | Path, template: Template, max_length: int = 0) -> Encoder:
    """The tokenizer of `source` with `template`."""
    tokenizer = load_tokenizer(source)
    fit_tokenizer(tokenizer, template)
    return Encoder(tokenizer, template, max_length)


# -- for training -----------------------------------------------------------------------------------------------------


def load_for_training(session: Session, train_file: Records) -> tuple[PreTrainedModel, Encoder]:
    """The model with fp32 weights, in eval mode, on the CPU: from a checkpoint, the hub, a folder, or nothing. Sets
    `session.base_weights`, which names them.

    Raises `UsageError` when a run goes on beside other weights than those it began with, `UnsupportedModel` when
    `--max_length` does not fit the model, and what `load` raises.
    """
    config, run, weights = session.config, session.folder, session.weights
    if weights is None:
        template = choose_template(config.template, config.language)
        some = islice(train_file, RECORDS_FOR_BPE)
        tokenizer = train_bpe(map(template.text_of, some), POCKET_VOCABULARY, template.phrases)
        model = pocket_model(tokenizer, config.max_length, config.seed, config.dropout)
    else:
        model = load_model(weights, config.dropout, config.load_in_4bit, session.machine.dtype)
        tokenizer = load_tokenizer(weights)
        named = session.command.given.get("template")
        template = template_of_run(run, named) if run else choose_template(config.template, config.language, tokenizer)
    name, has_adapter = config.model_name_or_path, bool(lora_layers(model))
    if has_adapter and not session.checkpoint and not config.lora:
        raise UsageError(f"{name} is an adapter. Train it further with --lora, or merge it first: python export.py.")
    session.base_weights = fingerprint(model)
    base_is_loaded, known = config.lora or not session.checkpoint, (session.base_weights, fingerprint(model, True))
    if not session.is_new and base_is_loaded and session.saved["base_weights"] not in known:
        raise UsageError(f"{run} was trained from other weights than those that {name} has now: bring them back.")
    check_window(model.config, config.max_length, name)
    check_tokens(model, tokenizer, name)
    fit_tokenizer(tokenizer, template)
    encoder = Encoder(tokenizer, template, config.max_length, config.loss_on)
    model.generation_config.eos_token_id = encoder.end_token  # where other programs stop
    return model, encoder


def add_lora(model: PreTrainedModel, config: TrainConfig) -> None:
    """Freeze the weights and put A and B beside the linear layers, unless a checkpoint has brought them.

    Raises `UnsupportedModel` when no layer is called as `--lora_target_modules` says.
    """
    if not lora_layers(model):
        targets = tuple((config.lora_target_modules or "").replace(",", " ").split())
        lora = Lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_rslora, targets)
        wrap(model, lora, config.seed)


def use_flat_batches(model: PreTrainedModel, session: Session, encoder: Encoder, train_file: Records) -> None:
    """Onto the device, where it takes records end to end from here on.

    Raises `UnsupportedModel` when it does not give for them what it gives for each record alone, or when the first
    records have no finite loss in the precision of the machine.
    """
    name, machine = session.config.model_name_or_path, session.machine
    # Half of the weights' bytes before the card sees them, which could be too small for the whole. (4-bit weights are
    # there already, and their embeddings in fp32 beside them.)
    halve(model, machine.dtype)
    cast_norms_once(model, machine.dtype)
    if session.ranks.sharded:  # too large for one device: it is measured on the host, and divided after that
        machine = machine.on_host()
    with computable_on(machine.device, model):
        model.to(machine.device)
        if session.machine.device.type == "cpu":
            use_onednn(model)
        with machine.autocast():
            check_flat_loss(model, sample_batch().to(machine.device), name)
            use_flat_attention(model)
            some = encoder.rows([train_file[i] for i in range(min(len(train_file), RECORDS_TO_TRY))])
            check_precision(
                model, [batch.to(machine.device) for batch in flat_batches(some, 1)], name, machine.precision
            )
