"""Train a small language model to write a product's description from its title.

    python train.py                              the bundled catalogue if no data was prepared; no download needed
    python train.py --model distilgpt2           fine-tune DistilGPT-2
    python train.py --resume                     go on with the newest run

This file is the whole of it, in the order in which it happens: configuration, data, model, optimizer, plan, loop, end.
"""

from run.config import Command, parse_train, resumed, to_json, with_model_defaults

if __name__ == "__main__":
    COMMAND = parse_train()  # before torch is imported, so that --help answers at once

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
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
from model.loss import mean_loss, summed_loss
from model.sample import Sampling, generate
from run.checkpoint import (
    Counters,
    best_checkpoint,
    check_free_space,
    disk_needed,
    find_checkpoint,
    load_training_state,
    new_run,
    random_state,
    read_json,
    read_run,
    remove_old_checkpoints,
    run_of,
    save_checkpoint,
    seed_random_state,
    versions,
    whole_folder,
    write_json,
)
from run.cli import INTERRUPTED, UsageError, run_script
from run.device import peak_memory, pick_machine
from run.finite import FiniteCheck
from run.lock import RunLock
from run.log import MetricsFile, Stopwatch, eta_seconds, learning_rate_at, progress_line, short, size, table
from run.ranks import start_ranks
from run.stop import StopRequest
from text.answer import decode, shortened
from text.batch import Encoder, flat_batches, step_batches
from text.bpe import train_bpe
from text.prepare import prepare
from text.stream import RecordFile, records_of_steps, steps_per_epoch
from text.template import QA, load_template

EXAMPLE_CATALOGUE = Path(__file__).parent / "examples" / "catalogue.json.gz"


