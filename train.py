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

from catalogue.outputs import settle
from catalogue.prepare import prepare
from model import load as models
from model.attention import use_flat_attention, use_padded_attention
from model.linear import use_onednn
from model.lora import Lora, blocks_of, lora_layers, round_frozen, wrap
from model.loss import CHUNK_ROWS, check_flat_loss, mean_loss, summed_loss
from model.sample import Sampling, generate
from run import checkpoint as runs
from run import memory
from run.cli import INTERRUPTED, UsageError, run_script
from run.data import open_split
from run.device import keep_freed_memory, peak_memory, pick_machine
from run.finite import FiniteCheck
from run.lock import RunLock
from run.log import MetricsFile, Stopwatch, eta_seconds, learning_rate_at, progress_line, short, size, table
from run.ranks import start_ranks
from run.shard import all_whole, divided, placed_like, shard, whole
from run.stop import StopRequest
from text.answer import before_and_after, decode, stop_rule
from text.batch import Encoder, blank_batch, flat_batches, idle_batch, sample_batch, step_batches
from text.bpe import train_bpe
from text.question import with_questions
from text.stream import records_of_steps, steps_per_epoch
from text.template import choose_template, fit_tokenizer, template_of_run

EXAMPLE_CATALOGUE = Path(__file__).parent / "examples" / "catalogue.json.gz"


