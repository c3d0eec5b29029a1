"""Survey of chat templates: are the tokens that a model is trained on those that its template renders?

    python -m tests.benchmarks.template_survey FOLDER [--all] [--turns 3]

FOLDER holds NAME.jinja files, each with an optional NAME.json of bos_token and eos_token, and folders of real
tokenizers (with tokenizer.json). A template without a tokenizer gets a byte-level one that knows its special tokens. Each
is rendered with and without a system turn. The verdict is "exact", "exact, EOS added" (the template writes no end),
"refused" with the cause, or "DIFFERS".
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import AlfineError

SPECIAL = re.compile(
    r"<\|[^|<>'\"\s{}]{1,60}\|>|<｜[^｜<>\s]{1,60}｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|THINK|gMASK)\]"
    r"|<sop>|<eop>|<(?:BOS|EOS)_TOKEN>|<extra_id_\d+>|<SPECIAL_\d+>|</?think>|<end_of_utterance>|<image>"
)
NOT_SPECIAL = re.compile(r"^</?think>$|^\[/?THINK\]$")
GUESSES = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>")
SYSTEM, USER, ANSWER, NEXT = "Be very brief.", "Is the tea in?", "negative", "Are you sure?"


def toy_tokenizer(template, names):
    """A byte-level tokenizer with the special tokens that occur in the template."""
    bos = names.get("bos_token") or ("<s>" if "bos_token" in template else None)
    eos = names.get("eos_token") or next(
        (token for token in (*GUESSES, "<|end|>", "<|endoftext|>") if token in template), "</s>"
    )
    tokens = list(dict.fromkeys([*SPECIAL.findall(template), *filter(None, (bos, eos))]))
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    for token in tokens:
        special = not NOT_SPECIAL.match(token)
        (inner.add_special_tokens if special else inner.add_tokens)(
            [AddedToken(token, special=special, normalized=False)]
        )
    special_names = {"eos_token": eos, **({"bos_token": bos} if bos else {})}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=template, clean_up_tokenization_spaces=False, **special_names
    )


def conversation(system, turns):
    messages = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": USER if not turn else f"{NEXT} {turn}"})
        messages.append({"role": "assistant", "content": ANSWER if not turn else f"{ANSWER} {turn}"})
    supervised = tuple(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Conversation(messages, supervised)


def verdict(tokenizer, system, turns):
    """Compares the tokens of alfine with those of the template, rendered as the conversation's end or before a turn."""
    wanted = conversation(system, turns)
    try:
        prompt_format = PromptFormat(tokenizer)
        encoded = prompt_format.encode(wanted)
        merged = prompt_format.renderer.merges_system and bool(system)
    except AlfineError as error:
        return f"refused: {error}"
    messages = list(wanted.messages)
    if merged:
        messages = [{**messages[1], "content": f"{system}\n\n{messages[1]['content']}"}, *messages[2:]]
    ids, text = encoded.input_ids, tokenizer.decode
    renderings = []
    for rest in ([], [{"role": "user", "content": NEXT}]):
        for parts in (False, True):
            given = [
                {**m, "content": [{"type": "text", "text": m["content"]}]} if parts else m for m in [*messages, *rest]
            ]
            try:
                whole = tokenizer.apply_chat_template(given, tokenize=False)
            except Exception:
                continue
            renderings.append(tokenizer(whole, add_special_tokens=False)["input_ids"])
    problems = []
    for expected in renderings:
        if expected[: len(ids)] == ids:
            return check_spans(prompt_format, encoded, wanted) or ("exact" + ", system merged" * merged)
        if not prompt_format.renderer.end and expected[: len(ids) - 1] == ids[:-1]:
            return check_spans(prompt_format, encoded, wanted) or "exact, EOS added"
        answered, end = ids[: -len(prompt_format.end_ids)], prompt_format.end_ids
        if expected == answered and tokenizer.convert_ids_to_tokens(end[0]) in tokenizer.chat_template:
            return check_spans(prompt_format, encoded, wanted) or "exact, end from the next turn"
        n = next(
            (i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), min(len(ids), len(expected))
        )
        problems.append(
            f"ours …{text(ids[max(0, n - 8) :])[-80:]!r} template …{text(expected[max(0, n - 8) :])[:80]!r}"
        )
    return f"DIFFERS {problems[0] if problems else 'the template refuses'}"


def check_spans(prompt_format, encoded, wanted):
    """A problem with the supervised spans: each holds its answer and no more than its end, and the prompt of the last
    turn is that without an answer."""
    decode = prompt_format.tokenizer.decode
    answers = [wanted.messages[turn]["content"] for turn in wanted.supervised_turns]
    for (start, end), answer in zip(encoded.supervised_spans, answers, strict=True):
        shown = decode(encoded.input_ids[start:end])
        if prompt_format.template.has_generation_tags and answer in shown:
            continue  # the template itself says what the assistant writes
        ends = {"", prompt_format.renderer.end.strip(), decode(prompt_format.end_ids).strip()}
        if shown.strip().removeprefix(answer).strip() not in ends:
            return f"DIFFERS span {shown!r}"
    last = wanted.supervised_turns[-1]
    prompt = prompt_format.encode(Conversation(wanted.messages[:last]))
    if prompt.input_ids != encoded.prompt_ids:
        return f"DIFFERS prompt {decode(prompt.input_ids)[-60:]!r} {decode(encoded.prompt_ids)[-60:]!r}"
    if encoded.input_ids[-1] not in prompt_format.stop_ids:
        return "DIFFERS no stop token at the end"
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="print exact templates too")
    options = parser.parse_args()
    counts = Counter()
    sources = [
        *sorted(options.folder.rglob("*.jinja")),
        *(p.parent for p in sorted(options.folder.rglob("tokenizer.json"))),
    ]
    for path in sources:
        try:
            if path.is_dir():
                tokenizer = AutoTokenizer.from_pretrained(path)
            else:
                template, beside = path.read_text(encoding="utf-8"), path.with_suffix(".json")
                tokenizer = toy_tokenizer(template, json.loads(beside.read_text()) if beside.exists() else {})
            verdicts = [verdict(tokenizer, system, options.turns) for system in (None, SYSTEM)]
        except Exception as error:
            verdicts = [f"CRASH {type(error).__name__} {str(error)[:150]}"] * 2
        counts.update(re.split(r"[: ]", word)[0] if not word.startswith("exact") else word for word in verdicts)
        if options.all or any(not word.startswith("exact") for word in verdicts):
            print(
                f"{path.relative_to(options.folder)}\n    without system: {verdicts[0]}\n    with system:    {verdicts[1]}"
            )
    print(len(sources), "templates, two renderings each:", dict(counts))


if __name__ == "__main__":
    main()
