"""Normalized texts, labels and tokens in many scripts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scoring.unicode_text import (
    fold_text,
    make_label_finder,
    normalize_label,
    split_labels,
    strip_label,
    tokens,
    truncate,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPT-4很好，2024年。", ["gpt", "4", "很", "好", "2024", "年"]),
        ("パンがｶﾞ々ー", ["パ", "ン", "が", "ガ", "々", "ー"]),
        ("이 영화는 좋다.", ["이", "영화는", "좋다"]),
        ("หนังดี", ["ห", "นั", "ง", "ดี"]),
        ("ພາສາ ລາວ", ["ພ", "າ", "ສ", "າ", "ລ", "າ", "ວ"]),
        ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្មែ", "រ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("ꦗꦮ", ["ꦗ", "ꦮ"]),
        ("བོད་སྐད།", ["བོད", "སྐད"]),
        ("यह हिन्दी है।", ["यह", "हिन्दी", "है"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("العَرَبِيَّةُ جميـــلة؟", ["العربية", "جميلة"]),
        ("שָׁלוֹם־עולם", ["שלום", "עולם"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("Это хорошо, ёж", ["это", "хорошо", "ёж"]),
        ("ΟΔΟΣ οδός", ["οδοσ", "οδόσ"]),
        ("Tiê\u0301ng Viê\u0323t", ["tiếng", "việt"]),
        ("አማርኛ፡ቋንቋ", ["አማርኛ", "ቋንቋ"]),
        ("ｆｕｌｌ　ｗｉｄｔｈ１", ["full", "width1"]),
        ("don’t, café-bar x_y", ["don", "t", "café", "bar", "x", "y"]),
        ("great 👍🏽 👩‍💻", ["great", "👍🏽", "👩💻"]),
        ("។!", ["។", "!"]),
        ("", []),
        (" \n", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    expected = [part for word in expected for part in (["👩", "💻"] if word == "👩💻" else [word])]
    assert tokens(text) == [unicodedata.normalize("NFC", word) for word in expected]


@given(st.text())
def test_normalization_is_idempotent(text: str) -> None:
    for form in (fold_text, normalize_label, strip_label):
        assert form(form(text)) == form(text)


@given(st.text(st.characters(codec="utf-8")))
def test_canonically_equal_texts_have_equal_labels_and_tokens(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert normalize_label(text) == normalize_label(decomposed) and strip_label(text) == strip_label(decomposed)
    assert tokens(text) == tokens(decomposed)


@given(st.text(st.characters(codec="utf-8")))
def test_every_letter_is_in_a_token(text: str) -> None:
    form = fold_text(text)
    token_text = "".join(tokens(text))
    assert [letter for letter in form if letter.isalnum()] == [letter for letter in token_text if letter.isalnum()]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("STRASSE", "straße", True),
        ("ΟΔΟΣ", "οδος", True),  # final sigma
        ("İYİ", "iyi", True),
        ("KIRMIZI", "kırmızı", False),  # Unicode's case folding is the same for all languages: I becomes i, ı does not
        ("ırmak", "irmak", False),
        ("ﬁn", "fin", True),
        ("①", "1", True),
        ("ｶﾞ", "ガ", True),
        ("sí", "si", False),
        ("जल", "जाल", False),  # vowel signs are significant
        ("ก่า", "กา", False),
        ("má", "mà", False),
        ("мой", "мои", False),
        ("كتاب", "كِتَاب", True),
        ("שלום", "שָׁלוֹם", True),
        ("أب", "اب", False),
        ("正面", "正面。", True),
        ("正面", "「正面」！", True),
        ("जी", "जी।", True),
        ("نعم", "نعم؟", True),
        ("ఔను", "ఔను.", True),
        ("да", "«Да»…", True),
        ("sí", "¡Sí!", True),
        ("שלום", "שלום\u200f", True),
        ("繁体", "繁體", False),
        ("C#", "C", False),
        ("positive", "´positive´", True),
        ("", "\u200b", False),
        ("", "  ", True),
    ],
)
def test_equal_labels(left: str, right: str, same: bool) -> None:
    assert (normalize_label(left) == normalize_label(right)) is same


@pytest.mark.parametrize(
    ("labels", "text", "named"),
    [
        (["正面", "负面"], "这条评论是正面的。", {"正面"}),
        (["正面", "负面"], "正面还是负面？", {"正面", "负面"}),
        (["正确", "不正确"], "这是不正确的", {"不正确"}),
        (["肯定", "否定"], "これは肯定的です", {"肯定"}),
        (["ポジティブ", "ネガティブ"], "ﾎﾟｼﾞﾃｨﾌﾞです", {"ポジティブ"}),
        (["บวก", "ลบ"], "รีวิวนี้เป็นบวกครับ", {"บวก"}),
        (["กา"], "ก่า", set()),
        (["ดี"], "ดีมาก", {"ดี"}),
        (["ວັກ"], "ນີ້ແມ່ນວັກ", {"ວັກ"}),
        (["វិជ្ជមាន"], "នេះជាវិជ្ជមានណាស់", {"វិជ្ជមាន"}),
        (["ကောင်း"], "ဒါကကောင်းတယ်", {"ကောင်း"}),
        (["긍정", "부정"], "이 리뷰는 긍정입니다.", {"긍정"}),
        (["긍정", "긍정적"], "이 리뷰는 긍정적입니다.", {"긍정적"}),
        (["정"], "긍정입니다", set()),
        (["नकारात्मक", "सकारात्मक"], "यह समीक्षा सकारात्मक है।", {"सकारात्मक"}),
        (["क"], "की कि", set()),  # no word boundary before a vowel sign
        (["إيجابي", "سلبي"], "هذه المراجعة إيجابيّ؟", {"إيجابي"}),
        (["חיובי"], "הביקורת היא חיובי.", {"חיובי"}),
        (["да"], "дача", set()),
        (["да"], "Ответ: ДА!", {"да"}),
        (["tích cực"], "Đây là tích cực.", {"tích cực"}),
        (["positive"], "这是positive的", {"positive"}),
        (["3"], "第3类", {"3"}),
        (["3"], "13年", set()),
    ],
)
def test_labels_in_a_text(labels: list[str], text: str, named: set[str]) -> None:
    named = {normalize_label(label) for label in named}
    assert make_label_finder(labels, normalize_label)(text) == named


def test_labels_as_written_in_a_text() -> None:
    assert make_label_finder(["Polish", "polish"], strip_label)("I would say Polish.") == {"Polish"}


def test_split_labels() -> None:
    assert split_labels("a, b，c、d، e,,") == ["a", "b", "c", "d", "e"] and split_labels(" , ") == []


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("abcdef", 4, "abc…"),
        ("abcd", 4, "abcd"),
        ("中文字", 5, "中文…"),
        ("中文字", 6, "中文字"),
        ("नमस्ते", 2, "न…"),
        ("e\u0301e\u0301e\u0301", 2, "e\u0301…"),
        ("👩‍💻👩‍💻", 3, "👩‍💻…"),
    ],
)
def test_cut(text: str, columns: int, expected: str) -> None:
    assert truncate(text, columns) == expected
