"""Train a small language model to write a product's description from its title.

    python train.py                              the bundled catalogue if no data was prepared; no download on a CPU
    python train.py --model distilgpt2           fine-tune DistilGPT-2
    python train.py --resume                     go on with the newest run
    python train.py --explain                    look into the first two steps, number by number

All of the learning is `forward_backward` and the loop at the end of `main`: read them first. What stands before them
makes the objects that they use: each has one concern and, where it acts in training, one line in the loop. The same
training with nothing around it is lessons/plain_loop.py.
"""

from run.config import Command, parse_train

if __name__ == "__main__":
    COMMAND = parse_train()  # before torch is imported, so that --help answers at once

import torch
from torch import Tensor

from model.loss import summed_loss
from model.muon import Muon, hidden_matrices
from run.checkpoint import CheckpointManager
from run.cli import INTERRUPTED, run_script
from run.data import make_train_loader, open_data
from run.explain import explained
from run.guard import NonFiniteGuard
from run.loading import add_lora, load_for_training, use_flat_batches
from run.log import MetricLogger, Stopwatch
from run.micro_batch import MicroBatcher
from run.plan import make_plan, measure_memory
from run.report import end_report
from run.session import open_session
from run.shard import parallelize
from run.stop import StopRequest
from run.validation import Samples, Validator
from text.batch import FlatBatch


def main(command: Command) -> int:
    # ---- session: a new run, or one that goes on with its own options and from its newest whole checkpoint
    session = open_session(command)
    config, machine, ranks = session.config, session.machine, session.ranks  # ranks: one process, or one for each card

    # ---- data: three JSONL files, read from the disk as they are needed
    data = open_data(session)

    # ---- model: from a checkpoint, the hub, a folder, or nothing; the encoder makes tokens of records
    model, encoder = load_for_training(session, data.train)
    if config.lora:
        add_lora(model, config)  # y = Wx becomes y = Wx + s B(Ax): W is frozen, the two thin matrices are trained
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    use_flat_batches(model, session, encoder, data.train)  # onto the device; records will lie end to end, no padding
    memory = measure_memory(session, model)  # of a step, by its parts
    loss_fn = parallelize(model, summed_loss, machine, ranks)  # without --shard the same function

    # ---- optimizer: AdamW over fp32 weights; biases and norms (one-dimensional) do not decay
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    if config.optim == "muon":  # for the blocks' matrices; AdamW keeps embeddings, norms and biases
        optimizer = Muon(groups, hidden_matrices(model), lr=config.learning_rate)
    scaler = machine.grad_scaler()  # fp16: multiplies the loss, so that small gradients do not vanish; else nothing

    # ---- plan: how many steps, how much at once, how much memory, disk and time; said before the first step
    samples = Samples(session, model, encoder, data.test)  # titles that are never trained on, before and after
    plan = make_plan(session, data, model, encoder, memory, loss_fn, optimizer, samples)
    print(plan.table())
    if command.dry_run:
        return 0

    # ---- what looks after the loop, an object for each concern
    stopwatch = Stopwatch()
    validator = Validator(session, model, loss_fn, data.val, encoder, stopwatch)
    checkpoints = CheckpointManager(session, model, encoder, optimizer, scaler, stopwatch)
    if session.is_new:
        checkpoints.begin(samples, data.fingerprints)  # from here on there is a run that --resume finds
    all_reduce_gradients = ranks.gradient_all_reduce(model)  # one process: does nothing
    state = checkpoints.restore(plan)  # last: a number drawn at random after it would make a resumed run another one
    micro_batcher = MicroBatcher(state, optimizer, machine.device, ranks)
    guard = NonFiniteGuard(state, optimizer, scaler, session.folder, config.max_skipped_steps)
    metrics = MetricLogger(state, plan, session.folder, machine.device, stopwatch, ranks, config.report_to)
    train_loader = make_train_loader(session, data, encoder, state, plan.total_steps)
    stop = StopRequest()  # Ctrl-C from here on: the step is finished and everything saved
    if command.explain:  # the first two steps as they are, with pictures taken around them; nothing is saved
        stop.over()
        train_loader = explained(train_loader, session, model, encoder, optimizer, scaler, state, memory)
    else:
        print(f"\nTraining into {session.folder}. Ctrl-C saves and stops.")

    # ---- loop: one turn is one optimizer step
    def forward_backward(micro_batches: list[FlatBatch], supervised: int) -> Tensor:
        """Add a step's gradients up in `.grad`. Returns its loss, (): -ln p of each supervised token, summed."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=machine.device)
        for micro_batch in micro_batches:
            with machine.autocast():
                loss = loss_fn(model, micro_batch.to(machine.device))  # model, head, cross entropy (model/loss.py)
            scaler.scale(loss / supervised).backward()  # by the tokens of the whole step: sums add up, means do not
            loss_sum += loss.detach()
        return loss_sum

    model.train()
    micro_batcher.warm_up(forward_backward, config.records_per_step, config.max_length)  # on a GPU: the largest one
    for batch in metrics.progress_bar(train_loader):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate_at(state.step)  # up from 0 in the warm-up, then down to 0
        loss_sum = micro_batcher.run(forward_backward, batch)  # once; when memory runs out again, in smaller pieces
        all_reduce_gradients(loss_sum)
        scaler.unscale_(optimizer)
        grad_norm = ranks.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        guard.check(loss_sum, grad_norm, batch.uids)  # nan or inf: the optimizer will leave the weights as they are
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        state.count(loss_sum, batch.supervised)

        due = plan.due(state.step, stopping=ranks.any(stop.asked))
        if due.log or due.save:
            guard.settle()  # it counts one step late, so that a GPU need not wait for it
        if due.log:
            entry = metrics.entry(grad_norm)
            if due.validate:
                entry["val_loss"] = validator.loss(state.micro_batch_tokens)
            metrics.write(entry)
        if due.save and (due.leave or not state.skipped_in_a_row):
            checkpoints.save(state)
        if due.interrupted:
            print(checkpoints.how_to_go_on(state, plan))
            return INTERRUPTED

    # ---- end: the best weights if they are asked for, the finished model, the same titles again
    if command.explain:
        return 0
    stop.over()
    if config.load_best_model_at_end:
        checkpoints.load_best()
    after = samples.answers()
    checkpoints.save_final()
    print(f"\nSaved {session.folder / 'final'}.{samples.before_and_after(after)}")
    print(f"Look at it:    {end_report(session, after)}")  # curves, memory, samples: a page of its own
    print("Ask for more:  python generate.py\nMeasure it:    python evaluate.py")
    return 0


if __name__ == "__main__":
    run_script(main, COMMAND)
