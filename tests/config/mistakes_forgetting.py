"""Errors in the section `pipeline.forgetting`. See `mistakes.py`."""

from tests.bad_configs import adapter, pipeline, section, with_line

MISTAKES: dict[str, tuple[str | bytes, int | None, str]] = {
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
    "strategy setting misspelt": (pipeline("forgetting: {strategy: ewc, ewc: {wieght: 1}}"), 2, "did you mean weight?"),
    "settings of an unused strategy": (
        pipeline("forgetting: {strategy: ewc, si: {weight: 1}}"),
        2,
        "si has settings, but strategy is ewc; remove si, or write strategy: ewc+si",
    ),
    "negative weight": (
        pipeline("forgetting: {strategy: ewc, ewc: {weight: -1}}"),
        2,
        "ewc.weight must be at least 0, found -1",
    ),
    "fraction of 1": (
        pipeline("forgetting: {strategy: replay, replay: {fraction: 1}}"),
        2,
        "replay.fraction must be less than 1, found 1",
    ),
    "fisher": (
        pipeline("forgetting: {strategy: ewc, ewc: {fisher: full}}"),
        2,
        "expected one of factored or kronecker",
    ),
    "full with adapter": (pipeline("forgetting: full"), 2, "full trains every weight; remove the section adapter"),
    "multitask with one task": (pipeline("forgetting: multitask"), 2, "multitask requires at least two tasks"),
    "peft without adapter": (
        with_line("adapter: {type: lora, r: 16}", "").replace("  tasks:", "  forgetting: peft\n  tasks:"),
        2,
        "peft requires the section adapter",
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
    "evals misspelt": (pipeline("forgetting: {evals: all}"), 2, "evals: expected bundled, none or evals of your own"),
    "unknown kind of eval": (
        pipeline("forgetting: {evals: {g: {kind: story, data: a.jsonl}}}"),
        2,
        "expected one of multiple_choice, text_nll, kl or task",
    ),
    "eval without data": (pipeline("forgetting: {evals: {g: {kind: text_nll}}}"), 2, "evals.g.data is missing"),
    "task eval without templates": (
        pipeline("forgetting: {evals: {g: {kind: task, data: a.jsonl}}}"),
        2,
        "evals.g.completion is missing, as in completion: ",
    ),
    "max_regression without eval_steps": (
        pipeline("forgetting: {max_regression: {text: 0.1}}"),
        2,
        "max_regression requires eval_steps, the number of steps between evals, as in eval_steps: 20",
    ),
    "max_regression of 0": (
        pipeline("forgetting: {eval_steps: 5, max_regression: {text: 0}}"),
        2,
        "must be greater than 0, found 0",
    ),
    "max_regression of an unknown eval": (
        pipeline("forgetting: {eval_steps: 5, max_regression: {txt: 1}}"),
        2,
        "max_regression.txt: there is no such retention eval; did you mean text?",
    ),
    "gate on an unknown eval": (
        pipeline("report: {gates: {txt: {max_drop: 1}}}"),
        2,
        "there is no such retention eval; did you mean text?",
    ),
    "gate with two conditions": (
        pipeline("report: {gates: {text: {max_drop: 1, min_gain: 1}}}"),
        2,
        "min_gain is for a task, max_drop for a retention eval; remove one of them",
    ),
    "gate without a condition": (
        pipeline("report: {gates: {text: {by: point_estimate}}}"),
        2,
        "a task requires min_gain, as in min_gain: 5; a retention eval max_drop, as in",
    ),
    "gamma without an earlier run": (
        pipeline("forgetting: {strategy: ewc, ewc: {gamma: 0.5}}"),
        2,
        "ewc.gamma has no effect without pipeline.continue_from",
    ),
    "penalty without a metric": (
        adapter("null")
        .replace("  tasks:", "  forgetting: l2sp\n  tasks:")
        .replace("epochs: 2", "optimizer: {type: lion}"),
        2,
        "l2sp takes a step in the metric of the optimizer, and lion does not scale each gradient by a number of its own",
    ),
    "kronecker without adapter": (
        adapter("null").replace("  tasks:", "  forgetting: {strategy: ewc, ewc: {fisher: kronecker}}\n  tasks:"),
        2,
        "ewc.fisher has no effect without an adapter",
    ),
    "max_loss_increase with scale": (
        pipeline("forgetting: {strategy: interpolate, interpolate: {scale: 0.5, max_loss_increase: 1}}"),
        2,
        "max_loss_increase has no effect beside scale",
    ),
    "teacher for general rows": (
        pipeline("forgetting: {strategy: distill, distill: {teacher: a/b}}"),
        2,
        "write apply_to: task",
    ),
    "top_k without a teacher": (
        pipeline("forgetting: {strategy: distill, distill: {top_k: 8}}"),
        2,
        "top_k has no effect without a teacher",
    ),
    "fraction without general rows": (
        pipeline("forgetting: {strategy: distill, distill: {apply_to: task, fraction: 0.3}}"),
        2,
        "fraction has no effect with apply_to: task",
    ),
    "fraction of distill with replay": (
        pipeline("forgetting: {strategy: replay+distill, distill: {fraction: 0.3}}"),
        2,
        "distill.fraction has no effect beside replay",
    ),
    "eval_steps without evals": (
        pipeline("forgetting: {evals: none, eval_steps: 5}"),
        2,
        "eval_steps has no effect with evals: none",
    ),
    "empty evals": (
        pipeline("forgetting: {evals: {}}"),
        2,
        "evals is empty; write evals: none, or evals: bundled",
    ),
    "metric of a text_nll eval": (
        pipeline("forgetting: {evals: {g: {kind: text_nll, data: a.jsonl, metric: exact_match}}}"),
        2,
        "metric is only valid with kind: task",
    ),
    "system prompt of a text_nll eval": (
        pipeline("forgetting: {evals: {g: {kind: text_nll, data: a.jsonl, system: x}}}"),
        2,
        "system is only valid with kind: task",
    ),
}
