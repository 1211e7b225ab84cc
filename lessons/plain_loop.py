"""The training of train.py with nothing around it: padded records, one device, all the logits, no saves.

    python lessons/plain_loop.py

Prints the numbers that train.py logs, for the same records in the same order:

    python train.py --model pocket --max_steps 20 --logging_steps 1 --question_share 0 --context_share 0 --optim adamw
"""

import math
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

sys.path.insert(0, str(Path(__file__).parent.parent))

from model.load import POCKET_VOCABULARY, pocket_model
from run.cli import run_script
from text.batch import Encoder
from text.bpe import train_bpe
from text.stream import RecordFile, records_of_steps
from text.template import QA

STEPS, BATCH, PEAK, SEED = 20, 16, 2e-3, 42
WARMUP = math.ceil(0.03 * STEPS)  # steps in which the learning rate rises from 0


def main(train_file: Path = Path("data/train.jsonl"), dtype: torch.dtype = torch.float32) -> None:
    file = RecordFile(train_file)  # missing? `python train.py --max_steps 1` prepares the bundled catalogue
    tokenizer = train_bpe(map(QA.text_of, file), POCKET_VOCABULARY, QA.phrases)
    encoder, model = Encoder(tokenizer, QA, 256), pocket_model(tokenizer, 256, SEED).to(dtype).train()
    matrices, vectors = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK)
    print(f"A model that knows nothing has a loss of about ln {len(tokenizer):,} = {math.log(len(tokenizer)):.4f}.")

    for step, records in enumerate(records_of_steps(file, BATCH, SEED, 0, STEPS)):
        rows = encoder.rows(records)
        shape = len(rows), max(len(row.ids) for row in rows)  # (B, L): shorter records are padded on the right
        ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)  # -100: not supervised
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            labels[i, row.first_supervised : len(row.ids)] = torch.tensor(row.ids[row.first_supervised :])

        for group in optimizer.param_groups:
            group["lr"] = PEAK * (step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP))
        logits = model(ids).logits[:, :-1]  # (B, L - 1, V): the place i predicts the token at i + 1
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())  # -ln p, the mean over supervised tokens
        loss.backward()
        grad_norm = clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1:2}/{STEPS}  loss {loss.item():.6f}  grad_norm {grad_norm.item():.6f}")


if __name__ == "__main__":
    run_script(main)
