"""Each thing in Ludwig that alfine works round. A test here fails on the day that upstream mends it: then the
work-round can go."""

import json
import warnings

import pytest
import torch

from tests.tiny import make_model, make_tokenizer

pytestmark = pytest.mark.ludwig


def config(base, **trainer):
    return {
        "model_type": "llm",
        "base_model": str(base),
        "input_features": [{"name": "prompt", "type": "text"}],
        "output_features": [{"name": "completion", "type": "text"}],
        "trainer": {"type": "finetune", **trainer},
    }


def test_misspelt_keys_are_dropped(tmp_path):
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


def test_a_prompt_is_cut_up_to_its_last_pad_token():
    from ludwig.utils.llm_utils import remove_left_padding

    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.bos_token = "<|im_start|>"
    text = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor(tokenizer(text)["input_ids"])
    kept = tokenizer.decode(remove_left_padding(ids, tokenizer)[0])
    assert "Is it?" not in kept


def test_padding_is_id_0_whatever_the_pad_token():
    from ludwig.utils.llm_utils import add_left_padding, create_attention_mask

    tokenizer = make_tokenizer("adds_bos")
    padded = add_left_padding(torch.tensor([7, 8]), 4)
    assert tokenizer.pad_token_id != 0
    assert create_attention_mask(padded, tokenizer).tolist() == [1, 1, 1, 1]


def test_long_rows_lose_their_end_first():
    from ludwig.utils.llm_utils import generate_merged_ids

    tokenizer = make_tokenizer("no_template")
    tokenizer.bos_token = "<bos>"
    prompt, answer = torch.tensor([[40, 41, 42, 43]]), torch.tensor([[50, 51]])
    merged, _ = generate_merged_ids(prompt, answer, tokenizer, max_sequence_length=5)
    assert tokenizer.eos_token_id not in merged[0].tolist()


def test_a_second_bos_stands_before_the_completion():
    from ludwig.utils.llm_utils import generate_merged_ids

    tokenizer = make_tokenizer("adds_bos")
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in ("tea:", "yes")]
    merged, _ = generate_merged_ids(*ids, tokenizer)
    assert merged[0].tolist().count(tokenizer.bos_token_id) == 2


def test_the_saved_config_of_a_fine_tuned_model_is_refused(tmp_path):
    from ludwig.config_validation.validation import check_schema
    from ludwig.error import ConfigValidationError
    from ludwig.schema.model_types.base import ModelConfig

    saved = ModelConfig.from_dict(config(make_model(tmp_path / "m"))).to_dict()
    assert saved["adapters"] is None
    with pytest.raises(ConfigValidationError):
        check_schema(json.loads(json.dumps(saved)))


def test_no_fine_tuning_trainer_on_ray():
    from ludwig.trainers.registry import get_llm_ray_trainers_registry

    assert "finetune" not in get_llm_ray_trainers_registry()


def test_a_resumed_schedule_starts_anew():
    """Ludwig builds the schedule after it has loaded the checkpoint, so the first step takes the full rate."""
    import inspect

    from ludwig.trainers.trainer import Trainer

    source = inspect.getsource(Trainer.train)
    assert source.index("_create_or_resume_progress_tracker(") < source.index("self.scheduler = LRScheduler(")


def test_ctrl_c_passes_for_the_end_of_training():
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


def test_any_ray_cluster_on_the_machine_is_joined(monkeypatch):
    """The reason for the backend that `train` names."""
    import ludwig.backend

    joined = []
    monkeypatch.setattr(ludwig.backend, "_has_ray", lambda: True)
    monkeypatch.setitem(ludwig.backend.backend_registry, ludwig.backend.RAY, lambda **_: joined.append("ray"))
    ludwig.backend.create_backend(None)
    assert joined == ["ray"]
