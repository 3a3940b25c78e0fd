"""A GGUF file served by llama.cpp, in a process of its own: it logs much, and may abort.

    python -m likelier.export.llama_server FILE POSITIONS

prints the address, and serves until its standard input is closed.
"""

import sys


def serve(file: str, positions: int) -> None:
    """Serve a file in full precision of its cache, so that only its weights make a difference."""
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.port = positions, 1, 0
    params.warmup = False
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server = llama.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
