"""A program that prints, as JSON, the tokens at which llama.cpp ends a text of a GGUF file."""

from __future__ import annotations

import json
import os
import sys

import llama_cpp


def main(file: str) -> None:
    """Prints one line of JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    llama = llama_cpp.Llama(file, vocab_only=True, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(llama._model.model)
    count = llama_cpp.llama_vocab_n_tokens(vocabulary)
    print(json.dumps([i for i in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, i)]), file=answers)


if __name__ == "__main__":
    main(sys.argv[1])
