"""transformers.Trainer on the records of train.py: what the benchmarks set beside ours."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from model.load import set_dropout

NOTEBOOK_DROPOUT = 0.1  # GPT-2's own, in all three places


def load_peer(folder, dropout: float):
    """(model, tokenizer) as transformers reads them, in fp32, with `dropout` in every place that has one."""
    config = AutoConfig.from_pretrained(folder)
    set_dropout(config, dropout)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def add_padding_token(model, tokenizer) -> int:
    """As the notebook had it: one more token, one more row of the embeddings. Returns its id."""
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(tokenizer))
    return tokenizer.pad_token_id


def collator(pad: int, length: int | None, loss_on_prompt: bool):
    """Turns rows into what a Trainer takes: (n, length) `input_ids`, `labels`, `attention_mask`. `length` None: as long
    as the longest row of the batch."""

    def collate(rows) -> dict[str, torch.Tensor]:
        longest = length or max(len(row.ids) for row in rows)
        table: dict[str, list] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in rows:
            missing, first = longest - len(row.ids), 1 if loss_on_prompt else row.first_supervised
            table["input_ids"].append(row.ids + [pad] * missing)
            table["labels"].append([-100] * first + row.ids[first:] + [-100] * missing)
            table["attention_mask"].append([1] * len(row.ids) + [0] * missing)
        return {name: torch.tensor(values) for name, values in table.items()}

    return collate


def in_order(trainer: type) -> type:
    """The Trainer class, taking its records in the order in which they are given."""

    class InOrder(trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def common_arguments(batch: int, steps: int, on_gpu: bool) -> dict:
    """Of `TrainingArguments`, what the benchmarks share: the notebook's rate and decay, nothing said, nothing saved."""
    return {
        "output_dir": "unused",
        "per_device_train_batch_size": batch,
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "max_steps": steps,
        "optim": "adamw_torch_fused",
        "fp16": on_gpu,
        "use_cpu": not on_gpu,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
