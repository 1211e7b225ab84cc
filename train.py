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
    check_window,
    choose_model,
    load_model,
    load_tokenizer,
    pocket_model,
    save_model,
)
from model.loss import CHUNK_ROWS, check_flat_loss, mean_loss, summed_loss
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
from run.memory import (
    free_memory,
    get_random_state,
    plan_memory,
    set_random_state,
    smaller_micro_batch,
    stay_on_the_card,
)
from run.stop import StopRequest
from text.answer import decode
from text.batch import Encoder, blank_batch, flat_batches, sample_batch, step_batches
from text.bpe import train_bpe
from text.outputs import settle
from text.prepare import prepare
from text.stream import RecordFile, records_of_steps, steps_per_epoch
from text.template import QA, load_template

EXAMPLE_CATALOGUE = Path(__file__).parent / "examples" / "catalogue.json.gz"


def main(command: Command) -> int:
    # ---- configuration: a resumed run brings its own options, and what the user names now comes on top
    config, run, checkpoint = command.config, None, None
    if command.resume is not None:
        run, checkpoint = resume_point(command.resume, Path(config.output_dir))
        config = replace(from_json(read_json(run / "train_config.json")["options"], str(run)), **command.given)
    machine = pick_machine(config.device, config.precision)
    device = machine.device
    name, reason = choose_model(config.model_name_or_path, has_gpu=device.type == "cuda")
    config = with_model_defaults(replace(config, model_name_or_path=name), from_scratch=name == POCKET)

    # ---- data: three JSONL files, read from disk as they are needed
    data = Path(config.data_dir)
    settle(data)
    if config.data_dir == "data" and not (data / "train.jsonl").exists():
        print(f"No prepared data in {data}: preparing the bundled example catalogue. Yours: python data_prep.py FILE")
        prepare([EXAMPLE_CATALOGUE], data)
    train_file, val_file = RecordFile(data / "train.jsonl"), RecordFile(data / "val.jsonl", may_be_empty=True)

    # ---- model, tokenizer and template: from the checkpoint, from the hub or a folder, or from nothing
    if checkpoint:
        verify(checkpoint)
        model, tokenizer = load_model(checkpoint, config.dropout), load_tokenizer(checkpoint)
        template = load_template(checkpoint)
    elif name == POCKET:
        template = QA
        some = islice(train_file, 50_000)
        texts = (template.prompt_for(record["title"]) + template.answer_for(record["content"]) for record in some)
        tokenizer = train_bpe(texts, POCKET_VOCABULARY)
        model = pocket_model(tokenizer, config.max_length, config.seed, config.dropout)
    else:
        template, model, tokenizer = QA, load_model(name, config.dropout), load_tokenizer(name)
    check_window(model.config, config.max_length, name)
    tokenizer.chat_template = template.chat_template()
    encoder = Encoder(tokenizer, template, config.max_length, config.loss_on)
    check_flat_loss(model.to(device), sample_batch().to(device), name)
    use_flat_attention(model)

    # ---- optimizer: AdamW over fp32 weights; biases and norms (one-dimensional) do not decay
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=True,
    )
    scaler = machine.grad_scaler()

    # ---- memory: what a step takes, and the largest micro-batch that fits
    def probe(tokens: int) -> torch.Tensor:
        with machine.autocast():
            return summed_loss(model, blank_batch(2, tokens // 2).to(device))

    memory, available = plan_memory(model, model.get_output_embeddings().weight, CHUNK_ROWS, probe), free_memory(device)
    stay_on_the_card(device)
    step_tokens = config.records_per_step * config.max_length
    fitting = memory.largest_micro_batch(available, config.max_length, at_most=step_tokens)
    micro_batch_tokens = config.micro_batch_tokens or (fitting if device.type == "cuda" else min(fitting, 4096))

    # ---- plan
    epoch_steps = steps_per_epoch(len(train_file), config.records_per_step)
    total_steps = config.max_steps or math.ceil(config.num_train_epochs * epoch_steps)
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    val_records = [val_file[i] for i in range(min(len(val_file), config.max_eval_samples))]
    val_batches = flat_batches(encoder.rows(val_records), micro_batch_tokens)
    parameters = sum(p.numel() for p in model.parameters())
    sample = encoder.rows([train_file[i] for i in range(min(len(train_file), 500))])
    if not any(len(row.ids) > row.first_supervised for row in sample):
        raise UsageError(f"In {config.max_length} tokens there is no room for any answer: raise --max_length.")
    tokens_a_record = sum(len(row.ids) for row in sample) / len(sample)
    checkpoint_bytes = 12 * parameters  # fp32 weights and the two moments of AdamW
    free = check_free_space(Path(config.output_dir), (config.save_total_limit + 2) * checkpoint_bytes)
    plan = [
        ("model", f"{name} ({reason}), {short(parameters)} parameters"),
        ("device", f"{machine.name}, {machine.precision}"),
        ("records", f"{len(train_file):,} in {data / 'train.jsonl'}, {len(val_records):,} to validate on"),
        ("steps", f"{total_steps:,} of {config.records_per_step} records ({total_steps / epoch_steps:.3g} epochs)"),
        ("tokens", f"about {short(tokens_a_record * config.records_per_step * total_steps)} in all"),
        ("memory", memory.sentence(micro_batch_tokens, step_tokens, available)),
        ("checkpoint", f"{size(checkpoint_bytes)}, {size(free)} free on the disk"),
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
        answers = generate(model, encoder.prompts(titles), tokenizer.eos_token_id, Sampling(greedy=True))
        use_flat_attention(model)
        return [decode(tokenizer, answer.ids) for answer in answers]

    test_file = RecordFile(data / "test.jsonl", may_be_empty=True)
    shown = min(3, len(test_file))
    titles = [test_file[len(test_file) * i // shown]["title"] for i in range(shown)]
    if run is None:
        run = new_run(Path(config.output_dir), config.run_name, name)
        if name == POCKET:
            with whole_folder(run / "base") as folder:
                save(folder)
        write_json(run / "before.json", dict(zip(titles, describe(titles), strict=True)))
        base = "base" if name == POCKET else str(Path(name).resolve()) if Path(name).is_dir() else name
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(run / "train_config.json", {"options": to_json(config), "base_model": base, "versions": versions})

    # ---- resume: weights came with the model; optimizer, scaler, random state and counters come here
    done, loss_sum, supervised = 0, torch.zeros((), device=device), 0
    if checkpoint:
        counters = load_training_state(checkpoint, model, optimizer, scaler)
        done, supervised = counters["step"], counters["supervised"]
        loss_sum += counters["loss_sum"]
    else:
        torch.manual_seed(config.seed)
    first_step = done
    metrics = MetricsFile(run / "metrics.jsonl", resumed_at=done)
    steps = records_of_steps(train_file, config.records_per_step, config.seed, first_step, total_steps)
    batches = step_batches(steps, encoder, micro_batch_tokens)
    stop, watch = StopRequest(), Stopwatch()
    print(f"\nTraining into {run}. Ctrl-C saves and stops.")

    # ---- loop: one turn is one optimizer step
    model.train()
    for batch in tqdm(batches, desc="training", total=total_steps, initial=done, leave=False, disable=None):
        schedule = config.lr_scheduler_type
        learning_rate = learning_rate_at(done, total_steps, warmup_steps, config.learning_rate, schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        random_state = get_random_state(device)
        while True:
            micro_batches, step_loss = batch.micro_batches(micro_batch_tokens), torch.zeros((), device=device)
            try:
                for micro_batch in micro_batches:
                    with machine.autocast():
                        loss = summed_loss(model, micro_batch.to(device))
                    scaler.scale(loss / max(1, batch.supervised)).backward()
                    step_loss += loss.detach()
                break
            except RuntimeError as error:
                records_each = len(batch.rows) / len(micro_batches)
                micro_batch_tokens = smaller_micro_batch(error, micro_batch_tokens, records_each)
            tqdm.write(f"Out of memory: from here on {micro_batch_tokens} tokens at a time. The result stays the same.")
            # the same step again, from its start
            optimizer.zero_grad(set_to_none=True)
            set_random_state(random_state, device)
        loss_sum += step_loss
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
                "peak_memory_bytes": peak_memory(device),
            }
            if val_batches and (done % config.eval_steps == 0 or last):
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
            remove_old_checkpoints(run, config.save_total_limit, newest=run / f"checkpoint-{done}")
        if stop.asked and not last:
            print(f"Saved step {done} of {total_steps}. Go on with: python train.py --resume {run}")
            return INTERRUPTED

    # ---- end: the finished model, and three held-out titles before and after
    with whole_folder(run / "final") as folder:
        save(folder)
    model.eval()
    before, after = read_json(run / "before.json"), dict(zip(titles, describe(titles), strict=True))
    print(f"\nSaved {run / 'final'}." + (" Titles that were never trained on:" if titles else ""))
    for title in titles:
        print(f"\n  {title}\n    before: {shortened(before.get(title, ''))}\n    after:  {shortened(after[title])}")
    print("\nAsk for more:  python generate.py\nMeasure it:    python evaluate.py")
    return 0


def shortened(answer: str, limit: int = 240) -> str:
    """One line of at most `limit` characters for the screen."""
    line = " ".join(answer.split())
    return line if len(line) <= limit else line[:limit] + " ..."


if __name__ == "__main__":
    run_script(main, COMMAND)
