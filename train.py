"""Train a small language model to write a product's description from its title.

    python train.py                              the bundled catalogue if no data was prepared; no download needed
    python train.py --model distilgpt2           fine-tune DistilGPT-2
    python train.py --resume                     go on with the newest run

This file is the whole of it, in the order in which it happens: configuration, data, model, optimizer, plan, loop, end.
"""

from run.config import Command, from_json, parse_train, to_json, with_model_defaults

if __name__ == "__main__":
    COMMAND = parse_train()  # before torch is imported, so that --help answers at once

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import transformers
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from model.attention import use_flat_attention, use_padded_attention
from model.load import (
    POCKET,
    POCKET_VOCABULARY,
    choose_model,
    context_length,
    load_model,
    load_tokenizer,
    pocket_model,
    save_model,
)
from model.lora import Lora, wrap
from model.loss import mean_loss, summed_loss
from model.sample import Sampling, generate
from run.checkpoint import (
    check_free_space,
    load_training_state,
    new_run,
    read_json,
    remove_old_checkpoints,
    resume_point,
    save_training_state,
    verify,
    whole_folder,
    write_json,
)
from run.cli import INTERRUPTED, UsageError, run_script
from run.device import peak_memory, pick_machine
from run.log import MetricsFile, Stopwatch, eta_seconds, learning_rate_at, progress_line, short, size, table
from run.stop import StopRequest
from text.answer import decode, stop_rule
from text.batch import Encoder, flat_batches, step_batches
from text.bpe import train_bpe
from text.prepare import prepare
from text.question import with_questions
from text.stream import RecordFile, records_of_steps, steps_per_epoch
from text.template import choose_template, fit_tokenizer, load_template

EXAMPLE_CATALOGUE = Path(__file__).parent / "examples" / "catalogue.json.gz"