def main(command: Command) -> int:
    # ---- configuration: a resumed run brings its own options, and what the user names now comes on top
    config, run, checkpoint, ranks = command.config, None, None, start_ranks()
    if command.resume is not None:
        run = ranks.from_main(lambda: run_of(command.resume, Path(config.output_dir)))
        saved = read_run(run)
        config = resumed(saved["options"], command.given, str(run))
        _lock = RunLock(run) if ranks.is_main and not command.dry_run else None  # held until main ends
        checkpoint = ranks.from_main(lambda: find_checkpoint(command.resume, run))
    machine = pick_machine(config.device, config.precision)
    has_gpu = machine.device.type == "cuda"
    name, reason = ranks.from_main(lambda: choose_model(config.model_name_or_path, has_gpu))
    config = with_model_defaults(replace(config, model_name_or_path=name), from_scratch=name == POCKET)

    # ---- data: three JSONL files, read from disk as they are needed
    data = Path(config.data_dir)
    if ranks.from_main(lambda: config.data_dir == "data" and not (data / "train.jsonl").exists()):
        print(f"No prepared data in {data}: preparing the bundled example catalogue. Yours: python data_prep.py FILE")
        ranks.from_main(lambda: prepare([EXAMPLE_CATALOGUE], data))
    train_file, val_file = RecordFile(data / "train.jsonl"), RecordFile(data / "val.jsonl")
    fingerprints = {"train.jsonl": train_file.fingerprint(), "val.jsonl": val_file.fingerprint()}
    if run and saved["data"] != fingerprints:
        changed = ", ".join(name for name in fingerprints if saved["data"].get(name) != fingerprints[name])
        raise UsageError(f"{run} is trained on another {changed} than the one in {data}: point --data at that one.")

    # ---- model, tokenizer and template: from the checkpoint, from the hub or a folder, or from nothing
    if weights := checkpoint or (run / "base" if run and name == POCKET else None):
        model, tokenizer = load_model(weights, config.dropout), load_tokenizer(weights)
        template = load_template(weights)
    elif name == POCKET:
        template = QA
        sample = islice(train_file, 50_000)
        texts = (template.prompt_for(record["title"]) + template.answer_for(record["content"]) for record in sample)
        tokenizer = train_bpe(texts, POCKET_VOCABULARY)
        model = pocket_model(tokenizer, config.max_length, config.seed, config.dropout)
    else:
        template, model, tokenizer = QA, load_model(name, config.dropout), load_tokenizer(name)
    if config.max_length > context_length(model.config):
        raise UsageError(f"{name} sees {context_length(model.config)} tokens at once: lower --max_length to that.")
    tokenizer.chat_template = template.chat_template()
    encoder = Encoder(tokenizer, template, config.max_length, config.loss_on)
    use_flat_attention(model)
    model.to(machine.device)

    # ---- optimizer: AdamW over fp32 weights; biases and norms (one-dimensional) do not decay
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=True,
    )
    scaler = machine.grad_scaler()

    # ---- plan
    records_per_step = config.records_per_step * (saved["ranks"] if run else ranks.size)
    epoch_steps = steps_per_epoch(len(train_file), records_per_step)
    total_steps = config.max_steps or math.ceil(config.num_train_epochs * epoch_steps)
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    val_records = [val_file[i] for i in range(min(len(val_file), config.max_eval_samples))]
    val_batches = flat_batches(encoder.rows(val_records), config.micro_batch_tokens)
    parameters = sum(p.numel() for p in model.parameters())
    tokens = [len(row.ids) for row in encoder.rows([train_file[i] for i in range(min(len(train_file), 500))])]
    checkpoint_bytes = 12 * parameters  # fp32 weights and the two moments of AdamW
    kept = config.save_total_limit + config.load_best_model_at_end
    free = check_free_space(Path(config.output_dir), disk_needed(checkpoint_bytes, kept))
    plan = [
        ("model", f"{name} ({reason}), {short(parameters)} parameters"),
        ("device", f"{machine.name}, {machine.precision}"),
        ("records", f"{len(train_file):,} in {data / 'train.jsonl'}, {len(val_records):,} to validate on"),
        ("steps", f"{total_steps:,} of {records_per_step} records ({total_steps / epoch_steps:.3g} epochs)"),
        ("tokens", f"about {short(sum(tokens) / len(tokens) * records_per_step * total_steps)} in all"),
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
        prompts = encoder.prompts(titles)
        answers = generate(model, ranks.share(prompts), tokenizer.eos_token_id, Sampling(greedy=True))
        use_flat_attention(model)
        return ranks.collect([decode(tokenizer, answer.ids) for answer in answers])

    test_file = RecordFile(data / "test.jsonl")
    titles = [test_file[i]["title"] for i in range(min(3, len(test_file)))]
    if run is None:
        run = ranks.from_main(lambda: new_run(Path(config.output_dir), config.run_name, name))
        _lock = RunLock(run) if ranks.is_main else None
        before = dict(zip(titles, describe(titles), strict=True))
        base = "base" if name == POCKET else str(Path(name).resolve()) if Path(name).is_dir() else name
        saved = {"options": to_json(config), "base_model": base, "versions": versions(), "data": fingerprints}
        if ranks.is_main:
            if name == POCKET:
                with whole_folder(run / "base") as folder:
                    save(folder)
            write_json(run / "before.json", before)  # the options last: with them it is a run that can be resumed
            write_json(run / "train_config.json", saved | {"ranks": ranks.size})

    # ---- resume: weights came with the model; optimizer, scaler, random state and counters come here
    seed_random_state(config.seed + ranks.rank)
    at = load_training_state(checkpoint, model, optimizer, scaler, ranks.rank) if checkpoint else Counters()
    done = at.step
    sums = torch.tensor([at.loss_sum, at.supervised], dtype=torch.float64, device=machine.device)
    finite = FiniteCheck(run, config.max_skipped_steps, at.skipped_steps, at.skipped_in_a_row)
    metrics = MetricsFile(run / "metrics.jsonl", resumed_at=done) if ranks.is_main else None
    steps = records_of_steps(train_file, records_per_step, config.seed, done, total_steps)
    batches = step_batches(steps, encoder, config.micro_batch_tokens, ranks.rank, ranks.size)
    sum_gradients = ranks.gradient_sum(model)
    stop, watch = StopRequest(), Stopwatch()
    print(f"\nTraining into {run}. Ctrl-C saves and stops.")

    # ---- loop: one turn is one optimizer step
    model.train()
    bar = {"desc": "training", "total": total_steps, "initial": done, "leave": False}
    for batch in tqdm(batches, **bar, disable=None if ranks.is_main else True):  # None: only where there is a terminal
        schedule = config.lr_scheduler_type
        learning_rate = learning_rate_at(done, total_steps, warmup_steps, config.learning_rate, schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss_sum = torch.zeros((), device=machine.device)
        for micro_batch in batch.micro_batches:
            with machine.autocast():
                loss = summed_loss(model, micro_batch.to(machine.device))
            scaler.scale(loss / max(1, batch.supervised)).backward()
            loss_sum += loss.detach()
        sum_gradients(loss_sum)  # over the ranks, if there are several
        scaler.unscale_(optimizer)
        grad_norm = clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
        finite.guard(optimizer, scaler, loss_sum, grad_norm, done + 1, batch.uids)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        sums += torch.where(loss_sum.isfinite(), torch.stack([loss_sum, sums.new_tensor(batch.supervised)]), 0.0)
        last, stopping = done == total_steps, ranks.any(stop.asked)

        if done % config.logging_steps == 0 or done % config.eval_steps == 0 or done in (1, 10) or last:
            finite.settle()
            total, supervised = sums.tolist()
            entry = {
                "step": done,
                "epoch": done / epoch_steps,
                "loss": total / supervised if supervised else math.nan,  # nats per supervised token since last time
                "grad_norm": grad_norm.item(),  # of this step, before clipping
                "learning_rate": learning_rate,
                "skipped_steps": finite.skipped,  # since the start
                "answer_tokens_per_second": supervised / watch.lap(),
                "eta_seconds": eta_seconds(done - at.step, total_steps - at.step, watch.total),
                "peak_memory_bytes": peak_memory(machine.device),
            }
            if done % config.eval_steps == 0 or last:
                mine = ranks.share(val_batches)
                with watch.paused(), machine.autocast():
                    tokens = sum(len(batch.targets) for batch in mine)
                    entry["val_loss"] = ranks.mean(mean_loss(model.eval(), mine), weight=tokens)
                model.train()
            if ranks.is_main:
                metrics.write(entry)
                tqdm.write(progress_line(entry, total_steps))
            sums.zero_()
        if done % config.save_steps == 0 or last or stopping:
            finite.settle()
            at_step = Counters(done, *sums.tolist(), finite.skipped, finite.in_a_row)
            states = ranks.gather(random_state())
            if ranks.is_main:
                with watch.paused():
                    newest = save_checkpoint(run, save, model, optimizer, scaler, states, at_step)
                    remove_old_checkpoints(run, newest, config.save_total_limit, config.load_best_model_at_end)
        if stopping and not last:
            print(f"Saved step {done} of {total_steps}. Go on with: python train.py --resume {run}")
            return INTERRUPTED

    # ---- end: the finished model, and three held-out titles before and after
    best = ranks.from_main(lambda: best_checkpoint(run)) if config.load_best_model_at_end else None
    if best:
        model.load_state_dict(load_model(best).state_dict())
        print(f"The validation loss was lowest at {best.name}: that is the final model.")
    model.eval()
    before, after = read_json(run / "before.json"), dict(zip(titles, describe(titles), strict=True))
    if ranks.is_main:
        with whole_folder(run / "final") as folder:
            save(folder)
    print(f"\nSaved {run / 'final'}. Three titles that were never trained on:")
    for title in titles:
        print(f"\n  {title}\n    before: {shortened(before.get(title, ''))}\n    after:  {shortened(after[title])}")
    print("\nAsk for more:  python generate.py\nMeasure it:    python evaluate.py")
    return 0


if __name__ == "__main__":
    run_script(main, COMMAND)
