"""Names of columns in published data sets, by the role that they have."""

from __future__ import annotations

from collections.abc import Sequence

CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "chosen")
"""Columns of conversations, in the order in which they are chosen."""
ANSWERS = (
    *("completion", "response", "output", "answer", "answers", "chosen", "canonical_solution", "solution"),
    *("summary", "summaries", "highlights", "tldr", "translation", "target", "targets", "reply", "response_text"),
)
"""Columns with what a model has to write, the most specific ones first."""
LABELS = (
    *("label", "labels", "label_text", "class", "classes", "gold", "sentiment", "intent", "emotion", "emotions"),
    *("category", "categories", "topic", "topics", "tags", "tag", "genres", "genre", "polarity", "verdict", "y"),
)
OUTCOMES = (
    *("team", "department", "queue", "priority", "severity", "status", "rating", "stars", "score", "grade"),
    *("quality", "species", "outcome", "decision", "result", "type", "code", "reference", "correct", "recommended"),
)
"""Columns that are an output if no other is."""
OUTPUTS = (ANSWERS, LABELS, OUTCOMES)
"""The names of outputs; those of one group are equally likely."""

PRIMARY = ("prompt", "instruction", "question", "query")
"""Columns that say by themselves what the model has to do."""
COMPANIONS = ("context", "passage", "paragraph", "document", "article", "story", "input", "choices", "options", "table")
"""Columns that belong to a question or an instruction."""
CONTEXTS = COMPANIONS[:6]
"""Companions that come before the question."""
CHOICES = ("choices", "options", "endings")
INPUTS = (
    *("text", "sentence", "review", "comment", "tweet", "post", "content", "body", "subject", "title", "headline"),
    *(
        "description",
        "message",
        "email",
        "document",
        "article",
        "passage",
        "context",
        "dialogue",
        "transcript",
        "source",
    ),
    *("abstract", "input", "utterance", "statement", "premise", "hypothesis", "sentence1", "sentence2", "question1"),
    *("question2", "feedback", "note", "request", "ticket", "snippet", "paragraph", "story"),
)
"""Columns with what a model is given."""

SYSTEM, HISTORY, TOOLS = ("system", "system_prompt"), ("history",), ("tools",)
REASONING = (
    "reasoning",
    "rationale",
    "thought",
    "thoughts",
    "chain_of_thought",
    "cot",
    "thinking",
    "reasoning_content",
)
DERIVED = (
    "clean",
    "cleaned",
    "processed",
    "preprocessed",
    "normalized",
    "tokens",
    "tokenized",
    "stemmed",
    "lemmatized",
)
"""Words of columns that hold another column's text once more."""
TESTS = ("tests", "test", "test_list", "unit_tests", "test_cases")
REJECTED = ("rejected", "rejected_response", "negative", "distractors", "distractor")
OPTIONS = ("option", "options", "opt", "choice", "answer", "ans")
"""The word before the letter or number of an answer to choose from, in the name of its column."""
IGNORED = (
    *("id", "ids", "uid", "uuid", "guid", "idx", "index", "key", "hash", "url", "urls", "uri", "link", "href", "date"),
    *("time", "timestamp", "datetime", "created", "updated", "year", "author", "user", "username", "license", "lang"),
    *("language", "meta", "metadata", "file", "filename", "path", "version", "split", "subset", "fold", "partition"),
    *("template", "token_count", "num_tokens", "length", "entry_point", "annotator", "worker", "email_address"),
)
"""Columns that are neither input nor output, unless nothing else is left."""
GROUPS = frozenset(
    (
        *("group", "cluster", "conversation", "dialog", "dialogue", "thread", "session", "document", "doc", "article"),
        *("passage", "paragraph", "book", "story", "case", "patient", "user", "customer", "client", "account"),
        *("author", "speaker", "student", "participant", "reviewer", "person", "username", "problem", "parent"),
    )
)
"""Words of columns that say which rows belong together."""
LANGUAGES = {
    **{"en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese"},
    **{"nl": "Dutch", "ro": "Romanian", "pl": "Polish", "cs": "Czech", "ru": "Russian", "uk": "Ukrainian"},
    **{"zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ar": "Arabic", "hi": "Hindi", "tr": "Turkish"},
    **{"sv": "Swedish", "da": "Danish", "fi": "Finnish", "no": "Norwegian", "hu": "Hungarian", "el": "Greek"},
    **{"he": "Hebrew", "vi": "Vietnamese", "th": "Thai", "id": "Indonesian", "fa": "Persian", "bg": "Bulgarian"},
    **{"et": "Estonian", "lt": "Lithuanian", "lv": "Latvian", "sk": "Slovak", "hr": "Croatian", "ca": "Catalan"},
}
"""Languages by their code in ISO 639-1."""


def language_of(words: Sequence[str]) -> str | None:
    """The language that a column's name is, by its code or its name."""
    names = {name.lower(): name for name in LANGUAGES.values()}
    if len(words) not in (1, 2):
        return None
    return LANGUAGES.get(words[-1]) or names.get(words[-1])


def rank(normalized: str, words: Sequence[str], names: Sequence[str]) -> int | None:
    """The place of a column's name in a list of names: as a whole first, then one of its words; None if absent."""
    if normalized in names:
        return names.index(normalized)
    places = [names.index(word) for word in words if word in names]
    return len(names) + min(places) if places else None
