"""Survey of chat templates: are the tokens that a model is trained on those that its template renders?

    python -m tests.benchmarks.template_survey FOLDER [--all] [--turns 3] [--form thoughts] [--kwargs JSON]

FOLDER holds NAME.jinja files, each with an optional NAME.json of bos_token and eos_token, and folders of real
tokenizers (tokenizer.json with the template). A template without a tokenizer gets a byte-level one that knows its special
tokens. Each is rendered with and without a system turn. The verdict is "exact", "exact, EOS added" (the template writes
no end), "exact, thought after the prompt" (it writes no thoughts, or others in a prompt), "refused" with the cause, or
"DIFFERS".

--form says what the assistant writes: answers; answers after thoughts; or a tool call and, after its result, answers.
--kwargs are variables of the template, such as '{"enable_thinking": false}'.
"""

import argparse
import itertools
import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.config.chat_template import ChatTemplateSettings
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import AlfineError

SPECIAL = re.compile(
    r"<\|[^|<>'\"\s{}]{1,60}\|>|<｜[^｜<>\s]{1,60}｜>|<\|[a-z_]+>|<[a-z_]+\|>|</?s>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|THINK|gMASK)\]"
    r"|<sop>|<eop>|<(?:BOS|EOS)_TOKEN>|<extra_id_\d+>|<SPECIAL_\d+>|</?think>|<end_of_utterance>|<image>|</?seed:[a-z_]+>"
    r"|\]~!?b[\[\]]|\[e~\[|\]<\]minimax\[>\["
)
NOT_SPECIAL = re.compile(r"^</?think>$|^\[/?THINK\]$")
GUESSES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<seed:eos>",
    "[e~[",
)
SYSTEM, USER, ANSWER, NEXT = "Be very brief.", "Is the tea in?", "negative", "Are you sure?"
THOUGHT, RESULT = "The shelf decides it.", '{"stock": 0}'
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_stock", "arguments": {"item": "tea", "shelves": [3, 4], "fresh": True}},
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "item": {"type": "string", "description": "What to look for."},
        "shelves": {"type": "array", "items": {"type": "integer"}, "description": "Where to look."},
        "fresh": {"type": "boolean", "description": "Only fresh goods."},
    },
    "required": ["item"],
}
FUNCTION = {"name": "get_stock", "description": "Counts what is in stock.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}


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


def conversation(form, system, turns):
    messages = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": USER if not turn else f"{NEXT} {turn}"})
        if form == "tools" and not turn:
            messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
            messages.append({"role": "tool", "name": "get_stock", "tool_call_id": CALL["id"], "content": RESULT})
        answer = {"role": "assistant", "content": ANSWER if not turn else f"{ANSWER} {turn}"}
        messages.append(answer | ({"reasoning_content": f"{THOUGHT} {turn}"} if form == "thoughts" else {}))
    supervised = tuple(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Conversation(messages, supervised, [TOOL] if form == "tools" else None, {}, form == "thoughts")


def verdict(tokenizer, wanted, kwargs):
    """Compares the tokens of alfine with those of the template."""
    try:
        prompt_format = PromptFormat(tokenizer, ChatTemplateSettings(kwargs=kwargs))
        encoded = prompt_format.encode(wanted)
        merged = wanted.messages[0]["role"] == "system" and prompt_format.renderer.merges_system
    except AlfineError as error:
        return f"refused: {error}"
    if problem := check_spans(prompt_format, encoded, wanted):
        return f"DIFFERS {problem}"
    messages = list(wanted.messages)
    if merged:
        system, user, *rest = messages
        messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    if wanted.with_reasoning:
        kwargs = {"enable_thinking": True, "thinking": True, **kwargs}
    ids, text = encoded.input_ids, tokenizer.decode
    problem = "the template refuses"
    found = renderings(tokenizer, messages, wanted.tools, kwargs)
    if not found and wanted.tools is None:  # a template for conversations with tools is given an empty list of them
        found = renderings(tokenizer, messages, [], kwargs)
    for expected in found:
        if expected[: len(ids)] == ids:
            return "exact" + ", system merged" * merged
        if not prompt_format.renderer.end and expected[: len(ids) - 1] == ids[:-1]:
            return "exact, EOS added"
        answered, end = ids[: -len(prompt_format.end_ids)], prompt_format.end_ids
        if expected == answered and tokenizer.convert_ids_to_tokens(end[0]) in tokenizer.chat_template:
            return "exact, end from the next turn"
        n = next(
            (i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), min(len(ids), len(expected))
        )
        problem = f"ours …{text(ids[max(0, n - 8) :])[-80:]!r} template …{text(expected[max(0, n - 8) :])[:80]!r}"
    if wanted.with_reasoning:
        prompts = renderings(tokenizer, messages[:-1], None, kwargs, add_generation_prompt=True)
        if encoded.prompt_ids in prompts:
            return "exact, thought after the prompt"
    return f"DIFFERS {problem}"


def renderings(tokenizer, messages, tools, kwargs, add_generation_prompt=False):
    """The tokens of the template's renderings: with contents as texts or parts, with the arguments of calls as objects
    or JSON and their content empty or null, as the end of a conversation or before another turn."""
    found = []
    following = [] if add_generation_prompt else [{"role": "user", "content": NEXT}]
    for rest in ([], following):
        for parts in (False, True):
            for as_text, null in itertools.product((False, True), repeat=2) if tools else [(False, False)]:
                given = [in_form(message, parts, as_text, null) for message in [*messages, *rest]]
                try:
                    text = tokenizer.apply_chat_template(
                        given, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
                    )
                except Exception:
                    continue
                found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def in_form(message, parts, as_text, null):
    message = dict(message)
    if "reasoning_content" in message:
        message["thinking"] = message["reasoning_content"]
    if parts and message["content"]:
        message["content"] = [{"type": "text", "text": message["content"]}]
    if null and "tool_calls" in message:
        message["content"] = None
    if as_text and "tool_calls" in message:
        function = {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}
        message["tool_calls"] = [{**CALL, "function": function}]
    return message


def check_spans(prompt_format, encoded, wanted):
    """A problem with the supervised spans: each holds its answer and no more than its thought and its end, a call holds
    its arguments, and the prompt of the last turn is that without an answer."""
    decode = prompt_format.tokenizer.decode
    ends = {"", prompt_format.renderer.end.strip(), decode(prompt_format.end_ids).strip()}
    thinks = prompt_format.renderer._thinks(wanted)
    turns = wanted.supervised_turns[-len(encoded.supervised_spans) :]
    for (start, end), message in zip(encoded.supervised_spans, (wanted.messages[turn] for turn in turns), strict=True):
        shown, answer = decode(encoded.input_ids[start:end]), message["content"]
        if "tool_calls" in message:
            if problem := check_call(shown):
                return problem
            continue
        if prompt_format.template.has_generation_tags and answer in shown:
            continue  # the template itself says what the assistant writes
        before, _, after = shown.strip().rpartition(answer)
        if answer not in shown or after.strip() not in ends or (before and not thinks):
            return f"span {shown!r}"
    thought = wanted.messages[-1].get("reasoning_content")
    if thought and thought not in decode(encoded.completion_ids):
        return f"no thought in {decode(encoded.completion_ids)!r}"
    asked = Conversation(wanted.messages[: turns[-1]], (), wanted.tools, {}, wanted.with_reasoning)
    prompt = prompt_format.encode(asked)
    if prompt.input_ids != encoded.prompt_ids:
        return f"prompt {decode(prompt.input_ids)[-60:]!r} {decode(encoded.prompt_ids)[-60:]!r}"
    return None if encoded.input_ids[-1] in prompt_format.stop_ids else "no stop token at the end"


def check_call(shown):
    """A problem with the text of a call: its name or its arguments are missing, or they are written as Python does."""
    if not all(part in shown for part in ("get_stock", "item", "tea", "shelves", "fresh")):
        return f"call {shown!r}"
    return f"call as Python {shown!r}" if re.search(r"\{'", shown) else None


def sources(folder):
    """The templates and the folders of tokenizers."""
    folders = [path.parent for path in sorted(folder.rglob("tokenizer.json"))]
    return [*(path for path in sorted(folder.rglob("*.jinja")) if path.parent not in folders), *folders]


def tokenizer_of(path):
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path)
    template, beside = path.read_text(encoding="utf-8"), path.with_suffix(".json")
    return toy_tokenizer(template, json.loads(beside.read_text()) if beside.exists() else {})


def verdicts_of(path, options):
    """The verdicts without and with a system turn."""
    try:
        tokenizer = tokenizer_of(path)
        if not tokenizer.chat_template:
            return ["no template"] * 2
        wanted = [conversation(options.form, system, options.turns) for system in (None, SYSTEM)]
        return [verdict(tokenizer, each, options.kwargs) for each in wanted]
    except Exception as error:
        return [f"CRASH {type(error).__name__} {str(error)[:150]}"] * 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--form", choices=("answers", "thoughts", "tools"), default="answers")
    parser.add_argument("--kwargs", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--all", action="store_true", help="print exact templates too")
    options = parser.parse_args()
    counts = Counter()
    paths = sources(options.folder)
    for path in paths:
        verdicts = verdicts_of(path, options)
        counts.update(
            re.split(r"[: ]", word)[0] if word.startswith(("ref", "DIF", "CRA")) else word for word in verdicts
        )
        if options.all or any(not word.startswith("exact") for word in verdicts):
            name = path.relative_to(options.folder)
            print(f"{name}\n    without system: {verdicts[0]}\n    with system:    {verdicts[1]}")
    print(len(paths), "templates, two renderings each:", dict(counts))


if __name__ == "__main__":
    main()
