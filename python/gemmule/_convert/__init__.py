"""From a checkpoint to one GGUF file.

    source -> image.Bundle (what to write) -> mixes (a type per tensor) -> stream (bytes on disk)

checkpoint.py reads Hugging Face folders, gguf_source.py reads GGUF files; both end in a Bundle. convert.py
is the entry. Nothing here computes on weights: the block encoders are in the C++ core.
"""
