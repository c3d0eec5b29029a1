"""Mistakes in a config, each made in one place of a good one: name → (config, the line to be named, a part of the message).

test_config.py checks each; docs/bad_inputs.md shows what is printed for them (bad_inputs.py).
"""

from __future__ import annotations

from collections.abc import Callable

GOOD = """\
pipeline:
  tasks:
    sentiment:
      data: data/sentiment.jsonl
      prompt: "Is this review positive or negative?\\n{review}"
      completion: "{label}"
      metric: exact_match
base_model: smollm2-135m-instruct
adapter: {type: lora, r: 16}
trainer:
  epochs: 2
  learning_rate: 2e-4
generation:
  max_new_tokens: 8
"""


def with_line(old: str, new: str) -> str:
    """GOOD with another text in one place."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def instead_of(old: str) -> Callable[[str], str]:
    return lambda new: with_line(old, new)


data = instead_of("data/sentiment.jsonl")  # line 4
prompt = instead_of("{review}")  # line 5
completion = instead_of('"{label}"')  # line 6
base_model = instead_of("smollm2-135m-instruct")  # line 8
adapter = instead_of("{type: lora, r: 16}")  # line 9
rank = instead_of("r: 16")
trainer = instead_of("epochs: 2")  # line 11
rate = instead_of("2e-4")  # line 12
generation = instead_of("max_new_tokens: 8")  # line 14


def pipeline(line: str) -> str:
    """GOOD with a line more in its pipeline section: line 2."""
    return with_line("  tasks:", f"  {line}\n  tasks:")


def task(line: str) -> str:
    """GOOD with a line more in its task: line 8."""
    return with_line("metric: exact_match", f"metric: exact_match\n      {line}")


def scheduler(keys: str) -> str:
    """GOOD with a section learning_rate_scheduler of these keys: line 11."""
    return trainer(f"learning_rate_scheduler: {{{keys}}}")


def section(text: str) -> str:
    """GOOD with a section more at its end: line 15."""
    return GOOD + text


MISTAKES: dict[str, tuple[str | bytes, int | None, str]] = {
    # YAML itself
    "empty": ("", 1, "found nothing"),
    "only a comment": ("# pipeline\n", 1, "found nothing"),
    "a list": ("- a\n- b\n", 1, "expected sections such as `pipeline:`, found a list"),
    "a text": ("hello\n", 1, "found the text 'hello'"),
    "tab": (with_line("  epochs: 2", "\tepochs: 2"), 11, "indent with spaces, not with a tab"),
    "colon in text": (
        completion("The answer: {label}"),
        6,
        'not valid YAML: put a text that contains ": " in quotes, or check the',
    ),
    "brace first": (completion("{label} it is"), 6, "put a text that starts with {"),
    "quote not closed": (completion('"{label}'), 6, "a quote is not closed"),
    "bracket not closed": (
        with_line("r: 16}", "r: 16"),
        9,
        "not valid YAML: a { is not closed by }, or a comma is missing",
    ),
    "indentation": (with_line("  learning_rate", "   learning_rate"), 12, "check the indentation"),
    "at sign": (base_model("@model"), 8, "put the text in quotes"),
    "asterisk": (completion("*label"), 6, "put a text that starts with * in quotes"),
    "two documents": (section("---\na: 1\n"), 15, "a second `---` starts another document"),
    "not UTF-8": (GOOD.encode().replace(b"Is this", b"\xe9 this"), 5, "not valid UTF-8; save the file as UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), 1, "not valid UTF-8; save the file as UTF-8"),
    "control character": (
        with_line("Is this", "Is\x07this"),
        5,
        "not valid YAML: the text contains a control character",
    ),
    "surrogate": (with_line("Is this", "\\ud800"), 5, "the text contains an unpaired surrogate"),
    "impossible escape": (with_line("Is this", "\\UFFFFFFFF"), 5, "not valid YAML: invalid Unicode escape"),
    "python object": (section("x: !!python/object/apply:os.system [ls]\n"), 15, "is not allowed"),
    "binary": (trainer("epochs: !!binary aGk="), 11, "is not allowed"),
    "not a number": (rate(".nan"), 12, "trainer.learning_rate: .nan is not a valid number"),
    "infinite": (rate("1e999"), 12, "trainer.learning_rate: 1e999 is not a valid number"),
    "deep": ("a: " + "[" * 2000 + "]" * 2000, None, "nested too deeply; is a ] or } missing?"),
    "holds itself": ("a: &a [*a]\n", 1, "an alias (*) refers to a value that contains it; write the value out"),
    "twice": (section("trainer: {epochs: 3}\n"), 15, "duplicate key (first defined on line 10)"),
    "twice inside": (
        with_line("  epochs: 2\n", "  epochs: 2\n  epochs: 3\n"),
        12,
        "duplicate key (first defined on line 11)",
    ),
    "key read as yes": (
        with_line("    sentiment:", "    yes:"),
        3,
        'YAML reads the key yes as true or false; put it in quotes: "yes":',
    ),
    "key read as number": (
        with_line("    sentiment:", "    1:"),
        3,
        'YAML reads the key 1 as a number; put it in quotes: "1":',
    ),
    "key is a list": (section("? [a]\n: b\n"), 15, "a key must be text"),
    # pipeline:
    "no pipeline": ("base_model: x\n", 1, "pipeline.tasks is missing"),
    "pipeline is null": (
        "pipeline:\nbase_model: x\n",
        1,
        "pipeline is empty; indent its keys below it, or remove the line",
    ),
    "pipeline is text": ("pipeline: yes please\nbase_model: x\n", 1, "expected a section of keys, found the text"),
    "no tasks": ("pipeline: {tasks: {}}\nbase_model: x\n", 1, "pipeline.tasks is empty; write tasks:"),
    "tasks is a list": (
        "pipeline:\n  tasks: [a]\nbase_model: x\n",
        2,
        "pipeline.tasks: expected keys, found a list; write `name:`",
    ),
    "task is text": (
        "pipeline:\n  tasks:\n    a: b\nbase_model: x\n",
        3,
        "expected a section of keys, found the text 'b'",
    ),
    "task name": (
        with_line("sentiment:", "the task:"),
        3,
        "pipeline.tasks.the task: the name of a task may only contain letters, digits,",
    ),
    "task name with newline": (
        with_line("    sentiment:", '    "a\\n":'),
        3,
        "pipeline.tasks.a\\n: the name of a task may only contain letters, digits, _",
    ),
    "misspelt section": (with_line("  tasks:", "  task:"), 2, "pipeline.task: unknown key; did you mean tasks?"),
    "misspelt key": (with_line("prompt:", "promt:"), 5, "sentiment.promt: unknown key; did you mean prompt?"),
    "unknown key": (task("zzz: 1"), 8, "unknown key; known keys: data, prompt, completion, metric, normalize,"),
    "key of the trainer": (task("learning_rate: 1"), 8, "unknown key; it belongs in trainer"),
    "task key too far up": (pipeline("prompt: x"), 2, "it belongs in pipeline.tasks.NAME"),
    "missing data": (with_line("      data: data/sentiment.jsonl\n", ""), 3, "data is missing, as in data: data/"),
    "missing prompt": (with_line("prompt:", "system:"), 3, "prompt is missing, as in prompt:"),
    "missing completion": (
        with_line('      completion: "{label}"\n', ""),
        3,
        "completion is missing, as in completion:",
    ),
    "empty data": (data('""'), 4, "sentiment.data is empty"),
    "data is a list": (data("[a, b]"), 4, "data: expected a file, as in data/reviews.jsonl, or {train"),
    "data is a number": (data("7"), 4, "data: expected a file, as in data/reviews.jsonl"),
    "data without train": (data("{test: a.csv}"), 4, "data.train is missing, as in train:"),
    "gate of no task": (
        pipeline("report: {gates: {sentimant: {min_gain: 1}}}"),
        2,
        "pipeline.report.gates.sentimant: there is no such task; did you mean sentiment?",
    ),
    "gate without a gain": (
        pipeline("report: {gates: {sentiment: {by: point_estimate}}}"),
        2,
        "a task requires min_gain, as in min_gain: 5; a retention eval max_drop, as in",
    ),
    "gate of a misspelt kind": (
        pipeline("report: {gates: {sentiment: {min_gain: 1, by: cii}}}"),
        2,
        "expected one of ci or point_estimate, found the text 'cii'; did you mean ci?",
    ),
    "unknown key of a gate": (
        pipeline("report: {gates: {sentiment: {min_gian: 1}}}"),
        2,
        "min_gian: unknown key; did you mean min_gain?",
    ),
    "misspelt split of data": (data("{train: a, valid: b}"), 4, "data.valid: unknown key; did you mean validation?"),
    "empty prompt": (completion('""'), 6, "sentiment.completion is empty"),
    "prompt not in quotes": (completion("{label}"), 6, 'put a text that starts with { in quotes: "{label}"'),
    "brace not closed": (prompt("{review"), 5, "'{review' is not closed; write"),
    "brace not opened": (prompt("review}"), 5, "a } has no { before it; write"),
    "no column in braces": (prompt("{}"), 5, "'{}' is not a column"),
    "format in braces": (prompt("{review:>10}"), 5, "'{review:>10}' is not a column"),
    "conversion in braces": (prompt("{review!r}"), 5, "'{review!r}' is not a column"),
    "JSON in a template": (prompt("{'a': 1} {review}"), 5, '"{{" and "}}" for braces'),
    "completion without a column": (
        with_line("{label}", "positive"),
        6,
        'it contains no column, so every completion would be the same; write "{label}"',
    ),
    "completion with braces only": (
        with_line("{label}", "{{label}}"),
        6,
        'it contains no column, so every completion would be the same; write "{label}"',
    ),
    "metric": (with_line("metric: exact_match", "metric: label"), 7, "it was renamed: write exact_match"),
    "far metric": (
        with_line("metric: exact_match", "metric: xyzzy"),
        7,
        "write one of chrf, exact_match, multilabel_f1, nll, rouge",
    ),
    "metric as a path": (with_line("metric: exact_match", "metric: a/b.py:f"), 7, "unknown metric 'a/b.py:f'"),
    "metric is a boolean": (with_line("metric: exact_match", "metric: off"), 7, "found off, which YAML reads as false"),
    "system is a boolean": (task("system: no"), 8, 'found no, which YAML reads as false; put it in quotes: "no"'),
    "weight zero": (task("weight: 0"), 8, "weight must be greater than 0, found 0"),
    "weight text": (task("weight: heavy"), 8, "weight: expected a number, found the text 'heavy'"),
    "weight quoted": (task('weight: "2"'), 8, "expected a number, found the text '2'; remove the quotes"),
    "tokens zero": (task("max_new_tokens: 0"), 8, "max_new_tokens must be at least 1, found 0"),
    "tokens half": (task("max_new_tokens: 1.5"), 8, "max_new_tokens: expected a whole number, found 1.5"),
    "mix": (pipeline("mix: equl"), 2, "found the text 'equl'; did you mean equal?"),
    "mix is far": (pipeline("mix: 3"), 2, "expected one of proportional, equal or temperature, found 3"),
    "temperature for nothing": (pipeline("temperature: 2"), 2, "has no effect unless mix is temperature"),
    "temperature zero": (pipeline("mix: temperature\n  temperature: 0"), 3, "must be greater than 0"),
    "seed negative": (pipeline("seed: -1"), 2, "seed must be at least 0, found -1"),
    "seed huge": (pipeline("seed: 4294967296"), 2, "seed must be less than"),
    "seed is true": (pipeline("seed: true"), 2, "seed: expected a whole number, found true"),
    "chat template": (pipeline("chat_template: chatml"), 2, "expected true or false, found the text 'chatml'"),
    "split too large": (
        pipeline("split: {test: 0.5, validation: 0.5}"),
        2,
        "validation and test must add up to less than 1, so that training rows remain",
    ),
    "split over 1": (pipeline("split: {test: 20}"), 2, "split.test must be less than 1, found 20"),
    "split misspelt": (pipeline("split: {tset: 0.1}"), 2, "split.tset: unknown key; did you mean test?"),
    "report misspelt": (pipeline("report: {sample_prompt: a}"), 2, "did you mean sample_prompts?"),
    # the Ludwig part
    "no base model": (with_line("base_model: smollm2-135m-instruct\n", ""), 1, "base_model is missing: write"),
    "empty base model": (base_model('" "'), 8, "base_model is empty"),
    "null base model": (
        with_line(" smollm2-135m-instruct", ""),
        8,
        "base_model: expected a model: smollm2-135m-instruct, a hub id",
    ),
    "number as base model": (base_model("135"), 8, "a hub id (owner/name) or a folder; found 135"),
    "unknown section": (section("trianer: {}\n"), 15, "trianer: unknown key; did you mean trainer?"),
    "section of pipeline": (section("tasks: {}\n"), 15, "tasks: unknown key; it belongs in pipeline"),
    "key at the top": (section("epochs: 3\n"), 15, "epochs: unknown key; it belongs in trainer"),
    "misspelt rate": (with_line("learning_rate", "lerning_rate"), 12, "unknown key; did you mean learning_rate?"),
    "deep misspelt": (trainer("learning_rate_scheduler: {dcay: linear}"), 11, "did you mean decay?"),
    "key of the scheduler": (trainer("warmup_fraction: 0.1"), 11, "it belongs in trainer.learning_rate_scheduler"),
    "key of the optimizer": (trainer("weight_decay: 0.1"), 11, "it belongs in trainer.optimizer"),
    "section is null": (
        with_line("  epochs: 2\n  learning_rate: 2e-4\n", ""),
        10,
        "trainer is empty; indent its keys below it, or remove the line",
    ),
    "section is text": (
        section("preprocessing: none\n"),
        15,
        "preprocessing: expected a section of keys, found the text 'none'",
    ),
    "rate text": (rate("fast"), 12, "trainer.learning_rate: expected a number, found the text 'fast'"),
    "rate zero": (rate("0"), 12, "trainer.learning_rate must be greater than 0, found 0"),
    "rate negative": (rate("-1e-4"), 12, "must be greater than 0, found -1e-4"),
    "rate above 1": (rate("2"), 12, "trainer.learning_rate must be at most 1, found 2"),
    "rate auto": (rate("auto"), 12, "write a number, such as 0.0002"),
    "rate quoted": (rate('"0.1"'), 12, "expected a number, found the text '0.1'; remove the quotes"),
    "epochs zero": (trainer("epochs: 0"), 11, "trainer.epochs must be at least 1, found 0"),
    "epochs half": (trainer("epochs: 1.5"), 11, "trainer.epochs: expected a whole number, found 1.5"),
    "epochs true": (trainer("epochs: true"), 11, "expected a whole number, found true"),
    "epochs and steps": (
        trainer("epochs: 2\n  train_steps: 9"),
        11,
        "trainer.epochs has no effect with trainer.train_steps; keep one",
    ),
    "early stop": (trainer("early_stop: -2"), 11, "must be at least -1, found -2"),
    "code of strangers": (
        section("trust_remote_code: true\n"),
        15,
        "true is not supported: alfine executes no code from a model folder; remove it",
    ),
    "batch auto alone": (
        trainer("batch_size: auto"),
        11,
        "auto requires effective_batch_size, as in effective_batch_size: 16",
    ),
    "batch of a step": (trainer("effective_batch_size: 16"), 11, "has no effect unless batch_size is auto"),
    "batch a word": (trainer("batch_size: big"), 11, "expected a whole number, found the text 'big'"),
    "batch zero": (trainer("batch_size: 0"), 11, "trainer.batch_size must be at least 1"),
    "accumulation auto": (
        trainer("gradient_accumulation_steps: auto"),
        11,
        "write a number, or remove it for 1",
    ),
    "shuffle text": (
        trainer('should_shuffle: "no"'),
        11,
        "expected true or false, found the text 'no'; remove the quotes",
    ),
    "scaling": (
        trainer("learning_rate_scaling: linear"),
        11,
        "the effective batch size does not depend on the number of workers",
    ),
    "two paces": (
        trainer("steps_per_checkpoint: 5\n  checkpoints_per_epoch: 2"),
        12,
        "trainer.checkpoints_per_epoch and trainer.steps_per_checkpoint are mutually",
    ),
    "regex": (trainer("layers_to_freeze_regex: '('"), 11, "is not a regular expression"),
    "trainer type": (
        trainer("type: none"),
        11,
        "none is not supported: none would train nothing; write finetune, or remove it",
    ),
    "other trainer": (trainer("type: dpo"), 11, "trainer.type: expected finetune, found the text 'dpo'"),
    "optimizer as text": (trainer("optimizer: adamw"), 11, "write optimizer: {type: adamw}"),
    "optimizer type": (trainer("optimizer: {type: AdamW}"), 11, "found the text 'AdamW'; did you mean adamw?"),
    "optimizer without type": (trainer("optimizer: {eps: 1e-8}"), 11, "type is missing: write type: adamw, or sgd"),
    "optimizer key": (
        trainer("optimizer: {type: adamw, momentum: 0.9}"),
        11,
        "adamw has no such key; remove it, or write a type that has it (sgd, sgd_8bit,",
    ),
    "optimizer typo": (trainer("optimizer: {type: adamw, weight_decy: 0}"), 11, "did you mean weight_decay?"),
    "betas": (trainer("optimizer: {type: adamw, betas: [0.9]}"), 11, "optimizer.betas: expected 2 values, found 1"),
    "beta range": (
        trainer("optimizer: {type: adamw, betas: [0.9, 2]}"),
        11,
        "optimizer.betas[1] must be less than 1, found 2",
    ),
    "decay": (trainer("learning_rate_scheduler: {decay: cosin}"), 11, "did you mean cosine?"),
    "decay none": (trainer("learning_rate_scheduler: {decay: none}"), 11, "found the text 'none'; did you mean null?"),
    "decay knob": (
        trainer("learning_rate_scheduler: {decay: cosine, decay_rate: 0.5}"),
        11,
        "is exponential (it is cosine)",
    ),
    "warmup": (
        trainer("learning_rate_scheduler: {warmup_fraction: 10}"),
        11,
        "warmup_fraction must be less than 1, found 10",
    ),
    "warmup of two kinds": (
        scheduler("warmup_fraction: 0.1, warmup_evaluations: 1"),
        11,
        "warmup_fraction and warmup_evaluations both define the warm-up; keep one",
    ),
    "root without warmup": (
        scheduler("decay: inverse_sqrt"),
        11,
        "it requires a warm-up; write warmup_fraction: 0.1",
    ),
    "root with two": (
        scheduler("decay: inverse_sqrt, warmup_fraction: 0.1, inverse_sqrt_warmup_steps: 9"),
        11,
        "both define the warm-up; keep one",
    ),
    "exponential": (
        scheduler("decay: exponential"),
        11,
        "exponential requires decay_steps, the number of steps in which the rate falls",
    ),
    "exponential to nothing": (
        scheduler("decay: exponential, decay_steps: 9, decay_rate: 0"),
        11,
        "decay_rate must be greater than 0, found 0",
    ),
    "exponential growth": (
        scheduler("decay: exponential, decay_steps: 9, decay_rate: 1"),
        11,
        "decay_rate must be less than 1, found 1",
    ),
    "wsd": (
        scheduler("decay: wsd, wsd_decay_fraction: 0.2"),
        11,
        "must add up to 1, found 0.1 + 0.8 + 0.2 = 1.1; write all three",
    ),
    "floor above the rate": (
        scheduler("decay: cosine, eta_min: 0.1"),
        11,
        "must be less than trainer.learning_rate (0.0002), found 0.1",
    ),
    "end above the rate": (
        scheduler("decay: polynomial, polynomial_end_lr: 0.0002"),
        11,
        "must be less than trainer.learning_rate (0.0002), found 0.0002",
    ),
    "power of nothing": (
        scheduler("decay: polynomial, polynomial_power: 0"),
        11,
        "polynomial_power must be greater than 0, found 0",
    ),
    "cycle's own peak": (
        scheduler("decay: one_cycle, max_lr: 0.01"),
        11,
        "the maximum of one_cycle is trainer.learning_rate; set that",
    ),
    "cycle without a rise": (
        scheduler("decay: one_cycle, pct_start: 0"),
        11,
        "pct_start must be greater than 0, found 0",
    ),
    "cycle from above": (
        scheduler("decay: one_cycle, div_factor: 0.5"),
        11,
        "div_factor must be at least 1, found 0.5",
    ),
    "restarts that do not come": (
        scheduler("decay: cosine, t_mult: 2"),
        11,
        "t_mult has no effect without t_0; remove it, or add t_0",
    ),
    "patience without plateau": (
        scheduler("reduce_on_plateau_patience: 2"),
        11,
        "has no effect without reduce_on_plateau",
    ),
    "split without plateau": (
        scheduler("reduce_on_plateau: 0, reduce_eval_split: training"),
        11,
        "has no effect without reduce_on_plateau",
    ),
    "plateau without reduction": (
        scheduler("reduce_on_plateau: 1, reduce_on_plateau_rate: 1"),
        11,
        "reduce_on_plateau_rate must be less than 1, found 1",
    ),
    "warmup twice": (
        trainer("learning_rate_scheduler: {decay: wsd, warmup_fraction: 0.1}"),
        11,
        "unless decay is linear or",
    ),
    "clipping": (
        trainer("gradient_clipping: {clipglobalnorm: 0}"),
        11,
        "clipglobalnorm must be greater than 0, found 0",
    ),
    "clipping twice": (
        trainer("gradient_clipping: {clipnorm: 1}"),
        11,
        "in Ludwig it means the same as clipglobalnorm; write clipglobalnorm",
    ),
    "clipping after clipping": (
        trainer("gradient_clipping: {clipvalue: 1}"),
        11,
        "add clipglobalnorm: null or your own norm",
    ),
    "stop at once": (
        trainer("early_stop: 0"),
        11,
        "write -1 for that, or the number of evaluations to wait",
    ),
    "rate of its own": (
        trainer("optimizer: {type: adafactor, relative_step: true}"),
        11,
        "true is not supported: Adafactor would then set its own learning rate, and",
    ),
    "warmup of its own": (
        trainer("optimizer: {type: adafactor, warmup_init: true}"),
        11,
        "Adafactor warms up only with relative_step",
    ),
    "adapter as text": (adapter("lora"), 9, "write adapter: {type: lora}"),
    "adapter without type": (adapter("{r: 16}"), 9, "adapter.type is missing: write type: lora, or ia3"),
    "adapter type": (
        with_line("type: lora", "type: lorra"),
        9,
        "adapter.type: found the text 'lorra'; did you mean lora?",
    ),
    "key of another adapter": (
        with_line("type: lora", "type: ia3"),
        9,
        "ia3 has no such key; remove it, or write a type that has it (lora, vera,",
    ),
    "rank": (rank("r: 0"), 9, "adapter.r must be at least 1, found 0"),
    "rank misspelt": (rank("rank: 16"), 9, "adapter.rank: unknown key"),
    "modules as text": (
        rank("target_modules: all-linear"),
        9,
        "all-linear is not supported: list the modules, as in [q_proj, k_proj, v_proj,",
    ),
    "modules as numbers": (rank("target_modules: [1]"), 9, "adapter.target_modules[0]: expected text, found 1"),
    "dropout": (rank("dropout: 1"), 9, "adapter.dropout must be less than 1, found 1"),
    "eva": (
        rank("init_lora_weights: eva"),
        9,
        "eva is not supported: the data statistics that EVA requires are not computed;",
    ),
    "loftq": (
        rank("init_lora_weights: loftq"),
        9,
        "loftq is not supported: it replaces the base weights by 4-bit approximations,",
    ),
    "adalora": (
        with_line("type: lora", "type: adalora"),
        9,
        "adalora is not supported: Ludwig does not make the call after every step that",
    ),
    "layers repeated": (
        rank("layer_replication: [[0, 4], [2, 6]]"),
        9,
        "adapter.layer_replication changes the base model, so the tuned model has no",
    ),
    "ia3 at random": (adapter("{type: ia3, init_ia3_weights: false}"), 9, "training would start from random scales"),
    "hra made orthogonal": (
        adapter("{type: hra, apply_GS: true}"),
        9,
        "true is not supported: orthogonalized reflections do not cancel at the start,",
    ),
    "pissa quantized": (
        adapter("{type: lora, init_lora_weights: pissa}\nquantization: {bits: 4}"),
        9,
        "pissa decomposes the base weights, which must not be quantized; write default",
    ),
    "quantization without adapter": (
        adapter("null\nquantization: {bits: 4}"),
        10,
        "quantization requires an adapter of type lora: 4-bit and 8-bit weights cannot",
    ),
    "quantization of another adapter": (
        adapter("{type: ia3}\nquantization: {bits: 4}"),
        10,
        "quantization requires an adapter of type lora: 4-bit and 8-bit weights cannot",
    ),
    "bits": (section("quantization: {bits: 3}\n"), 15, "quantization.bits: expected one of 4, 8, found 3"),
    "knob of 8 bits": (
        section("quantization: {bits: 4, llm_int8_threshold: 6}\n"),
        15,
        "no effect unless bits is 8 (it is 4)",
    ),
    "torchao": (
        section("quantization: {backend: torchao}\n"),
        15,
        "torchao is not supported: it changes the saved weights; write bitsandbytes, or remove it",
    ),
    "noise": (
        section("model_parameters: {neftune_noise_alpha: 5}\n"),
        15,
        "model_parameters.neftune_noise_alpha is not supported: the noise scales with",
    ),
    "length": (section("preprocessing: {global_max_sequence_length: 0}\n"), 15, "must be at least 1, found 0"),
    "backend": (section("backend: dask\n"), 15, "backend: expected a section of keys, found the text 'dask'"),
    "backend type": (
        section("backend: {type: dask}\n"),
        15,
        "backend.type: expected one of local, ray, found the text 'dask'",
    ),
    "backend without type": (section("backend: {trainer: {num_workers: 2}}\n"), 15, "write type: local, or ray"),
    "workers of a local backend": (
        section("backend: {type: local, trainer: {num_workers: 2}}\n"),
        15,
        "local has no such key; remove it, or write type: ray",
    ),
    "no workers": (
        section("backend: {type: ray, trainer: {num_workers: 0}}\n"),
        15,
        "num_workers must be at least 1, found 0",
    ),
    "worker misspelt": (section("backend: {type: ray, trainer: {num_worker: 2}}\n"), 15, "did you mean num_workers?"),
    "shared base without adapter": (
        adapter("null") + "backend: {type: ray, trainer: {fsdp: frozen}}\n",
        15,
        "backend.trainer.fsdp requires an adapter: it shards only the frozen weights",
    ),
    "shared base quantized": (
        section("quantization: {bits: 4}\nbackend: {type: ray, trainer: {fsdp: frozen}}\n"),
        16,
        "backend.trainer.fsdp requires no quantization",
    ),
    "si on a shared base": (
        pipeline("forgetting: si") + "backend: {type: ray, trainer: {fsdp: frozen}}\n",
        2,
        "not supported with backend.trainer.fsdp",
    ),
    "resource unknown": (section("backend: {type: ray, trainer: {resources_per_worker: {TPU: 1}}}\n"), 15, "TPU"),
    "strategy misspelt": (pipeline("forgetting: ecw"), 2, "unknown strategy 'ecw'; did you mean ewc?"),
    "strategy unknown": (
        pipeline("forgetting: xyzzy+ewc"),
        2,
        "unknown strategy 'xyzzy'; write auto, none, or one or more of distill, ewc",
    ),
    "strategy a number": (
        pipeline("forgetting: 3"),
        2,
        "pipeline.forgetting: expected a strategy, as in forgetting: ewc",
    ),
    "knob misspelt": (pipeline("forgetting: {strategy: ewc, ewc: {wieght: 1}}"), 2, "did you mean weight?"),
    "knob unused": (
        pipeline("forgetting: {strategy: ewc, si: {weight: 1}}"),
        2,
        "si has settings, but strategy is ewc; take si out, or write strategy: ewc+si to use it",
    ),
    "knob negative": (
        pipeline("forgetting: {strategy: ewc, ewc: {weight: -1}}"),
        2,
        "ewc.weight must be at least 0, found -1",
    ),
    "share of all": (
        pipeline("forgetting: {strategy: replay, replay: {fraction: 1}}"),
        2,
        "replay.fraction must be less than 1, found 1",
    ),
    "fisher": (
        pipeline("forgetting: {strategy: ewc, ewc: {fisher: full}}"),
        2,
        "expected one of factored or kronecker",
    ),
    "full with adapter": (pipeline("forgetting: full"), 2, "full trains every weight; take the section adapter out"),
    "multitask of one": (pipeline("forgetting: multitask"), 2, "multitask needs two tasks or more"),
    "peft without": (
        with_line("adapter: {type: lora, r: 16}", "").replace("  tasks:", "  forgetting: peft\n  tasks:"),
        2,
        "peft needs the section adapter",
    ),
    "ewc on ia3": (
        adapter("{type: ia3}").replace("  tasks:", "  forgetting: ewc\n  tasks:"),
        2,
        "ewc needs adapter: {type: lora}, or no adapter",
    ),
    "ewc with dora": (
        adapter("{type: lora, use_dora: true}").replace("  tasks:", "  forgetting: ewc\n  tasks:"),
        2,
        "ewc does not support DoRA",
    ),
    "ewc with pissa": (
        adapter("{type: lora, init_lora_weights: pissa}").replace("  tasks:", "  forgetting: ewc\n  tasks:"),
        2,
        "ewc penalizes the adapter's ΔW, which is not 0 at the start",
    ),
    "interpolate with biases": (
        adapter("{type: lora, bias_type: all}").replace("  tasks:", "  forgetting: interpolate\n  tasks:"),
        2,
        "interpolate does not cover the biases that bias_type: all trains",
    ),
    "si quantized": (
        section("quantization: {bits: 4}\n").replace("  tasks:", "  forgetting: si\n  tasks:"),
        2,
        "si trains the base weights temporarily, which is not supported with quantization",
    ),
    "guards word": (pipeline("forgetting: {evals: all}"), 2, "evals: expected bundled, none or evals of your own"),
    "guard kind": (
        pipeline("forgetting: {evals: {g: {kind: story, data: a.jsonl}}}"),
        2,
        "expected one of multiple_choice, text_nll, kl or task",
    ),
    "guard without data": (pipeline("forgetting: {evals: {g: {kind: text_nll}}}"), 2, "evals.g.data is missing"),
    "guard's templates": (
        pipeline("forgetting: {evals: {g: {kind: task, data: a.jsonl}}}"),
        2,
        "kind: task needs prompt and completion as well",
    ),
    "budget unwatched": (
        pipeline("forgetting: {max_regression: {text: 0.1}}"),
        2,
        "max_regression needs eval_steps, the steps between two measurements, as in eval_steps: 20",
    ),
    "budget spent at once": (
        pipeline("forgetting: {eval_steps: 5, max_regression: {text: 0}}"),
        2,
        "must be greater than 0, found 0",
    ),
    "budget of nothing": (
        pipeline("forgetting: {eval_steps: 5, max_regression: {txt: 1}}"),
        2,
        "max_regression.txt: there is no such retention eval; did you mean text?",
    ),
    "gate on no guard": (
        pipeline("report: {gates: {txt: {max_drop: 1}}}"),
        2,
        "there is no such retention eval; did you mean text?",
    ),
    "gate of two": (
        pipeline("report: {gates: {text: {max_drop: 1, min_gain: 1}}}"),
        2,
        "min_gain is for a task, max_drop for a retention eval; remove one of them",
    ),
    "gate of nothing": (
        pipeline("report: {gates: {text: {by: point_estimate}}}"),
        2,
        "a task requires min_gain, as in min_gain: 5; a retention eval max_drop, as in",
    ),
    # what would be taken for something else, or change nothing
    "an adapter with nothing after it": (
        adapter(""),
        9,
        "adapter has no value; write one, or null for none",
    ),
    "an adapter whose keys are not indented": (
        adapter("\ntype: lora"),
        9,
        "adapter has no value; write one, or null for none",
    ),
    "a setting with nothing after it": (
        generation("top_k:"),
        14,
        "generation.top_k has no value; write one, or null for none",
    ),
    "a system turn with nothing after it": (
        task("system:"),
        8,
        "pipeline.tasks.sentiment.system has no value; write one, or null for none",
    ),
    "adapter none": (
        adapter("none"),
        9,
        "expected a section of keys, found the text 'none'; write null for none; write",
    ),
    "adapter off": (adapter("off"), 9, "write null for none"),
    "adapter qlora": (adapter("qlora"), 9, "write adapter: {type: lora} and quantization: {bits: 4}"),
    "rate quoted with an exponent": (rate('"1e-4"'), 12, "expected a number, found the text '1e-4'; remove the quotes"),
    "temperature without sampling": (
        generation("temperature: 0.7"),
        14,
        "temperature has no effect unless do_sample is true (it is false)",
    ),
    "top_p without sampling": (
        generation("do_sample: false\n  top_p: 0.9"),
        15,
        "top_p has no effect unless do_sample is true (it is false)",
    ),
    "length penalty of one beam": (
        generation("length_penalty: 2"),
        14,
        "length_penalty has no effect unless num_beams is 2 or more (it is 1)",
    ),
    "shortest text": (
        generation("min_length: 5"),
        14,
        "it includes the tokens of the prompt; write min_new_tokens",
    ),
    "a clock": (
        generation("max_time: 3"),
        14,
        "completions would depend on the speed of the machine",
    ),
    "beams without a cache": (
        generation("num_beams: 3\n  use_cache: false"),
        15,
        "false is not supported with num_beams; remove it",
    ),
    "no bad words": (generation("bad_words_ids: []"), 14, "generation.bad_words_ids is empty"),
    "a token below 0": (
        generation("suppress_tokens: [-1]"),
        14,
        "generation.suppress_tokens[0] must be at least 0, found -1",
    ),
    "no end": (generation("forced_eos_token_id: []"), 14, "forced_eos_token_id is empty"),
    "typical_p of 0": (generation("do_sample: true\n  typical_p: 0"), 15, "typical_p must be greater than 0"),
    "torchao's mode": (
        section("quantization: {bits: 4, mode: float8}\n"),
        15,
        "quantization.mode would have no effect: it is an option of torchao, which",
    ),
    "compute type of 8 bits": (
        section("quantization: {bits: 8, bnb_4bit_compute_dtype: float32}\n"),
        15,
        "no effect unless bits is 4 (it is 8)",
    ),
    "shares of files": (
        pipeline("split: {test: 0.2}").replace("data: data/sentiment.jsonl", "data: {train: a.csv, test: b.csv}"),
        2,
        "pipeline.split has no effect if every task has one file per split; remove it",
    ),
    "decay of no earlier job": (
        pipeline("forgetting: {strategy: ewc, ewc: {gamma: 0.5}}"),
        2,
        "ewc.gamma has no effect without pipeline.continue_from",
    ),
    "fisher of every weight": (
        adapter("null").replace("  tasks:", "  forgetting: {strategy: ewc, ewc: {fisher: kronecker}}\n  tasks:"),
        2,
        "ewc.fisher has no effect without an adapter",
    ),
    "budget beside scale": (
        pipeline("forgetting: {strategy: interpolate, interpolate: {scale: 0.5, max_loss_increase: 1}}"),
        2,
        "max_loss_increase has no effect beside scale",
    ),
    "a teacher of general rows": (
        pipeline("forgetting: {strategy: distill, distill: {teacher: a/b}}"),
        2,
        "write apply_to: task",
    ),
    "top_k of no teacher": (
        pipeline("forgetting: {strategy: distill, distill: {top_k: 8}}"),
        2,
        "top_k has no effect without a teacher",
    ),
    "share of no general rows": (
        pipeline("forgetting: {strategy: distill, distill: {apply_to: task, fraction: 0.3}}"),
        2,
        "fraction has no effect with apply_to: task",
    ),
    "share beside replay": (
        pipeline("forgetting: {strategy: replay+distill, distill: {fraction: 0.3}}"),
        2,
        "distill.fraction has no effect beside replay",
    ),
    "every without guards": (
        pipeline("forgetting: {evals: none, eval_steps: 5}"),
        2,
        "eval_steps has no effect with evals: none",
    ),
    "guards of none": (
        pipeline("forgetting: {evals: {}}"),
        2,
        "evals is empty; write evals: none, or evals: bundled",
    ),
    "metric of a text": (
        pipeline("forgetting: {evals: {g: {kind: text_nll, data: a.jsonl, metric: exact_match}}}"),
        2,
        "metric goes with kind: task only",
    ),
    "system of a text": (
        pipeline("forgetting: {evals: {g: {kind: text_nll, data: a.jsonl, system: x}}}"),
        2,
        "system goes with kind: task only",
    ),
    # keys of other tools
    "loss": (
        section("loss: {_component_: x}\n"),
        15,
        "unknown key; the loss is computed on the completion only; remove it",
    ),
    "warm-up in steps": (
        trainer("warmup: 10"),
        11,
        "write trainer: {learning_rate_scheduler: {decay: linear, warmup_fraction: 0.05}}",
    ),
    "eval": (
        section("eval: {interval: 5}\n"),
        15,
        "unknown key; validation runs every trainer.steps_per_checkpoint steps or",
    ),
    "rows of a micro-batch": (
        section("micro_batch_size: 4\n"),
        15,
        "did you mean batch_size, which belongs in trainer?",
    ),
    "four bits": (section("load_in_4bit: true\n"), 15, "load_in_4bit: unknown key; write quantization: {bits: 4}"),
    "model type": (section("model_type: ecd\n"), 15, "model_type: expected llm, found the text 'ecd'"),
    "tokens null": (generation("max_new_tokens: null"), 14, "expected a whole number, found null"),
    "tokens misspelt": (generation("max_new_token: 8"), 14, "did you mean max_new_tokens?"),
    "top_p": (generation("top_p: 1.5"), 14, "generation.top_p must be at most 1, found 1.5"),
    "cold sampling": (
        generation("do_sample: true\n  temperature: 0"),
        15,
        "generation.temperature must be greater than 0 for sampling; otherwise write",
    ),
    "early stopping": (generation("early_stopping: maybe"), 14, "expected one of true, false, never, null"),
    "control character in a key": (section('"a\\e[31m": 1\n'), 15, "a\\x1b[31m: unknown key"),
}
