"""train.py against transformers.Trainer: the same weights, records and order give the same losses and weights.

The Trainer pads every batch and masks the padding; ours is flat. Only the amount of work differs.
"""

import json

import pytest
import torch
import transformers
from conftest import logged, tiny_gpt2, write_data
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from text.batch import Encoder
from text.stream import RecordFile, records_of_steps
from text.template import QA


class RecordingTrainer(Trainer):
    """A Trainer that takes the records in the order given and keeps the loss of each optimizer step."""

    losses: list[float]

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step
        self.losses += [0.0] * (step + 1 - len(self.losses))
        self.losses[step] += loss.item()  # the losses of the micro-batches of a step add up to the step's
        return loss


@pytest.mark.parametrize("loss_on, max_grad_norm", [("all", 0.5), ("answer", 0.5), ("answer", 1e9)])
def test_losses_and_weights_equal_those_of_the_trainer(tmp_path, tokenizer, records, train, loss_on, max_grad_norm):
    folder = tmp_path / "tiny-gpt2"
    tiny_gpt2(len(tokenizer), activation_function="gelu_new").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    many = [r | {"uid": f"{r['uid']}-{i}", "content": r["content"] * (1 + i % 3)} for i in range(8) for r in records]
    data = write_data(tmp_path / "data", many[:87])  # 22 steps of 4 records, the last of 3

    common = {"learning_rate": 3e-3, "weight_decay": 0.1, "max_grad_norm": max_grad_norm, "seed": 7}
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | common
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    more = ("--loss_on", loss_on, "--logging_steps", 1, "--warmup_ratio", 0.2, "--micro_batch_tokens", 150)
    assert train("--model", folder, "--run_name", "ours", *flags, *more, "--question_share", 0) == 0
    entries = logged(tmp_path / "runs" / "ours")
    ours = [entry["loss"] for entry in entries]
    assert len(ours) == 22

    order = records_of_steps(RecordFile(data / "train.jsonl"), 4, seed=7, first_step=0, last_step=22)
    rows = Encoder(tokenizer, QA, 256, loss_on).rows([record for step in order for record in step])

    def padded(batch):
        longest = max(len(row.ids) for row in batch)
        ids, labels, mask = [], [], []
        for row in batch:
            rest = longest - len(row.ids)
            # Nothing predicts the first token of a record, but the Trainer would count its label in the divisor.
            first = max(row.first_supervised, 1)
            ids.append(row.ids + [tokenizer.eos_token_id] * rest)
            labels.append([-100] * first + row.ids[first:] + [-100] * rest)
            mask.append([1] * len(row.ids) + [0] * rest)
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}

    transformers.set_seed(0)
    trainer = RecordingTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            lr_scheduler_type="linear",
            warmup_steps=5,  # ceil(0.2 * 22)
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
            disable_tqdm=True,
            logging_steps=1,
            **options,
        ),
        train_dataset=rows,
        data_collator=padded,
    )
    trainer.losses = []
    trainer.train()

    assert ours == pytest.approx(trainer.losses, rel=1e-5)
    # AdamW hardly sees the scale of a gradient, and clipping removes it; its norm before clipping shows it.
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert [entry["grad_norm"] for entry in entries] == pytest.approx([float(norm) for norm in norms], rel=1e-4)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "ours" / "final")
    start = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    theirs = trainer.model.state_dict()
    for name, weight in final.state_dict().items():
        assert (weight - theirs[name]).abs().max() <= 1e-4, name
        assert not torch.equal(weight, start[name]), name
    saved = (tmp_path / "runs" / "ours" / "train_config.json").read_text(encoding="utf-8")
    assert json.loads(saved)["options"]["seed"] == 7