def main(command: Command) -> int:
    # ---- configuration: a resumed run brings its own options, and what the user names now comes on top
    config, run, checkpoint = command.config, None, None
    if command.resume is not None:
        run, checkpoint = resume_point(command.resume, Path(config.output_dir))
        config = replace(from_json(read_json(run / "train_config.json")["options"], str(run)), **command.given)
    machine = pick_machine(config.device, config.precision)
    name, reason = choose_model(config.model_name_or_path, has_gpu=machine.device.type == "cuda")
    if config.lora and name == POCKET:
        raise UsageError("--lora corrects a model that was trained before, and pocket was not: name one with --model.")
    config = with_model_defaults(replace(config, model_name_or_path=name), from_scratch=name == POCKET)

    # ---- data: three JSONL files, read from disk as they are needed
    data = Path(config.data_dir)
    if config.data_dir == "data" and not (data / "train.jsonl").exists():
        print(f"No prepared data in {data}: preparing the bundled example catalogue. Yours: python data_prep.py FILE")
        prepare([EXAMPLE_CATALOGUE], data)
    train_file, val_file = RecordFile(data / "train.jsonl"), RecordFile(data / "val.jsonl")

    # ---- model, tokenizer and template: from the checkpoint, from the hub or a folder, or from nothing
    if checkpoint:
        verify(checkpoint)
        model = load_model(checkpoint, config.dropout, config.load_in_4bit, machine.dtype)
        tokenizer = load_tokenizer(checkpoint)
        template = load_template(checkpoint)
    elif name == POCKET:
        template = choose_template(config.template, config.language)
        sample = islice(train_file, 50_000)
        texts = (template.prompt_for(record["title"]) + template.answer_for(record["content"]) for record in sample)
        tokenizer = train_bpe(texts, POCKET_VOCABULARY)
        model = pocket_model(tokenizer, config.max_length, config.seed, config.dropout)
    else:
        model = load_model(name, config.dropout, config.load_in_4bit, machine.dtype)
        tokenizer = load_tokenizer(name)
        template = choose_template(config.template, config.language, tokenizer)
    if config.max_length > context_length(model.config):
        raise UsageError(f"{name} sees {context_length(model.config)} tokens at once: lower --max_length to that.")
    if config.lora and not checkpoint:
        targets = tuple((config.lora_target_modules or "").replace(",", " ").split())
        lora = Lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_rslora, targets)
        wrap(model, lora, config.seed)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fit_tokenizer(tokenizer, template)
    encoder = Encoder(tokenizer, template, config.max_length, config.loss_on)
    use_flat_attention(model)
    model.to(machine.device)

    # ---- optimizer: AdamW over fp32 weights; biases and norms (one-dimensional) do not decay
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=True,
    )
    scaler = machine.grad_scaler()

    # ---- plan
    epoch_steps = steps_per_epoch(len(train_file), config.records_per_step)
    total_steps = config.max_steps or math.ceil(config.num_train_epochs * epoch_steps)
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    val_records = [val_file[i] for i in range(min(len(val_file), config.max_eval_samples))]
    val_batches = flat_batches(encoder.rows(val_records), config.micro_batch_tokens)
    parameters, trainable = model.num_parameters(), sum(p.numel() for p in trained)
    tokens = [len(row.ids) for row in encoder.rows([train_file[i] for i in range(min(len(train_file), 500))])]
    checkpoint_bytes = 12 * trainable  # fp32 weights and the two moments of AdamW
    free = check_free_space(Path(config.output_dir), (config.save_total_limit + 2) * checkpoint_bytes)
    plan = [
        ("model", f"{name} ({reason}), {short(parameters)} parameters, {short(trainable)} trained"),
        ("device", f"{machine.name}, {machine.precision}"),
        ("records", f"{len(train_file):,} in {data / 'train.jsonl'}, {len(val_records):,} to validate on"),
        ("steps", f"{total_steps:,} of {config.records_per_step} records ({total_steps / epoch_steps:.3g} epochs)"),
        ("tokens", f"about {short(sum(tokens) / len(tokens) * config.records_per_step * total_steps)} in all"),
        ("checkpoint", f"{size(checkpoint_bytes)}, {size(free)} free"),
    ]
    print(table(plan + [("note", machine.hint)] if machine.hint else plan))
    if command.dry_run:
        return 0

    # ---- run folder: what "before" means is kept, so that before and after can be compared at any time
    def save(folder: Path) -> None:
        save_model(model, tokenizer, folder)
        template.save(folder)

    def describe(titles: list[str]) -> list[str]:
        use_padded_attention(model)
        rule = stop_rule(tokenizer, template.stop)
        answers = generate(model, encoder.prompts(titles), encoder.end_token, Sampling(greedy=True), stop_rule=rule)
        use_flat_attention(model)
        return [decode(tokenizer, answer.ids, template.stop) for answer in answers]

    test_file = RecordFile(data / "test.jsonl")
    titles = [test_file[i]["title"] for i in range(min(3, len(test_file)))]
    if run is None:
        run = new_run(Path(config.output_dir), config.run_name, name)
        if name == POCKET:
            with whole_folder(run / "base") as folder:
                save(folder)
        base = "base" if name == POCKET else str(Path(name).resolve()) if Path(name).is_dir() else name
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(run / "train_config.json", {"options": to_json(config), "base_model": base, "versions": versions})
        write_json(run / "before.json", dict(zip(titles, describe(titles), strict=True)))

    # ---- resume: weights came with the model; optimizer, scaler, random state and counters come here
    done, loss_sum, supervised = 0, torch.zeros((), device=machine.device), 0
    if checkpoint:
        counters = load_training_state(checkpoint, model, optimizer, scaler)
        done, supervised = counters["step"], counters["supervised"]
        loss_sum += counters["loss_sum"]
    else:
        torch.manual_seed(config.seed)
    first_step = done
    metrics = MetricsFile(run / "metrics.jsonl", resumed_at=done)
    steps = records_of_steps(train_file, config.records_per_step, config.seed, first_step, total_steps)
    steps = with_questions(steps, template.questions, config.question_share, config.seed, first_step)
    batches = step_batches(steps, encoder, config.micro_batch_tokens)
    stop, watch = StopRequest(), Stopwatch()
    print(f"\nTraining into {run}. Ctrl-C saves and stops.")

    # ---- loop: one turn is one optimizer step
    model.train()
    for batch in tqdm(batches, desc="training", total=total_steps, initial=done, leave=False, disable=None):
        schedule = config.lr_scheduler_type
        learning_rate = learning_rate_at(done, total_steps, warmup_steps, config.learning_rate, schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for micro_batch in batch.micro_batches:
            with machine.autocast():
                loss = summed_loss(model, micro_batch.to(machine.device))
            scaler.scale(loss / max(1, batch.supervised)).backward()
            loss_sum += loss.detach()
        scaler.unscale_(optimizer)
        grad_norm = clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        done, supervised = done + 1, supervised + batch.supervised
        last = done == total_steps

        if done % config.logging_steps == 0 or done % config.eval_steps == 0 or done in (1, 10) or last:
            entry = {
                "step": done,
                "epoch": done / epoch_steps,
                "loss": loss_sum.item() / max(1, supervised),  # nats per supervised token since the last entry
                "grad_norm": grad_norm.item(),  # of this step, before clipping
                "learning_rate": learning_rate,
                "answer_tokens_per_second": supervised / watch.lap(),
                "eta_seconds": eta_seconds(done - first_step, total_steps - first_step, watch.total),
                "peak_memory_bytes": peak_memory(machine.device),
            }
            if done % config.eval_steps == 0 or last:
                with watch.paused(), machine.autocast():
                    entry["val_loss"] = mean_loss(model.eval(), val_batches)
                model.train()
            metrics.write(entry)
            tqdm.write(progress_line(entry, total_steps))
            loss_sum.zero_()
            supervised = 0
        if done % config.save_steps == 0 or last or stop.asked:
            with watch.paused(), whole_folder(run / f"checkpoint-{done}") as folder:
                save(folder)
                counters = {"step": done, "loss_sum": loss_sum.item(), "supervised": supervised}
                save_training_state(folder, model, optimizer, scaler, counters)
            remove_old_checkpoints(run, keep=config.save_total_limit)
        if stop.asked and not last:
            print(f"Saved step {done} of {total_steps}. Go on with: python train.py --resume {run}")
            return INTERRUPTED

    # ---- end: the finished model, and three held-out titles before and after
    with whole_folder(run / "final") as folder:
        save(folder)
    model.eval()
    before, after = read_json(run / "before.json"), dict(zip(titles, describe(titles), strict=True))
    print(f"\nSaved {run / 'final'}. Three titles that were never trained on:")
    for title in titles:
        print(f"\n  {title}\n    before: {shortened(before.get(title, ''))}\n    after:  {shortened(after[title])}")
    print("\nAsk for more:  python generate.py\nMeasure it:    python evaluate.py")
    return 0


def shortened(answer: str, limit: int = 300) -> str:
    """One line of at most `limit` characters for the screen."""
    line = " ".join(answer.split())
    return line if len(line) <= limit else line[:limit] + " ..."


if __name__ == "__main__":
    run_script(main, COMMAND)
