"""Texts of every script: the form in which they are compared, and where their words are.

Words are found by properties of Unicode and not by lists of scripts: a letter whose Line_Break class lets a line end
beside it (UAX #14: Han, kana, Yi, Thai, Lao, Khmer, Burmese, Javanese and others) belongs to a script without spaces
between words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

import regex

_SPACELESS = r"[[\p{L}\p{N}]&&[\p{lb=ID}\p{lb=CJ}\p{lb=NS}\p{lb=SA}\p{lb=AK}\p{lb=AP}\p{lb=AS}]]"
_WORD = r"[\p{L}\p{M}\p{N}\p{Pc}]"
_TOKEN = regex.compile(
    rf"(?V1)(?={_SPACELESS})\X\p{{M}}*"  # a letter with its signs: \X ends before some vowels of Burmese
    r"|(?=[\p{Extended_Pictographic}\p{RI}])\X"
    rf"|[[\p{{L}}\p{{M}}\p{{N}}]--{_SPACELESS}]+"
)
_UNSEEN = regex.compile(
    r"\p{Default_Ignorable_Code_Point}"
    "|[\u0640\u064b-\u0652\u0670]"  # Arabic: what stretches a word, and vowel signs, which most texts leave out
    "|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"  # the same of Hebrew
)
_OPENING = regex.compile(r"\A[\p{Quotation_Mark}`¡¿\s]+")
_CLOSING = regex.compile(r"[\p{Quotation_Mark}`\p{Terminal_Punctuation}\s]+\Z")
_COMMAS = regex.compile("[,،、，]")

# Where a label may begin and end inside a text: at the edge of a word, and beside any letter of a script without
# spaces. Korean particles follow a noun without a space, so a label may end before them.
_BEGINS = rf"(?:(?<!{_WORD})|(?<={_SPACELESS}\p{{M}}*)|(?={_SPACELESS}))"
_ENDS = rf"(?!\p{{M}})(?:(?!{_WORD})|(?={_SPACELESS})|(?<={_SPACELESS}\p{{M}}*)|(?<=\p{{Hangul}}))"


NORMALIZATION_NOTE = (
    "Unicode's compatibility forms (NFKC, caseless), invisible characters and the vowel signs of Arabic and Hebrew"
)
"""What `folded` removes, for the notes of metrics."""


def folded(text: str) -> str:
    """The text without what most readers do not see as a difference: case, compatibility forms (the Unicode Standard,
    D146: compatibility caseless match), invisible characters, Arabic and Hebrew vowel signs. A text of nothing else
    stays as it is.

    As D146 does it: ß is ss, a final ς is σ, the dotless ı of Turkish stays another letter than i; but İ is i, as in
    Turkish, and not i with another dot.
    """
    if text.isascii():
        return text.casefold()
    text = text.replace("\u200b", " ")  # marks the end of a word in Khmer and others
    decomposed = unicodedata.normalize("NFD", text).casefold()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", decomposed).casefold())
    decomposed = unicodedata.normalize("NFKD", _UNSEEN.sub("", decomposed)) or decomposed
    return unicodedata.normalize("NFC", regex.sub("i\u0307+", "i", decomposed))


def tokens(text: str) -> list[str]:
    """The words of a text, folded; of a script without spaces its letters, each with its signs. Emoji count,
    punctuation counts in a text of nothing else. Of an ASCII text these are the words of the package rouge-score."""
    form = folded(text)
    return _TOKEN.findall(form) or ["".join(one.split()) for one in regex.findall(r"\X", form) if one.strip()]


def normalise_label(text: str) -> str:
    """The form in which labels are compared: what `folded` takes away, quotes around it, punctuation at its end and the
    amount of white space do not count. A text of nothing else stays as it is."""
    form = " ".join(folded(unicodedata.normalize("NFC", text).replace("´", "'")).split())
    return _CLOSING.sub("", _OPENING.sub("", form)) or form or text.strip()


def written_label(text: str) -> str:
    """The form of a label that counts as it is written, but for white space around it and Unicode's canonical forms
    (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def split_labels(text: str) -> list[str]:
    """The labels of "a, b": split at commas of any script, none of them empty."""
    return [label.strip() for label in _COMMAS.split(text) if label.strip()]


def label_finder(labels: Iterable[str], form: Callable[[str], str]) -> Callable[[str], set[str]]:
    """A function that gives those labels, in their `form`, that a text names as whole words. A longer label does not
    name the shorter one in it ("very positive"). Of scripts without spaces every place in a text may be the edge of a
    word."""
    known = {form(label) for label in labels} - {""}
    if not known:
        return lambda text: set()
    pattern = regex.compile(rf"(?V1){_BEGINS}\L<labels>{_ENDS}", labels=known)
    return lambda text: set(pattern.findall(form(text)))


def cut(text: str, columns: int) -> str:
    """The text with … where it is wider than so many columns of a terminal, of which a Chinese character takes two. No
    letter is cut from its signs, no emoji into its parts."""
    from rich.cells import cell_len

    if cell_len(text) <= columns:
        return text
    kept, width = [], 0
    for cluster in regex.findall(r"\X", text):
        width += cell_len(cluster)
        if width > columns - 1:
            break
        kept.append(cluster)
    return "".join(kept).rstrip() + "…"
