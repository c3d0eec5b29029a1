"""Errors of YAML syntax. See `mistakes.py`."""

from tests.bad_configs import GOOD, base_model, completion, rate, section, trainer, with_line

MISTAKES: dict[str, tuple[str | bytes, int | None, str]] = {
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
    "text that starts with {": (completion("{label} it is"), 6, "put a text that starts with {"),
    "quote not closed": (completion('"{label}'), 6, "a quote is not closed"),
    "bracket not closed": (
        with_line("r: 16}", "r: 16"),
        9,
        "not valid YAML: a { is not closed by }, or a comma is missing",
    ),
    "indentation": (with_line("  learning_rate", "   learning_rate"), 12, "check the indentation"),
    "text that starts with @": (base_model("@model"), 8, "put the text in quotes"),
    "text that starts with *": (completion("*label"), 6, "put a text that starts with * in quotes"),
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
    "nested too deeply": ("a: " + "[" * 2000 + "]" * 2000, None, "nested too deeply; is a ] or } missing?"),
    "alias cycle": ("a: &a [*a]\n", 1, "an alias (*) refers to a value that contains it; write the value out"),
    "duplicate key": (section("trainer: {epochs: 3}\n"), 15, "duplicate key (first defined on line 10)"),
    "duplicate key in a section": (
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
}