def main(command: Command) -> int:
    # ---- configuration: a resumed run brings its own options, and what the user names now comes on top
    config, run, checkpoint, ranks = command.config, None, None, start_ranks()
    if command.resume is not None:
        run = ranks.from_main(lambda: runs.run_of(command.resume, Path(config.output_dir)))
        saved = runs.read_run(run)
        config = resumed(saved["options"], command.given, str(run))
        _lock = RunLock(run) if ranks.is_main and not command.dry_run else None  # held until main ends
        checkpoint = ranks.from_main(lambda: runs.find_checkpoint(command.resume, run))
    machine = pick_machine(config.device, config.precision)
    device = machine.device
    keep_freed_memory(device)
    name, reason = ranks.from_main(lambda: models.choose_model(config.model_name_or_path, device.type == "cuda"))
    ranks = ranks.dividing(config.shard, must=run is None or "shard" in command.given)
    config = with_model_defaults(replace(config, model_name_or_path=name), from_scratch=name == models.POCKET)

    # ---- data: three JSONL files, read from disk as they are needed
    data = Path(config.data_dir)
    ranks.from_main(lambda: settle(data))
    if ranks.from_main(lambda: config.data_dir == "data" and not (data / "train.jsonl").exists()):
        print(f"No prepared data in {data}: preparing the bundled example catalogue. Yours: python data_prep.py FILE")
        ranks.from_main(lambda: prepare([EXAMPLE_CATALOGUE], data))
    train_file, val_file = open_split(data, "train"), open_split(data, "val", may_be_empty=True)
    fingerprints = ranks.from_main(lambda: {file.path.name: file.fingerprint() for file in (train_file, val_file)})
    if run:
        runs.check_data(run, saved["data"], fingerprints, data)

    # ---- model, tokenizer and template: from the checkpoint, from the hub or a folder, or from nothing
    weights = checkpoint or (run / "base" if run and name == models.POCKET else None)
    if weights or name != models.POCKET:
        model = models.load_model(weights or name, config.dropout, config.load_in_4bit, machine.dtype)
        tokenizer = models.load_tokenizer(weights or name)
        named = command.given.get("template")
        template = template_of_run(run, named) if run else choose_template(config.template, config.language, tokenizer)
    else:
        template = choose_template(config.template, config.language)
        some = islice(train_file, 50_000)
        texts = (template.prompt_for(record["title"]) + template.answer_for(record["content"]) for record in some)
        tokenizer = train_bpe(texts, models.POCKET_VOCABULARY)
        model = models.pocket_model(tokenizer, config.max_length, config.seed, config.dropout)
    if lora_layers(model) and not checkpoint and not config.lora:
        raise UsageError(f"{name} is an adapter. Train it further with --lora, or merge it first: python export.py.")
    base_weights = models.fingerprint(model)
    if run and (config.lora or not checkpoint) and saved["base_weights"] != base_weights:
        raise UsageError(f"{run} was trained from other weights than those that {name} has now: bring them back.")
    models.check_window(model.config, config.max_length, name)
    if config.lora and not lora_layers(model):
        targets = tuple((config.lora_target_modules or "").replace(",", " ").split())
        lora = Lora(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_rslora, targets)
        wrap(model, lora, config.seed)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    fit_tokenizer(tokenizer, template)
    encoder = Encoder(tokenizer, template, config.max_length, config.loss_on)
    model.generation_config.eos_token_id = encoder.end_token  # where other programs stop
    use_onednn(model.to("cpu" if ranks.sharded else device))  # too large for one device, it is measured on the host
    check_flat_loss(model, sample_batch().to(model.device), name)
    use_flat_attention(model)
    round_frozen(model, machine.dtype)

    # ---- memory: what a step takes, and the largest micro-batch that fits
    def probe(tokens: int) -> torch.Tensor:
        with machine.autocast():
            return summed_loss(model, blank_batch(2, tokens // 2).to(model.device))

    needs = memory.plan_memory(model.train(), model.get_output_embeddings().weight, CHUNK_ROWS, probe)
    loss_of = summed_loss
    if ranks.sharded:
        needs = divided(needs, blocks_of(model), ranks.size)
        loss_of = shard(model, blocks_of(model), device, ranks.size, summed_loss)
    available = memory.free_memory(device)
    memory.stay_on_the_card(device)
    step_tokens = config.records_per_step * config.max_length
    fitting = needs.largest_micro_batch(available, config.max_length, at_most=step_tokens)
    micro_batch_tokens = config.micro_batch_tokens or (fitting if device.type == "cuda" else min(fitting, 1024))

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
    records_per_step = config.records_per_step * (saved["ranks"] if run else ranks.size)
    epoch_steps = steps_per_epoch(len(train_file), records_per_step)
    total_steps = config.max_steps or math.ceil(config.num_train_epochs * epoch_steps)
    if checkpoint and runs.step_of(checkpoint) > total_steps:
        raise UsageError(f"{checkpoint} is past step {total_steps} already: name more --max_steps or --epochs.")
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    val_records = [val_file[i] for i in range(min(len(val_file), config.max_eval_samples))]
    val_rows = ranks.share(encoder.rows(val_records))
    longest_val = max((len(row.ids) for row in val_rows), default=1)
    parameters, trainable = model.num_parameters(), sum(p.numel() for p in trained)
    sample = encoder.rows([train_file[i] for i in range(min(len(train_file), 500))])
    if not any(len(row.ids) > row.first_supervised for row in sample):
        raise UsageError(f"In {config.max_length} tokens there is no room for any answer: raise --max_length.")
    tokens_a_record = sum(len(row.ids) for row in sample) / len(sample)
    checkpoint_bytes = 12 * trainable  # fp32 weights and the two moments of AdamW
    kept = config.save_total_limit + config.load_best_model_at_end
    free = runs.check_free_space(Path(config.output_dir), runs.disk_needed(checkpoint_bytes, kept))
    plan = [
        ("model", f"{name} ({reason}), {short(parameters)} parameters, {short(trainable)} trained"),
        ("device", f"{machine.name}, {machine.precision}"),
        ("records", f"{len(train_file):,} in {data / 'train.jsonl'}, {len(val_records):,} to validate on"),
        ("steps", f"{total_steps:,} of {records_per_step} records ({total_steps / epoch_steps:.3g} epochs)"),
        ("tokens", f"about {short(tokens_a_record * records_per_step * total_steps)} in all"),
        *needs.rows(micro_batch_tokens, step_tokens, available),
        ("checkpoint", f"{size(checkpoint_bytes)}, {size(free)} free on the disk"),
    ]
    print(table(plan + [("note", machine.hint)] if machine.hint else plan))
    if command.dry_run:
        return 0

    # ---- run folder: what "before" means is kept, so that before and after can be compared at any time
    def save(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        models.save_model(model, tokenizer, folder, weights)
        template.save(folder)

    def weights_now() -> dict[str, torch.Tensor]:
        """What is saved; all ranks have to ask, for each may have a part of it."""
        return all_whole(models.weights_to_save(model), keep=ranks.is_main)

    def validate(tokens: int) -> tuple[float, int]:
        """Nats per supervised token of this rank's validation records, and the number of those tokens."""
        mine = flat_batches(val_rows, tokens)
        with machine.autocast():
            return mean_loss(model.eval(), mine, loss_of), sum(len(batch.targets) for batch in mine)

    def describe(titles: list[str]) -> list[str]:
        use_padded_attention(model.eval())
        prompts, rule = ranks.share(encoder.prompts(titles)), stop_rule(tokenizer, template.stop)
        with machine.autocast():
            answers = generate(model, prompts, encoder.end_token, Sampling(greedy=True), stop_rule=rule)
        use_flat_attention(model)
        return ranks.collect([decode(tokenizer, answer.ids, template.stop) for answer in answers])

    test_file = open_split(data, "test", may_be_empty=True)
    shown = min(3, len(test_file))
    titles = [test_file[len(test_file) * i // shown]["title"] for i in range(shown)]
    if run is None:
        run = ranks.from_main(lambda: runs.new_run(Path(config.output_dir), config.run_name, name))
        _lock = RunLock(run) if ranks.is_main else None
        before = dict(zip(titles, describe(titles), strict=True))
        first = weights_now() if name == models.POCKET else None
        base = "base" if name == models.POCKET else str(Path(name).resolve()) if Path(name).is_dir() else name
        saved = {"options": to_json(config), "base_model": base, "base_weights": base_weights, "ranks": ranks.size}
        saved |= {"versions": runs.versions(), "data": fingerprints}
        if ranks.is_main:
            if first:
                with runs.whole_folder(run / "base") as folder:
                    save(folder, first)
            template.save(run)
            runs.write_json(run / "before.json", before)  # the options last: with them it is a run that can be resumed
            runs.write_json(run / "train_config.json", saved)

    # ---- resume: weights came with the model; optimizer, scaler, random state and counters come here
    runs.seed_random_state(config.seed + ranks.rank)
    at = runs.load_training_state(checkpoint, model, optimizer, scaler, ranks.rank) if checkpoint else runs.Counters()
    done = at.step
    sums = torch.tensor([at.loss_sum, at.supervised], dtype=torch.float64, device=device)
    finite = FiniteCheck(run, config.max_skipped_steps, at.skipped_steps, at.skipped_in_a_row)
    if checkpoint and ranks.is_main:
        runs.go_back_to(run, checkpoint)
    metrics = MetricsFile(run / "metrics.jsonl", resumed_at=done) if ranks.is_main else None
    steps = records_of_steps(train_file, records_per_step, config.seed, done, total_steps)
    steps = with_questions(steps, template.questions, config.question_share, config.seed, done)
    if checkpoint and "micro_batch_tokens" not in command.given:
        micro_batch_tokens = at.micro_batch_tokens
    batches = step_batches(steps, encoder, micro_batch_tokens, ranks.rank, ranks.size)
    sum_gradients = ranks.gradient_sum(model)
    stop, watch = StopRequest(), Stopwatch()
    print(f"\nTraining into {run}. Ctrl-C saves and stops.")

    # ---- loop: one turn is one optimizer step
    model.train()
    bar = {"desc": "training", "total": total_steps, "initial": done, "leave": False}
    bar["disable"] = None if ranks.is_main else True  # None: shown only where there is a terminal
    for batch in tqdm(watch.waiting_for(batches), **bar):
        schedule = config.lr_scheduler_type
        learning_rate = learning_rate_at(done, total_steps, warmup_steps, config.learning_rate, schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        random_state = memory.get_random_state(device)
        while True:
            micro_batches = ranks.as_many(batch.micro_batches(micro_batch_tokens), idle_batch())
            loss_sum = sums.new_zeros(())
            try:
                for micro_batch in micro_batches:
                    with machine.autocast():
                        loss = loss_of(model, micro_batch.to(device))
                    scaler.scale(loss / max(1, batch.supervised)).backward()
                    loss_sum += loss.detach()
                break
            except RuntimeError as error:
                records_each = len(batch.rows) / len(micro_batches)
                micro_batch_tokens = memory.smaller_micro_batch(error, micro_batch_tokens, records_each, ranks.sharded)
            tqdm.write(f"Out of memory: from here on {micro_batch_tokens} tokens at a time; the same step again.")
            optimizer.zero_grad(set_to_none=True)
            memory.set_random_state(random_state, device)
        sum_gradients(loss_sum)  # over the ranks, if there are several
        scaler.unscale_(optimizer)
        grad_norm = whole(clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf))
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
            seconds, waited = watch.lap()
            entry = {
                "step": done,
                "epoch": done / epoch_steps,
                "loss": total / supervised if supervised else math.nan,  # nats per supervised token since last time
                "grad_norm": grad_norm.item(),  # of this step, before clipping
                "learning_rate": learning_rate,
                "skipped_steps": finite.skipped,  # since the start
                "answer_tokens_per_second": supervised / seconds,
                "data_wait": waited / seconds,  # share of the time in which the loop waited for records
                "eta_seconds": eta_seconds(done - at.step, total_steps - at.step, watch.total),
                "peak_memory_bytes": peak_memory(device),
            }
            if val_records and (done % config.eval_steps == 0 or last):
                with watch.paused():
                    mine = memory.with_less_when_full(validate, micro_batch_tokens, longest_val, ranks.sharded)
                    entry["val_loss"] = ranks.mean(*mine)
                model.train()
            if ranks.is_main:
                metrics.write(entry)
                tqdm.write(progress_line(entry, total_steps))
            sums.zero_()
        if done % config.save_steps == 0 or last or stopping:
            finite.settle()
        if (done % config.save_steps == 0 and not finite.in_a_row) or last or stopping:  # not among skipped steps
            at_step = runs.Counters(done, *sums.tolist(), finite.skipped, finite.in_a_row, micro_batch_tokens)
            own = runs.random_state() | {"micro_batch_tokens": torch.tensor(micro_batch_tokens)}
            weights, states = weights_now(), ranks.gather(own)
            moments = all_whole(runs.optimizer_tensors(model, optimizer), keep=ranks.is_main)
            if ranks.is_main:
                with watch.paused():
                    newest = runs.save_checkpoint(run, save, weights, moments, scaler, states, at_step)
                    runs.remove_old_checkpoints(run, newest, config.save_total_limit, config.load_best_model_at_end)
        if stopping and not last:
            print(f"Saved step {done} of {total_steps}. Go on with: {ranks.command} train.py --resume {run}")
            return INTERRUPTED

    # ---- end: the finished model, and three held-out titles before and after
    stop.over()
    best = config.load_best_model_at_end and ranks.from_main(lambda: runs.first_whole(runs.best_checkpoints(run)))
    if best:
        lowest = models.load_model(best, four_bit=config.load_in_4bit).parameters()
        for weight, its_best in zip(trained, (p for p in lowest if p.requires_grad), strict=True):
            weight.data.copy_(placed_like(its_best, weight))
        print(f"The validation loss was lowest at {best.name}: that is the final model.")
    before, after = runs.read_json(run / "before.json"), dict(zip(titles, describe(titles), strict=True))
    weights = weights_now()
    if ranks.is_main:
        with runs.whole_folder(run / "final") as folder:
            save(folder, weights)
    print(f"\nSaved {run / 'final'}." + (" Titles that were never trained on:" if titles else ""))
    print(before_and_after(titles, before, after))
    print("Ask for more:  python generate.py\nMeasure it:    python evaluate.py")
    return 0


if __name__ == "__main__":
    run_script(main, COMMAND)
