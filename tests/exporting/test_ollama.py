"""Go templates of Modelfiles give the texts of the Jinja templates, or are not written."""

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from pipelines.data.chat_template import ChatTemplateError
from pipelines.exporting.ollama import turn_texts

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '<' + message['role'] + '>' + message['content'] }}{% endfor %}<assistant>"
)
STRIPS = CHATML.replace("message['content']", "message['content'] | replace('{', '(')")


def renderer(source):
    compiled = _compile_jinja_template(source)

    def render(messages):
        try:
            return compiled.render(messages=messages, add_generation_prompt=True)
        except Exception as error:
            raise ChatTemplateError(str(error)) from None

    return render


def test_a_template_of_turns_is_written_as_go():
    texts = turn_texts(renderer(CHATML))
    assert texts.default_system is None
    assert texts.go_template() == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_a_default_system_turn_is_that_of_the_modelfile():
    texts = turn_texts(renderer(WITH_DEFAULT))
    assert texts.default_system == "You are kind."
    assert texts.go_template() == turn_texts(renderer(CHATML)).go_template()


@pytest.mark.parametrize("source", [LLAMA_2, NO_SYSTEM, STRIPS, "no content at all"])
def test_a_template_that_go_cannot_express_is_not_written(source):
    assert turn_texts(renderer(source)) is None


def test_braces_of_a_template_are_escaped_for_go():
    source = CHATML.replace("'<|im_start|>'", "'{{user}}'")
    assert '{{ "{{" }}user}}' in turn_texts(renderer(source)).go_template()
