"""What only a GPU can show: correctness, speed and memory on one GPU, in three parts of at most four minutes each.

    python -m tests.gpu_acceptance --part 1|2|3 [--device cpu] [--out FOLDER] [--seconds 220]

Nothing is downloaded: models have random weights and are built on the spot. See docs/gpu/README.md.
"""
