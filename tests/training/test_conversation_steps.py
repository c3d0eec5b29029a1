"""Steps on conversations equal an independent computation: Hugging Face renders, masks and computes everything."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.config.job import load_job
from pipelines.data.examples import load_examples
from pipelines.data.mixing import sample_epoch
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples, write_splits
from tests.jobs import run_training

pytestmark = pytest.mark.ludwig

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNTAGGED = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def conversation(index):
    turns = [{"role": "system", "content": "Be brief."}] if index % 3 == 0 else []
    for turn in range(1 + index % 3):
        turns.append({"role": "user", "content": f"is the tea {index} in {turn}? " * (1 + index % 2)})
        turns.append({"role": "assistant", "content": ["the inn", "nine gates", "a net in ice"][(index + turn) % 3]})
    return turns


def masked_loss(model, tokenizer, conversations):
    """The mean loss over the tokens that the template marks as the assistant's, in a right-padded batch."""
    encoded = [
        tokenizer.apply_chat_template(
            turns, chat_template=TEMPLATE, return_assistant_tokens_mask=True, return_dict=True
        )
        for turns in conversations
    ]
    width = max(len(row["input_ids"]) for row in encoded)
    ids = torch.zeros(len(encoded), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, row in enumerate(encoded):
        tokens, marks = torch.tensor(row["input_ids"]), torch.tensor(row["assistant_masks"], dtype=torch.bool)
        ids[index, : len(tokens)], mask[index, : len(tokens)] = tokens, 1
        labels[index, : len(tokens)][marks] = tokens[marks]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


@pytest.mark.parametrize("template", [TEMPLATE, UNTAGGED], ids=["tagged", "untagged"])
def test_three_steps_on_conversations_equal_plain_hugging_face(make_job, template):
    _, run, base = make_job(batch_size=2, gradient_accumulation_steps=3)
    splits = ["train", "train", "validation", "test"]
    rows = [{"messages": conversation(index), "split": splits[index % 4]} for index in range(36)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (base / "chat_template.jinja").write_text(template)
    config = json.loads(Path("job.yaml").read_text())
    config["pipeline"]["tasks"]["t"] = {"data": "rows.jsonl"}
    Path("job.yaml").write_text(json.dumps(config))
    job = load_job("job.yaml")
    write_splits(tokenize_examples(load_examples(job.pipeline), PromptFormat.from_folder(base)), run.path("data"))
    run_training(job, run, base)

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train = [row["messages"] for row in rows if row["split"] == "train"]
    order = sample_epoch(["t"] * len(train), {"t": 1.0}, 3, 0, True)
    history = json.loads(run.path("model", "training.json").read_text())
    for step in range(3):
        loss = masked_loss(model, tokenizer, [train[index] for index in order[6 * step : 6 * step + 6]])
        assert float(loss.detach()) == pytest.approx(history["train_loss"][step]["loss"], abs=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    weights, expected = load_file(run.path("model", "model.safetensors")), model.state_dict()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5)
