"""The chat template is rendered without a tokenizer, as the tokenizer renders it."""

import json

import pytest

from pipelines.checks.chat_template import TemplateRenderer, check_chat_template, load_checked_prompt_format, renderer
from pipelines.config.job import load_job
from pipelines.data.conversation import Conversation
from pipelines.data.examples import load_examples
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD, pipeline
from tests.tiny_tokenizers import CHATML, KINDS, make_tokenizer

DROPS_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
WANTS_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
NO_ANSWER = "{% for m in messages if m['role'] != 'assistant' %}" + CHATML.partition("%}")[2]
LAST_ONLY = "{{ messages[-1]['content'] }}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_it_renders_like_the_tokenizer(tmp_path, kind, system):
    tokenizer = make_tokenizer(kind)
    tokenizer.save_pretrained(tmp_path)
    ours, its = PromptFormat(TemplateRenderer(tmp_path)), PromptFormat(tokenizer)
    assert ours.uses_chat_template == its.uses_chat_template
    for text in ("is it?", " \n<b> {{ x }} "):
        assert ours.render_prompt(Conversation.single_turn(text, system=system)) == its.render_prompt(
            Conversation.single_turn(text, system=system)
        )


def folder_with(tmp_path, template, how="jinja"):
    if how == "jinja":
        (tmp_path / "chat_template.jinja").write_text(template)
        template = None
    elif how == "named":
        template = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    special = {"bos_token": {"content": "<bos>"}, "eos_token": "<|im_end|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**special, **({"chat_template": template} if template else {})})
    )
    return TemplateRenderer(tmp_path)


@pytest.mark.parametrize("how", ["jinja", "config", "named"])
def test_sources_of_a_template(tmp_path, how):
    renderer = folder_with(tmp_path, "{{ bos_token }}" + CHATML, how)
    assert (
        PromptFormat(renderer)
        .render_prompt(Conversation.single_turn("a"))
        .startswith("<bos><|im_start|>user\na<|im_end|>")
    )
    assert renderer.special_tokens_map == {"bos_token": "<bos>", "eos_token": "<|im_end|>"}


def test_named_templates_without_default(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "rag", "template": CHATML}]})
    )
    with pytest.raises(ConfigError, match=r"several chat templates \(rag\) and no default"):
        PromptFormat(TemplateRenderer(tmp_path)).render_prompt(Conversation.single_turn("is it?"))


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (NO_ANSWER, None, "drops the assistant's answer"),
        (LAST_ONLY, "Be brief.", "drops the user turn"),
    ],
)
def test_a_template_that_drops_text(tmp_path, template, system, message):
    with pytest.raises(ConfigError, match=message):
        PromptFormat(folder_with(tmp_path, template)).render_prompt(Conversation.single_turn("is it?", system=system))


@pytest.mark.parametrize("template", [DROPS_SYSTEM, REFUSES_SYSTEM, WANTS_PARTS])
def test_a_template_of_another_form_gets_its_form(tmp_path, template):
    text = PromptFormat(folder_with(tmp_path, template)).render_prompt(
        Conversation.single_turn("is it?", system="Be brief.")
    )
    assert "is it?" in text and "Be brief." in text


@pytest.mark.parametrize(("template", "key"), [(NO_ANSWER, "pipeline.chat_template")])
def test_problems_are_located_in_the_config(tmp_path, monkeypatch, template, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": f"{index}?", "a": "yn"[index % 2]}) + "\n" for index in range(9))
    )
    (tmp_path / "job.yaml").write_text(
        "base_model: smollm2-135m-instruct\nadapter: {type: lora}\npipeline:\n  chat_template: true\n  tasks:\n    t:\n"
        "      data: rows.jsonl\n      prompt: '{q}'\n      completion: '{a}'\n      system: Be brief.\n"
    )
    job = load_job(tmp_path / "job.yaml")
    folder_with(tmp_path, template)
    with pytest.raises(ConfigError) as error:
        check_chat_template(job, renderer(job, tmp_path), {"t": next(load_examples(job.pipeline))})
    (problem,) = error.value.problems
    assert problem.line == job.line_of(*key.split(".")) and problem.message.startswith(
        "task t: this model's chat template"
    )


def test_broken_templates_are_located_in_the_config(tmp_path):
    tokenizer = make_tokenizer("pad_is_eos")

    def refusal(template, *overrides, config=GOOD):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "m")
        (tmp_path / "m" / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / "job.yaml").write_text(config, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_checked_prompt_format(load_job(tmp_path / "job.yaml", overrides), tmp_path / "m")
        return str(caught.value).removeprefix(f"{tmp_path}/")

    assert refusal("{{ 1 // 0 }}").startswith(
        "job.yaml:8: task sentiment: this model's chat template fails (ZeroDivisionError"
    )
    assert refusal("{{ 1 // 0 }}", config=pipeline("chat_template: true")).startswith(
        "job.yaml:2: task sentiment: this model's chat template fails"
    )
    assert refusal(
        "{% if messages[-1].role == 'assistant' %}{{ x.y.z }}{% endif %}{{ messages[0].content }}"
    ).startswith("job.yaml:8: ")
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert refusal(plain, "generation.suppress_tokens=[99999]").startswith(
        "override generation.suppress_tokens=[99999]: generation.suppress_tokens"
    )
