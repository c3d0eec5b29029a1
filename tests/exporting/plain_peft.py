"""A program as a user of an exported adapter writes it, with transformers and PEFT only.

    python plain_peft.py ADAPTER PROMPTS ANSWERS [BASE]

BASE is the folder of the base; without it PEFT finds the base by the id in the adapter's config. PROMPTS has one prompt
per line: `messages`, `variables` of the chat template, and `limit` in tokens. The greedy answers are written to ANSWERS.
"""

import json
import sys
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH_SIZE = 16


@torch.no_grad()
def main() -> None:
    adapter, prompts, output, *base = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(adapter, padding_side="left")
    if base:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base[0]), adapter)
    else:
        model = AutoPeftModelForCausalLM.from_pretrained(adapter)
    model = model.float().eval()
    rows = [json.loads(line) for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    texts = [
        tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False, **row["variables"])
        for row in rows
    ]
    answers = [""] * len(rows)
    for limit in sorted({row["limit"] for row in rows}):
        same_limit = [index for index, row in enumerate(rows) if row["limit"] == limit]
        for start in range(0, len(same_limit), BATCH_SIZE):
            indices = same_limit[start : start + BATCH_SIZE]
            batch = tokenizer(
                [texts[index] for index in indices], add_special_tokens=False, padding=True, return_tensors="pt"
            )
            tokens = model.generate(**batch, do_sample=False, max_new_tokens=limit)
            new = tokens[:, batch["input_ids"].shape[1] :]
            for index, text in zip(indices, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[index] = text
    Path(output).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
