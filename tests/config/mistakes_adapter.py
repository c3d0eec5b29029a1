"""Errors in `adapter`, `quantization`, `backend` and `generation`, and keys of other tools. See `mistakes.py`."""

from tests.bad_configs import adapter, generation, pipeline, rank, rate, section, task, trainer, with_line

MISTAKES: dict[str, tuple[str | bytes, int | None, str]] = {
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
    "layer_replication": (
        rank("layer_replication: [[0, 4], [2, 6]]"),
        9,
        "adapter.layer_replication changes the base model, so the tuned model has no",
    ),
    "random ia3 weights": (
        adapter("{type: ia3, init_ia3_weights: false}"),
        9,
        "training would start from random scales",
    ),
    "orthogonal hra": (
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
    "key of 8 bits": (
        section("quantization: {bits: 4, llm_int8_threshold: 6}\n"),
        15,
        "no effect unless bits is 8 (it is 4)",
    ),
    "torchao": (
        section("quantization: {backend: torchao}\n"),
        15,
        "torchao is not supported: it changes the saved weights; write bitsandbytes, or remove it",
    ),
    "neftune": (
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
    "fsdp without adapter": (
        adapter("null") + "backend: {type: ray, trainer: {fsdp: frozen}}\n",
        15,
        "backend.trainer.fsdp requires an adapter: it shards only the frozen weights",
    ),
    "fsdp with quantization": (
        section("quantization: {bits: 4}\nbackend: {type: ray, trainer: {fsdp: frozen}}\n"),
        16,
        "backend.trainer.fsdp requires no quantization",
    ),
    "si with fsdp": (
        pipeline("forgetting: si") + "backend: {type: ray, trainer: {fsdp: frozen}}\n",
        2,
        "not supported with backend.trainer.fsdp",
    ),
    "resource unknown": (section("backend: {type: ray, trainer: {resources_per_worker: {TPU: 1}}}\n"), 15, "TPU"),
    "adapter without a value": (
        adapter(""),
        9,
        "adapter has no value; write one, or null for none",
    ),
    "an adapter whose keys are not indented": (
        adapter("\ntype: lora"),
        9,
        "adapter has no value; write one, or null for none",
    ),
    "key without a value": (
        generation("top_k:"),
        14,
        "generation.top_k has no value; write one, or null for none",
    ),
    "system without a value": (
        task("system:"),
        8,
        "pipeline.tasks.sentiment.system has no value; write one, or null for none",
    ),
    "adapter none": (
        adapter("none"),
        9,
        "expected a section of keys, found the text 'none'; write null for none, or adapter",
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
    "minimum length": (
        generation("min_length: 5"),
        14,
        "it includes the tokens of the prompt; write min_new_tokens",
    ),
    "time limit": (
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
    "no forced end": (generation("forced_eos_token_id: []"), 14, "forced_eos_token_id is empty"),
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
    "split fractions with files for each split": (
        pipeline("split: {test: 0.2}").replace(
            "data: data/sentiment.jsonl", "data: {train: a.csv, validation: c.csv, test: b.csv}"
        ),
        2,
        "pipeline.split has no effect if every task names files for each split; remove it",
    ),
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
    "micro_batch_size": (
        section("micro_batch_size: 4\n"),
        15,
        "did you mean batch_size, which belongs in trainer?",
    ),
    "load_in_4bit": (section("load_in_4bit: true\n"), 15, "load_in_4bit: unknown key; write quantization: {bits: 4}"),
    "model type": (section("model_type: ecd\n"), 15, "model_type: expected llm, found the text 'ecd'"),
    "tokens null": (generation("max_new_tokens: null"), 14, "expected a whole number, found null"),
    "tokens misspelt": (generation("max_new_token: 8"), 14, "did you mean max_new_tokens?"),
    "top_p": (generation("top_p: 1.5"), 14, "generation.top_p must be at most 1, found 1.5"),
    "sampling at temperature 0": (
        generation("do_sample: true\n  temperature: 0"),
        15,
        "generation.temperature must be greater than 0 for sampling; otherwise write",
    ),
    "early stopping": (generation("early_stopping: maybe"), 14, "expected one of true, false, never, null"),
    "control character in a key": (section('"a\\e[31m": 1\n'), 15, "a\\x1b[31m: unknown key"),
}
