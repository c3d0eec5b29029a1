"""Behavior of Ludwig that alfine works around. If a test fails, upstream has fixed it and the workaround can go."""

import json
import warnings

import pytest
import torch

from tests.tiny import make_model
from tests.tiny_tokenizers import make_tokenizer

pytestmark = pytest.mark.ludwig


def config(base, **trainer):
    return {
        "model_type": "llm",
        "base_model": str(base),
        "input_features": [{"name": "prompt", "type": "text"}],
        "output_features": [{"name": "completion", "type": "text"}],
        "trainer": {"type": "finetune", **trainer},
    }


def test_misspelled_keys_are_dropped(tmp_path):
    from ludwig.schema.model_types.base import ModelConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = ModelConfig.from_dict(config(make_model(tmp_path / "m"), lerning_rate=1, packing=True))
    assert not hasattr(job.trainer, "lerning_rate")


def test_nothing_trains_by_default(tmp_path):
    from ludwig.schema.model_types.base import ModelConfig

    without = config(make_model(tmp_path / "m"))
    del without["trainer"]
    job = ModelConfig.from_dict(without)
    assert job.trainer.type == "none"
    assert job.generation.do_sample is True


def test_a_prompt_is_truncated_to_the_part_after_its_last_pad_token():
    from ludwig.utils.llm_utils import remove_left_padding

    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.bos_token = "<|im_start|>"
    text = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor(tokenizer(text)["input_ids"])
    decoded = tokenizer.decode(remove_left_padding(ids, tokenizer)[0])
    assert "Is it?" not in decoded


def test_padding_has_id_0_for_any_pad_token():
    from ludwig.utils.llm_utils import add_left_padding, create_attention_mask

    tokenizer = make_tokenizer("adds_bos")
    padded = add_left_padding(torch.tensor([7, 8]), 4)
    assert tokenizer.pad_token_id != 0
    assert create_attention_mask(padded, tokenizer).tolist() == [1, 1, 1, 1]


def test_truncation_removes_the_end_of_a_row():
    from ludwig.utils.llm_utils import generate_merged_ids

    tokenizer = make_tokenizer("no_template")
    tokenizer.bos_token = "<bos>"
    prompt, answer = torch.tensor([[40, 41, 42, 43]]), torch.tensor([[50, 51]])
    merged, _ = generate_merged_ids(prompt, answer, tokenizer, max_sequence_length=5)
    assert tokenizer.eos_token_id not in merged[0].tolist()


def test_the_completion_starts_with_a_second_bos():
    from ludwig.utils.llm_utils import generate_merged_ids

    tokenizer = make_tokenizer("adds_bos")
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in ("tea:", "yes")]
    merged, _ = generate_merged_ids(*ids, tokenizer)
    assert merged[0].tolist().count(tokenizer.bos_token_id) == 2


def test_the_saved_config_of_a_fine_tuned_model_is_rejected(tmp_path):
    from ludwig.config_validation.validation import check_schema
    from ludwig.error import ConfigValidationError
    from ludwig.schema.model_types.base import ModelConfig

    saved = ModelConfig.from_dict(config(make_model(tmp_path / "m"))).to_dict()
    assert saved["adapters"] is None
    with pytest.raises(ConfigValidationError):
        check_schema(json.loads(json.dumps(saved)))


def test_there_is_no_fine_tuning_trainer_on_ray():
    from ludwig.trainers.registry import get_llm_ray_trainers_registry

    assert "finetune" not in get_llm_ray_trainers_registry()


def test_a_resume_restarts_the_schedule():
    """Ludwig builds the schedule after it has loaded the checkpoint, so the first step has the full rate."""
    import inspect

    from ludwig.trainers.trainer import Trainer

    source = inspect.getsource(Trainer.train)
    assert source.index("_create_or_resume_progress_tracker(") < source.index("self.scheduler = LRScheduler(")


def test_ctrl_c_ends_the_training_as_if_it_were_finished():
    from ludwig.trainers.trainer import Trainer

    class Interrupted:
        received_sigint = False
        total_steps = 100

    Trainer.set_steps_to_1_or_quit(Interrupted, 2, None)
    assert Interrupted.total_steps == 1


def test_generation_settings_of_ludwig_cannot_be_saved(tmp_path):
    """The reason for `FineTunedLLM.save`: Ludwig assigns its generation config to the model before saving it."""
    from ludwig.schema.llms.generation import LLMGenerationConfig
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m"))
    settings = LLMGenerationConfig.model_validate({"do_sample": False}).to_dict()
    model.generation_config = GenerationConfig(**settings)
    with pytest.raises(ValueError, match="Fix these issues to save"):
        model.save_pretrained(tmp_path / "saved")


def test_ludwig_joins_any_ray_cluster_on_the_machine(monkeypatch):
    """The reason for the explicit backend in `ludwig_training`."""
    import ludwig.backend

    joined = []
    monkeypatch.setattr(ludwig.backend, "_has_ray", lambda: True)
    monkeypatch.setitem(ludwig.backend.backend_registry, ludwig.backend.RAY, lambda **_: joined.append("ray"))
    ludwig.backend.create_backend(None)
    assert joined == ["ray"]


# --- learning-rate schedules: the reason for pipelines/training/lr_scheduler.py ---


