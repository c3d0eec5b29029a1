"""Normalization and tokenization of texts in every script.

Unicode properties, not lists of scripts, determine the words: a letter whose Line_Break class allows a line break next
to it (UAX #14: Han, kana, Yi, Thai, Lao, Khmer, Burmese, Javanese and others) belongs to a script without spaces
between words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

import regex
from rich.cells import cell_len

_SPACELESS = r"[[\p{L}\p{N}]&&[\p{lb=ID}\p{lb=CJ}\p{lb=NS}\p{lb=SA}\p{lb=AK}\p{lb=AP}\p{lb=AS}]]"
_WORD = r"[\p{L}\p{M}\p{N}\p{Pc}]"
_TOKEN = regex.compile(
    rf"(?V1)(?={_SPACELESS})\X\p{{M}}*"  # a grapheme cluster: \X ends before some Burmese vowel signs
    r"|(?=[\p{Extended_Pictographic}\p{RI}])\X"
    rf"|[[\p{{L}}\p{{M}}\p{{N}}]--{_SPACELESS}]+"
)
_IGNORED = regex.compile(
    r"\p{Default_Ignorable_Code_Point}"
    "|[\u0640\u064b-\u0652\u0670]"  # Arabic: the tatweel, and vowel signs, which most texts omit
    "|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"  # Hebrew vowel and accent signs
)
_OPENING = regex.compile(r"\A[\p{Quotation_Mark}`¡¿\s]+")
_CLOSING = regex.compile(r"[\p{Quotation_Mark}`\p{Terminal_Punctuation}\s]+\Z")
_COMMAS = regex.compile("[,،、，]")

# A label in a text begins and ends at a word boundary, or next to any letter of a script without spaces. Korean
# particles follow a noun without a space, so a label may end before them.
_LABEL_START = rf"(?:(?<!{_WORD})|(?<={_SPACELESS}\p{{M}}*)|(?={_SPACELESS}))"
_LABEL_END = rf"(?!\p{{M}})(?:(?!{_WORD})|(?={_SPACELESS})|(?<={_SPACELESS}\p{{M}}*)|(?<=\p{{Hangul}}))"


NORMALIZATION_NOTE = (
    "Unicode's compatibility forms (NFKC, caseless), invisible characters and the vowel signs of Arabic and Hebrew"
)
"""The differences that `fold_text` removes, for the notes of metrics."""


def fold_text(text: str) -> str:
    """Returns the text without differences that most readers ignore: case and compatibility forms (the Unicode
    Standard, D146: compatibility caseless match), invisible characters, Arabic and Hebrew vowel signs. A text that
    consists only of such characters is unchanged.

    As in D146, ß becomes ss, a final ς becomes σ, and the Turkish dotless ı is a different letter from i. Unlike in
    D146, İ becomes i as in Turkish, not i with a combining dot.
    """
    if text.isascii():
        return text.casefold()
    text = text.replace("\u200b", " ")  # marks the end of a word in Khmer and others
    decomposed = unicodedata.normalize("NFD", text).casefold()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", decomposed).casefold())
    decomposed = unicodedata.normalize("NFKD", _IGNORED.sub("", decomposed)) or decomposed
    return unicodedata.normalize("NFC", regex.sub("i\u0307+", "i", decomposed))


def tokens(text: str) -> list[str]:
    """Returns the words of the folded text; in a script without spaces, its grapheme clusters. Emoji are tokens;
    punctuation is a token only in a text that has nothing else. For an ASCII text these are the tokens of the package
    rouge-score."""
    form = fold_text(text)
    return _TOKEN.findall(form) or [
        "".join(cluster.split()) for cluster in regex.findall(r"\X", form) if cluster.strip()
    ]


def normalize_label(text: str) -> str:
    """Returns the normalized form of a label: folded, without quotes around it and punctuation at its end, and with
    single spaces. A text that consists only of such characters is only stripped."""
    form = " ".join(fold_text(unicodedata.normalize("NFC", text).replace("´", "'")).split())
    return _CLOSING.sub("", _OPENING.sub("", form)) or form or text.strip()


def strip_label(text: str) -> str:
    """Returns the label as it is compared under `normalize: false`: without white space around it, in Unicode's
    canonical form (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def split_labels(text: str) -> list[str]:
    """Returns the labels in a text such as "a, b": it is split at the commas of any script. Empty labels are
    dropped."""
    return [label.strip() for label in _COMMAS.split(text) if label.strip()]


def make_label_finder(labels: Iterable[str], normalize: Callable[[str], str]) -> Callable[[str], set[str]]:
    """Returns a function that finds the labels in a text: those that occur as complete words, after `normalize`.

    A shorter label inside a longer one ("very positive") is not found. In scripts without spaces, a word may begin and
    end at any letter.
    """
    known = {normalize(label) for label in labels} - {""}
    if not known:
        return lambda text: set()
    pattern = regex.compile(rf"(?V1){_LABEL_START}\L<labels>{_LABEL_END}", labels=known)
    return lambda text: set(pattern.findall(normalize(text)))


def truncate(text: str, columns: int) -> str:
    """Returns the text, truncated with … to at most `columns` terminal columns (a Chinese character takes two).
    Grapheme clusters are not split."""
    if cell_len(text) <= columns:
        return text
    clusters, width = [], 0
    for cluster in regex.findall(r"\X", text):
        width += cell_len(cluster)
        if width > columns - 1:
            break
        clusters.append(cluster)
    return "".join(clusters).rstrip() + "…"
