"""A run or an adapter as files that other programs open.

    python export.py                                     the newest run as a Hugging Face folder, adapters merged
    python export.py --format gguf --gguf_type q8_0      for llama.cpp and Ollama, with a Modelfile
    python export.py --adapter FOLDER --base FOLDER      any adapter in PEFT's format, into the base of your choice
    python export.py --from_bin FOLDER --to FOLDER       a model with a pytorch_model.bin, as safetensors: once

The base is loaded afresh, in full precision, and the adapter merged into it. What was written is read again, and its
logits compared with those of base and adapter side by side, before this says that it is done. A .pkl is not read again:
no pickle is ever opened here, so there it is the weights in memory that are compared.
"""

from pathlib import Path

from run.cli import Parser, UsageError, path, run_script
from run.folders import find_run, weights_of


def parse(args: list[str] | None = None):
    parser = Parser(prog="export.py", usage="python export.py [options]", description="Files for other programs.")
    parser.add_argument("--run", metavar="NAME|PATH", help="the run; default: the newest in --output_dir")
    parser.add_argument("--output_dir", type=path, default=Path("checkpoints"), metavar="FOLDER", help="[checkpoints]")
    parser.add_argument("--adapter", type=path, metavar="FOLDER", help="an adapter instead of a run")
    parser.add_argument("--base", metavar="MODEL", help="merge into this base, not into the one that the adapter names")
    parser.add_argument("--from_bin", type=path, metavar="FOLDER", help="convert older weights; nothing else is done")
    parser.add_argument("--to", type=path, metavar="FOLDER", help="default: export-FORMAT in the run's folder")
    parser.add_argument("--format", choices=("safetensors", "pkl", "gguf"), default="safetensors", help="[safetensors]")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="not of GGUF [float32]")
    parser.add_argument("--gguf_type", choices=("f32", "f16", "q8_0"), help="of GGUF matrices [f16]")
    options = parser.parse_args(args)
    if options.run and options.adapter:
        parser.error("give --run or --adapter, not both.")
    if options.from_bin and (not options.to or options.run or options.adapter or options.format != "safetensors"):
        parser.error("--from_bin FOLDER goes with --to FOLDER alone.")
    if options.format == "gguf" and options.dtype:
        parser.error("--dtype does nothing for GGUF: name --gguf_type.")
    if options.format != "gguf" and options.gguf_type:
        parser.error("--gguf_type does nothing without --format gguf.")
    options.dtype, options.gguf_type = options.dtype or "float32", options.gguf_type or "f16"
    if options.to and options.to.exists():  # what needs no torch is said before it is loaded
        raise UsageError(f"{options.to} exists. Choose another folder with --to, or delete it.")
    if options.from_bin and not options.from_bin.is_dir():
        raise UsageError(f"{options.from_bin} is no folder.")
    if not options.from_bin and not options.adapter:
        find_run(options.run, options.output_dir)
    return options


if __name__ == "__main__":
    OPTIONS = parse()  # before torch is imported, so that --help answers at once

import re

import torch

from model.adapter import is_adapter
from model.gguf_file import read_gguf, write_gguf
from model.load import load_model, load_tokenizer, save_model
from model.lora import lora_layers, merge
from model.old_weights import read_old_weights
from run.files import whole_folder
from run.loading import load
from run.units import size
from text.template import QA, Template, load_template, opening_of

# Largest difference of two logits, as a share of the largest logit, that rounding alone explains.
ROUNDING = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2, "f32": 1e-5, "f16": 1e-2, "q8_0": 1e-1}

GO_TEXT = {"{": '{{ "{" }}', '"': '{{ "\\"" }}'}  # what prints these in a template of Ollama


class ExportDiffers(RuntimeError):
    """What was written does not say what the model says."""

    exit_code = 2


def main(options) -> int:
    if options.from_bin:
        tokenizer, model = load_tokenizer(options.from_bin), read_old_weights(options.from_bin)
        with whole_folder(options.to) as folder:
            save_model(model, tokenizer, folder)
        print(f"Saved {options.to}. Train it: python train.py --model {options.to}")
        return 0
    source = options.adapter
    if source is None or not is_adapter(source):
        source = weights_of(find_run(options.run or options.adapter, options.output_dir))
    if options.adapter and not is_adapter(source):
        raise UsageError(f"{options.adapter} holds a whole model, not an adapter: use --run {options.adapter}.")
    to = options.to or source.parent / f"export-{options.format}"
    if to.exists():
        raise UsageError(f"{to} exists. Choose another folder with --to, or delete it.")
    if options.base and not is_adapter(source):
        raise UsageError(f"--base is for adapters, and {source} holds a whole model.")
    model, encoder = load(source, load_template(source, default=QA), base=options.base)
    tokenizer, template = encoder.tokenizer, encoder.template
    ids = torch.tensor(encoder.prompts(["Caneca azul de 350 ml"]))  # (1, T)
    with torch.inference_mode():
        expected = model(ids).logits
        if lora_layers(model):
            print(f"merging {source} into {model.name_or_path}")
            del model
            model = load_model(source, base=options.base)  # a base that nothing has been done to
            merge(model)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        precision = options.gguf_type if options.format == "gguf" else options.dtype
        if options.format != "gguf":
            model.to(getattr(torch, options.dtype))
        with whole_folder(to) as folder:
            template.save(folder)
            if options.format == "gguf":
                write_gguf(model, tokenizer, bool(opening_of(tokenizer)), folder / "model.gguf", options.gguf_type)
                (folder / "Modelfile").write_text(modelfile(template, tokenizer), encoding="utf-8", newline="\n")
                read_gguf(model, folder / "model.gguf")
            elif options.format == "safetensors":
                save_model(model, tokenizer, folder)
                model = load_model(folder)
            else:
                print("A pickle can run any code when it is opened: give .pkl files to nobody who need not trust you.")
                torch.save(model.state_dict(), folder / "model.pkl")  # written, never read: not even to check it
                model.config.dtype = model.dtype
                model.config.save_pretrained(folder)
                model.generation_config.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            difference = (model.float()(ids).logits - expected).abs().max().item()
            limit = ROUNDING[precision] * max(1.0, expected.abs().max().item())
            print(f"largest difference of a logit: {difference:.1e} (limit for {precision}: {limit:.1e})")
            if not difference <= limit:
                raise ExportDiffers(f"{to} is not written: its logits differ by {difference:.1e} from the model's.")
    total = sum(file.stat().st_size for file in to.iterdir())
    print(f"Saved {to}, {size(total)}.")
    if options.format == "gguf":
        print(f"Ollama:  ollama create vitrine -f {to / 'Modelfile'}")
    return 0


def modelfile(template: Template, tokenizer) -> str:
    """How Ollama asks the model: the prompt of its training, and where an answer ends."""
    opening = tokenizer.decode(opening_of(tokenizer))  # llama.cpp adds it by itself
    around = template.prompt.removeprefix(opening).split("{title}")
    prompt = "{{ .Prompt }}".join(re.sub(r'[{"]', lambda mark: GO_TEXT[mark[0]], text) for text in around)
    stops = [tokenizer.eos_token, *template.stop]
    quoted = [stop.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for stop in stops]
    lines = ["FROM ./model.gguf", f'TEMPLATE """{prompt}{{{{ .Response }}}}"""']
    return "\n".join(lines + [f'PARAMETER stop "{stop}"' for stop in quoted]) + "\n"


if __name__ == "__main__":
    run_script(main, OPTIONS)