def ludwig_scheduler(total=20, per_checkpoint=5, **settings):
    """Returns Ludwig's scheduler, created as its trainer does (first with 0 steps), and its optimizer."""
    from ludwig.modules.lr_scheduler import LRScheduler
    from ludwig.schema.lr_scheduler import LRSchedulerConfig

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    settings = LRSchedulerConfig.model_validate(settings)
    LRScheduler(settings, optimizer, 0, 0)
    return LRScheduler(settings, optimizer, per_checkpoint, total), optimizer


def ludwig_rates(total=20, **settings):
    scheduler, optimizer = ludwig_scheduler(total, **settings)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_peak_of_one_cycle_is_the_rate_that_the_first_scheduler_has_set():
    assert max(ludwig_rates(decay="one_cycle")) == pytest.approx(4e-6)


def test_cosine_restarts_at_every_evaluation():
    rates = ludwig_rates(decay="cosine")
    assert [step for step, rate in enumerate(rates) if rate == 1.0] == [0, 5, 10, 15]


def test_exponential_starts_at_the_decay_rate():
    assert ludwig_rates(decay="exponential", decay_rate=0.5, decay_steps=10)[0] == 0.5


def test_the_peak_of_inverse_sqrt_is_a_63rd_of_the_rate():
    assert max(ludwig_rates(decay="inverse_sqrt")) == pytest.approx(4000**-0.5)


def test_polynomial_subtracts_the_warmup_twice():
    assert max(ludwig_rates(decay="polynomial", warmup_fraction=0.25)) > 1.3


def test_polynomial_end_lr_is_a_fraction_of_the_rate():
    from ludwig.modules.lr_scheduler import polynomial_decay
    from ludwig.schema.lr_scheduler import LRSchedulerConfig

    assert polynomial_decay(10, 10, 0, LRSchedulerConfig.model_validate({"polynomial_end_lr": 0.1})) == 0.1


def test_wsd_ignores_its_decay_fraction():
    assert ludwig_rates(decay="wsd", wsd_decay_fraction=0.1) == ludwig_rates(decay="wsd", wsd_decay_fraction=0.9)


def test_a_second_reduction_on_a_plateau_counts_three_times():
    scheduler, optimizer = ludwig_scheduler(
        decay=None, reduce_on_plateau=2, reduce_on_plateau_rate=0.5, reduce_on_plateau_patience=0
    )

    class Progress:
        steps = last_learning_rate_reduction_steps = num_reductions_learning_rate = 0
        train_metrics = {"completion": {"loss": [(0, 0, 1.0)]}}

    for _ in range(3):
        scheduler.step()
        scheduler.eval_step(Progress, "completion")
    assert optimizer.param_groups[0]["lr"] == 0.5**3


# --- other settings of the trainer ---


def test_null_does_not_switch_clipping_off():
    from ludwig.modules.optimization_modules import create_clipper

    assert create_clipper(None).clipglobalnorm == 0.5


def test_clipnorm_is_clipglobalnorm():
    import inspect

    from ludwig.trainers.trainer import Trainer

    source = inspect.getsource(Trainer.clip_grads)
    assert source.count("clip_grad_norm_(variables, ") == 2


def test_adafactor_ignores_the_learning_rate():
    from ludwig.modules.optimization_modules import get_optimizer_class_and_kwargs
    from ludwig.schema.optimizers import AdafactorOptimizerConfig

    assert get_optimizer_class_and_kwargs(AdafactorOptimizerConfig(), 0.01)[1]["lr"] is None


def test_optimizers_get_arguments_that_bitsandbytes_has_removed():
    import inspect

    from ludwig.schema.optimizers import optimizer_registry

    kind, config = optimizer_registry["lion"]
    assert {"percentile_clipping", "block_wise"} <= set(config.model_fields) - set(inspect.signature(kind).parameters)


def test_an_8_bit_optimizer_replaces_the_embedding_by_a_trained_one():
    from types import SimpleNamespace

    from ludwig.utils.llm_utils import update_embedding_layer

    pytest.importorskip("bitsandbytes")
    model = torch.nn.Module()
    model.device, model.embedding = "cpu", torch.nn.Embedding(4, 2).requires_grad_(False)
    update_embedding_layer(model, SimpleNamespace(optimizer=SimpleNamespace(is_8bit=True)))
    assert model.embedding.weight.requires_grad


def test_8_bit_optimizers_require_a_gpu():
    import inspect

    from ludwig.modules.optimization_modules import create_optimizer

    assert "Cannot use a paged or 8-bit optimizer on a non-GPU machine" in inspect.getsource(create_optimizer)


def test_a_pattern_that_freezes_nothing_is_only_logged():
    import inspect

    from ludwig.utils.trainer_utils import freeze_layers_regex

    assert "logger.error" in inspect.getsource(freeze_layers_regex)


def test_more_checkpoints_than_steps_give_one_per_epoch():
    from ludwig.utils.trainer_utils import get_final_steps_per_checkpoint

    assert get_final_steps_per_checkpoint(5, 0, 10) == 5


def test_noise_on_embeddings_is_scaled_by_the_packed_length():
    """The reason why `neftune_noise_alpha` is rejected: two packed rows of 50 tokens get the noise of a row of 100."""
    from ludwig.modules.training_hooks import NEFTuneHook

    embedding = torch.nn.Embedding(4, 16)
    embedding.neftune_noise_alpha = 5
    hook = NEFTuneHook(neftune_noise_alpha=5)
    noise = hook.hook_fn(embedding, None, torch.zeros(1, 100, 16)).abs().max()
    assert noise <= 5 / (100 * 16) ** 0.5 < 0.9 * 5 / (50 * 16) ** 0.5
