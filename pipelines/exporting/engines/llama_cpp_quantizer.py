"""A program that quantizes a GGUF file with llama.cpp's own quantizer: IN OUT TYPE, a number of llama_ftype."""

from __future__ import annotations

import sys

import llama_cpp


def main(source: str, target: str, kind: str) -> int:
    """Returns llama.cpp's status, 0 for success."""
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(kind)
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
